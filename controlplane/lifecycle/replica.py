"""One model on one server: what is remembered, what is in flight, what an outcome means. Mutable; the loop's own."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controlplane.domain.conditions import Condition
from controlplane.domain.states import Phase, Proof, ServerDeploymentStatus
from controlplane.errors import (
    InvalidInputError,
    LoadRefusedError,
    NotFoundError,
    TritonTimeoutError,
    TritonUnavailableError,
)
from controlplane.lifecycle.actions import CleanUp, Load, Prove, Stage, Unload, Wait
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.events import EventLog
from controlplane.lifecycle.executor import NotLeaderError, Outcome
from controlplane.lifecycle.history import Backoff, ReplicaHistory
from controlplane.lifecycle.observation import AppliedConfig, ReplicaObservation
from controlplane.lifecycle.probe_schedule import ProbeDecision, ProbeTracker, due, gone
from controlplane.lifecycle.state import DesiredReplica, ProofStatus, Target, bake_until
from controlplane.lifecycle.status import Doing, Trouble, View, server_status
from controlplane.servers.readings import ServerReading
from controlplane.triton.embedded.processes import since_boot

LATE_PROBES = 3
"""So many probes in a row without an answer in time, and a version that was healthy counts as broken."""


@dataclass
class Replica:
    """One model on one server.

    Attributes:
        server: The server's name.
        model: The model's name.
        facts: What is there, as seen or as known from our own actions; None until somebody looked.
        baseline_observation: What was there when what others did was told last, or as we left it since; None where we
            cannot know who did what is there. It outlasts facts that are lost.
        ours: The configuration of ours that was there last, as Triton tells it.
        record: What is remembered.
        task: The action in flight.
        doing: The same for display; also set while waiting for Triton.
        began: When the newest action began, in seconds since the machine started.
        changed: Number of the loop's step that last changed something; looks that began before do not count.
        seen: Number of the step in which the newest look began that was taken in.
        note: Something about the newest rollout that a person should know.
        seconds: Time by stage of the newest rollout.
        told: The phase that was last told in an event.
        late: Probes in a row that got no answer in time.
        watch: What is known of how it answers.
        load_overdue: Whether a load of ours passed its deadline; Triton may be at it still.
        conditions: What could be said of it last, and since when.
        pending_qualification: What was proved for somebody who waited for it, and is to be examined now that it
            answers.
        settled: Whether that was said when nothing was under way.
        resumed: Whether it was compared with what was known before this process started.
        stale_since: Number of the step in which this process noticed that it had been stopped; None where what is known
            here has been seen since, and the deployment has settled.
        wakes_at: When its next action is planned again although nothing changed (UTC); None: not at all.
    """

    server: str
    model: str
    facts: ReplicaObservation | None = None
    baseline_observation: ReplicaObservation | None = None
    ours: AppliedConfig | None = None
    record: ReplicaHistory = field(default_factory=ReplicaHistory)
    task: "asyncio.Task[None] | None" = None
    doing: Doing | None = None
    began: float = 0.0
    changed: int = 0
    seen: int = -1
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    told: Phase | None = None
    late: int = 0
    watch: ProbeTracker = field(default_factory=ProbeTracker)
    load_overdue: bool = False
    conditions: tuple[Condition, ...] = ()
    pending_qualification: Target | None = None
    settled: bool = False
    resumed: bool = False
    stale_since: int | None = None
    wakes_at: datetime | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing of it is there and nothing is being done, so that only a change can make it act."""
        if self.task is not None or self.doing is not None or self.stale_since is not None or self.facts is None:
            return False
        facts = self.facts
        return not (
            facts.loaded or facts.candidate is not None or facts.loading or facts.leaving or facts.candidate_leaving
        )

    @property
    def engaged(self) -> bool:
        """Whether an action is in flight that it has to be left alone for; to be examined is none."""
        action = self.doing.action if self.doing is not None else None
        return self.task is not None and not (isinstance(action, Prove) and action.examine)

    def adopt(self, desired_deployment: DesiredDeployment, now: datetime, backoff: Backoff) -> None:
        """Something else is wanted."""
        self.record = self.record.wanted_anew(desired_deployment.wanted)
        if desired_deployment.trial is not None:
            self.record = self.record.wanted_anew(desired_deployment.trial)
        self.note, self.seconds = "", {}
        if desired_deployment.problem:
            self.record = self.record.after_failure(
                desired_deployment.wanted, desired_deployment.problem, final=True, now=now, backoff=backoff
            )

    def see(self, facts: ReplicaObservation) -> None:
        """A look showed this."""
        before = self.facts or self.baseline_observation
        changed = before is not None and bool(before.loaded) and (before.differs(facts) or facts.externally_modified)
        if changed:
            self.watch.loaded(since_boot())  # somebody loaded it again: what it had before leaves
        self.facts = facts
        self.record = self.record.seen(facts.loaded, digest_changed=changed, candidate=facts.candidate is not None)

    def lost(self, *, restarted: bool) -> None:
        """The server was not there.

        Args:
            restarted: Whether it started anew, or may have.
        """
        self.facts = None
        if restarted:
            self.baseline_observation = None
        self.record = self.record.server_lost()
        self.watch.loaded()

    def watched(self, reading: ServerReading, began: int) -> bool:
        """Take in what a reading of the server that began at the loop's step ``began`` tells of what answers.

        Returns:
            Whether something looks sick: a real request failed, or a process is gone.
        """
        answering = max(self.facts.loaded, default=None) if self.facts else None
        if answering is None or self.task is not None or began < self.changed:
            return False
        key = (self.model, answering)
        if reading.counters is not None:
            self.watch.take_counters(key, reading.counters, time.monotonic())
        if reading.instances is not None:
            self.watch.take_processes(key, reading.instances)
        return self.watch.alarming

    def probe_due(self, interval_seconds: float, poll_seconds: float) -> bool:
        """Whether what answers, and was proved, is to be asked again now."""
        now = time.monotonic()
        match due(self.watch.signs(now), interval_seconds=interval_seconds, poll_seconds=poll_seconds):
            case ProbeDecision.ASK:
                return True
            case ProbeDecision.SKIP:
                self.watch.skip(now)
        return False

    def wakes(
        self, desired: DesiredReplica, now: datetime, *, interval_seconds: float, poll_seconds: float
    ) -> datetime | None:
        """Return when its next action may be another one although nothing changed; None: at no time.

        Args:
            desired: What is wanted.
            now: The present time (UTC).
            interval_seconds: Time between probes.
            poll_seconds: What is due already is looked at again after this time.
        """
        times = [self.record.hold_until, *(failure.retry_at for failure in self.record.failures.values())]
        coming = [at for at in times if at is not None and at > now]
        if self.facts is not None and self.facts.loaded:
            if len(self.facts.loaded) > 1:
                observed = self.facts.with_record(self.record)
                ends = (bake_until(desired, observed, target.version) for target in desired.targets)
                coming.extend(end for end in ends if end > now)
            seconds = self.watch.due_in(interval_seconds, time.monotonic())
            coming.append(now + timedelta(seconds=seconds if seconds > 0 else poll_seconds))
        return min(coming, default=None)

    def status(self, desired: DesiredReplica, trouble: Trouble | None, now: datetime) -> ServerDeploymentStatus:
        """Return how the deployment stands here."""
        if self.facts is None and trouble is None:
            trouble = Trouble(f"{self.server} is being looked at")
        observed = (self.facts or ReplicaObservation()).with_record(self.record)
        view = View(
            self.server,
            desired,
            observed,
            self.record,
            self.doing,
            trouble,
            self.note,
            dict(self.seconds),
            self.watch.summary(),
            self.conditions,
        )
        return server_status(view, now)

    def announce(self, desired: DesiredReplica, trouble: Trouble | None, now: datetime, events: EventLog) -> None:
        """Tell in an event that it settled in another phase than was told last; keep when its conditions turned."""
        status = self.status(desired, trouble, now)
        self.conditions = status.conditions
        self.settled = status.phase.settled and trouble is None and self.facts is not None
        if status.phase is self.told:
            return
        self.told = status.phase
        if status.phase.settled:
            bad = status.phase in {Phase.FAILED, Phase.DEGRADED}
            message = f"on {self.server}: {status.message}"
            events.add("Warning" if bad else "Normal", status.phase.value, self.model, message)

    def settle(self, outcome: Outcome, *, now: datetime, backoff: Backoff, events: EventLog) -> None:
        """Take in how an action went. After a failure nothing is known until somebody looked."""
        for stage, seconds in outcome.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if outcome.error is None and self.facts is not None:
            self._succeeded(outcome, now, backoff, events)
        elif outcome.error is not None:
            self._failed(outcome, now, backoff, events)
        undone = isinstance(outcome.error, (LoadRefusedError, NotLeaderError))  # what was there is there still
        if isinstance(outcome.action, (Load, Unload)) and not undone:
            self.baseline_observation = self.facts

    def _succeeded(self, outcome: Outcome, now: datetime, backoff: Backoff, events: EventLog) -> None:
        action, before = outcome.action, self.facts
        assert before is not None
        self.record = self.record.released()
        self.facts = before.after(action, outcome.gpus)
        self.load_overdue = False
        match action:
            case Load(candidate=False, versions=versions, target=target):
                self.record = self.record.after_load(action, before=before.loaded, digest=before.digest, now=now)
                self.watch.loaded(self.began)
                told = outcome.fingerprint
                self.ours = AppliedConfig(frozenset(versions), target.digest, told, outcome.gpus) if told else None
                took = outcome.seconds.get("load", 0.0) + outcome.seconds.get("switch", 0.0)
                if max(versions) != max(before.loaded, default=None):
                    events.add(
                        "Normal",
                        "VersionActivated",
                        self.model,
                        f"version {max(versions)} answers on {self.server} ({took:.3f} s)",
                    )
                dropped = sorted(before.loaded - set(versions))
                if dropped and before.digest != target.digest:
                    self.note = (
                        f"version {dropped[-1]} was not kept loaded: it cannot run under the same configuration, so "
                        "going back to it is a load"
                    )
            case Load():
                self.record = self.record.after_load(action, before=frozenset(), digest=None, now=now)
            case Prove():
                self._proved(outcome, action, now, backoff, events)
            case Unload(candidate=False):
                events.add("Normal", "Unloaded", self.model, f"unloaded from {self.server}: {action.because}")

    def _proved(self, outcome: Outcome, action: Prove, now: datetime, backoff: Backoff, events: EventLog) -> None:
        target, candidate = action.target, action.candidate
        mark, proof, was = outcome.mark, outcome.proof, self.record.marks.get(action.target.version)
        assert mark is not None
        assert proof is not None
        if not candidate and was is ProofStatus.PASSED and mark is ProofStatus.PASSED and self.watch.missing[0]:
            mark, proof = ProofStatus.BROKEN, gone(self.watch.missing, now, target.version)
        clock = time.monotonic()
        if not candidate:
            self.watch.asked(proof, mark, light=action.light, requests=outcome.requests, now=clock)
        if outcome.peer_requests:
            self.watch.compared(outcome.peer_requests)
        if mark is ProofStatus.LATE:
            self.late += 1
            if was is ProofStatus.PASSED and not candidate and self.late < LATE_PROBES:
                # Most likely it is busy, and to load it again would make that worse.
                events.add("Warning", "ProbeTimedOut", self.model, f"on {self.server}: {proof.message}")
                return
            mark = ProofStatus.BROKEN
        self.late = 0
        if action.light and mark is ProofStatus.PASSED and was is ProofStatus.PASSED:
            proof = self._refreshed(proof)
        self.record = self.record.after_proof(target, mark, proof, candidate=candidate, now=now, backoff=backoff)
        if mark is not ProofStatus.PASSED:
            if was is ProofStatus.PASSED and not candidate:
                self.watch.broke(clock)
            reason = {ProofStatus.WRONG: "ProofFailed", ProofStatus.REGRESSED: "Regressed"}.get(mark, "Unhealthy")
            what = f"version {target.version} on {self.server}: {proof.message}"
            events.add("Warning", reason, self.model, what)
        elif was is not ProofStatus.PASSED:
            if not candidate:
                self.watch.answers(clock)
            where = " as a candidate" if candidate else ""
            events.add(
                "Normal",
                "ProofPassed",
                self.model,
                f"version {target.version} answers {proof.samples} golden samples as recorded on {self.server}{where}",
            )
        if mark is ProofStatus.BROKEN and not candidate:
            self.facts = None  # it may have been unloaded: somebody has to look before it is loaded again

    def _refreshed(self, newest: Proof) -> Proof:
        """A probe of one sample renews the proof that it stands on: that one tells of all samples."""
        proof = self.record.proof
        if proof is None or proof.version != newest.version or not proof.agrees:
            return newest
        return proof.model_copy(update={"at": newest.at, "latency_seconds": newest.latency_seconds})

    def _failed(self, outcome: Outcome, now: datetime, backoff: Backoff, events: EventLog) -> None:
        action, error = outcome.action, outcome.error
        assert error is not None
        self.facts = None
        self.load_overdue = isinstance(action, Load) and isinstance(error, TritonTimeoutError)
        if isinstance(action, Load) and self.ours is not None and self.ours.gpus != outcome.gpus:
            self.ours = None  # the same digest may be there on other GPUs now, or not
        if isinstance(action, Prove):
            self.watch.asked_at = time.monotonic()
        if isinstance(error, NotLeaderError):
            return
        if isinstance(error, TritonUnavailableError):
            self.record = self.record.held(now=now, backoff=backoff)
            return
        match action:
            case Stage(target=target) | Load(target=target) | Prove(target=target):
                final = isinstance(error, (InvalidInputError, NotFoundError))
                self.record = self.record.after_failure(target, str(error), final=final, now=now, backoff=backoff)
            case Unload() | CleanUp() | Wait():
                self.record = self.record.held(now=now, backoff=backoff)
        events.add("Warning", f"{type(action).__name__}Failed", self.model, f"on {self.server}: {error}")
