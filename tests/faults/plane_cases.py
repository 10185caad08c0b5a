"""Control planes beside a Triton that outlives them: killed, paused, and two at once."""

import time

from tests.faults.cases import Case, Trial
from tests.faults.planes import Plane
from tests.faults.stage import MOVING, Stage

KILLS = 10
"""In one trial; the invariants are checked after each trial."""


def killed_at_random(trial: Trial) -> None:
    """Send SIGKILL to either instance at random moments, also during its start, and restart it at once."""
    stage = trial.stage
    stage.record.excuse("api")
    for _ in range(KILLS):
        plane = stage.rng.choice(stage.planes)
        time.sleep(stage.rng.uniform(0.0, 2.0))
        if plane.running:
            plane.kill()
        plane.launch()
        if not stage.answers():
            trial.problems.append("inference needs the control plane")
    trial.lifted()
    for plane in stage.planes:
        plane.wait_up()
    stage.record.expect("api")
    trial.heals(lambda: all(_is_ready(stage, plane) for plane in stage.planes))


def _is_ready(stage: Stage, plane: Plane) -> bool:
    """Return whether a change through this control plane is applied and takes effect."""
    number = stage.planes.index(plane)
    return stage.answers() and stage.work.caller.is_ready(number)


def leader_of(stage: Stage) -> Plane:
    """Return the control plane that holds the lease in the store."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        pid = stage.auditor.leader_pid()
        for plane in stage.planes:
            if plane.running and plane.pid == pid:
                return plane
        time.sleep(0.05)
    raise AssertionError("there is no leader")


def _other(stage: Stage, plane: Plane) -> int:
    return next(number for number, one in enumerate(stage.planes) if one is not plane)


def leader_killed(trial: Trial) -> None:
    """Send SIGKILL to the leader; the standby deploys as soon as it has the lease."""
    stage = trial.stage
    leader = leader_of(stage)
    stage.record.excuse("api")
    with stage.deployer_off():
        leader.kill()
        _takes_over(trial, _other(stage, leader))
    leader.start()
    stage.record.expect("api")


def leader_paused(trial: Trial) -> None:
    """Send SIGSTOP to the leader during a rollout; it resumes after another has led for some time."""
    stage = trial.stage
    leader = leader_of(stage)
    stage.record.excuse("api")
    with stage.deployer_off():
        number = _other(stage, leader)
        versions = sorted({one.version for one in stage.record.published if one.model == MOVING})
        stage.work.move_to(MOVING, stage.rng.choice(versions), on=number)
        time.sleep(stage.rng.uniform(0.0, 0.6))
        before = stage.auditor.fencing_number()
        leader.pause()
        try:
            _takes_over(trial, number)
        finally:
            leader.resume()
        if stage.auditor.fencing_number() <= before:
            trial.problems.append("the lease changed its holder without a higher number")
        end = time.monotonic() + 60
        while stage.leads(leader) and time.monotonic() < end:
            time.sleep(0.05)
        if stage.leads(leader):
            trial.problems.append("a resumed leader leads beside the new one")
    stage.record.expect("api")


def _takes_over(trial: Trial, number: int) -> None:
    stage = trial.stage
    versions = sorted({one.version for one in stage.record.published if one.model == MOVING})
    wanted = stage.rng.choice(versions)
    stage.work.move_to(MOVING, wanted, on=number)
    trial.heals(lambda: stage.asker.ask(MOVING) == wanted and stage.leads(stage.planes[number]))


def both_serve(trial: Trial) -> None:
    """Check without a fault that one instance sees changes of the other, at once for writes and in 1 s for reads."""
    stage = trial.stage
    for number in range(len(stage.planes)):
        version = stage.work.publish("shared", on=number).version
        other = (number + 1) % len(stage.planes)
        stage.work.caller.call("PUT", "/v1/models/shared/aliases/newest", on=other, json={"version": version})

        def known(other: int = other, version: int = version) -> bool:
            alias = stage.work.caller.call("GET", "/v1/models/shared/aliases/newest", on=(other + 1) % 2)
            return bool(alias["version"] == version)

        trial.heals(known, 60)


def plane_cases() -> list[Case]:
    """Return all control-plane cases; they need two control planes beside one Triton."""
    return [
        Case("replicas: both serve the API", both_serve, long=3),
        Case("replicas: the leader killed", leader_killed, long=5),
        Case("replicas: the leader paused", leader_paused, r"LeadershipLost|LeadershipAcquired", quick=1, long=5),
        Case("control plane: SIGKILL at random", killed_at_random, quick=1, long=20, each=KILLS),
    ]
