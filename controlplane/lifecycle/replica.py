"""Mutable state of one model on one server: history, action in flight, and effects of outcomes. Belongs to the loop."""

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
"""A version that was healthy counts as broken after this many consecutive probes without an answer in time."""


@dataclass(slots=True)
class Replica:
    """One model on one server.

    Attributes:
        server: The server's name.
        model: The model's name.
        facts: The observed state, from snapshots or our own actions; None if unknown.
        baseline_observation: Observation after our last action or the last reported external change, used to detect
            external changes; None if it cannot be known who caused the present state. It is kept when `facts` is lost.
        applied_config: The newest configuration that the control plane sent, as Triton reports it.
        record: The history.
        task: The action in flight.
        doing: The action in flight, for display; also set while waiting for Triton.
        began: When the newest action began, in seconds since the machine started.
        changed: Number of the loop step that last changed something; earlier snapshots do not count.
        seen: Number of the step in which the newest applied snapshot began.
        note: A remark about the newest rollout for a person.
        seconds: Time by stage of the newest rollout.
        reported_phase: The phase that was last reported in an event.
        probe_timeouts: Consecutive probes without an answer in time.
        watch: Probe state.
        load_overdue: Whether our load exceeded its deadline; Triton may still be executing it.
        conditions: The newest conditions with their transition times.
        pending_qualification: Target that was proved while a request waited for it, and is to be qualified now that it
            is active.
        settled: Whether `conditions` were computed while no action was in flight.
        resumed: Whether `conditions` were compared with those from before this process started.
        stale_since: Number of the step in which this process noticed that it had been stopped; None if the state has
            been observed since then and the deployment has settled.
        wakes_at: When its next action is planned again although nothing changed (UTC); None for never.
        vouched: The version that was loaded before its proof here, because the same content has passed it.
    """

    server: str
    model: str
    facts: ReplicaObservation | None = None
    baseline_observation: ReplicaObservation | None = None
    applied_config: AppliedConfig | None = None
    record: ReplicaHistory = field(default_factory=ReplicaHistory)
    task: "asyncio.Task[None] | None" = None
    doing: Doing | None = None
    began: float = 0.0
    changed: int = 0
    seen: int = -1
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    reported_phase: Phase | None = None
    probe_timeouts: int = 0
    watch: ProbeTracker = field(default_factory=ProbeTracker)
    load_overdue: bool = False
    conditions: tuple[Condition, ...] = ()
    pending_qualification: Target | None = None
    settled: bool = False
    resumed: bool = False
    stale_since: int | None = None
    wakes_at: datetime | None = None
    vouched: int | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is loaded and no action is in flight, so that only a change can cause an action."""
        if self.task is not None or self.doing is not None or self.stale_since is not None or self.facts is None:
            return False
        facts = self.facts
        return not (
            facts.loaded or facts.candidate is not None or facts.loading or facts.leaving or facts.candidate_leaving
        )

    @property
    def engaged(self) -> bool:
        """Whether an action is in flight that must not be disturbed; a qualification is none."""
        action = self.doing.action if self.doing is not None else None
        return self.task is not None and not (isinstance(action, Prove) and action.examine)

    def adopt(self, desired_deployment: DesiredDeployment, now: datetime, backoff: Backoff) -> None:
        """Apply a new desired state."""
        self.record = self.record.wanted_again(desired_deployment.wanted)
        if desired_deployment.trial is not None:
            self.record = self.record.wanted_again(desired_deployment.trial)
        self.note, self.seconds = "", {}
        if desired_deployment.problem:
            self.record = self.record.after_failure(
                desired_deployment.wanted, desired_deployment.problem, final=True, now=now, backoff=backoff
            )

    def see(self, facts: ReplicaObservation) -> None:
        """Apply an observation."""
        before = self.facts or self.baseline_observation
        changed = before is not None and bool(before.loaded) and (before.differs(facts) or facts.externally_modified)
        if changed:
            self.watch.loaded(since_boot())  # another client loaded it again: the old processes exit
            self.vouched = None
        self.facts = facts
        self.record = self.record.seen(facts.loaded, digest_changed=changed, candidate=facts.candidate is not None)

    def lost(self, *, restarted: bool) -> None:
        """Drop the observed state because the server was unavailable.

        Args:
            restarted: Whether it restarted, or may have.
        """
        self.facts = None
        self.vouched = None
        if restarted:
            self.baseline_observation = None
        self.record = self.record.server_lost()
        self.watch.loaded()

    def watched(self, reading: ServerReading, began: int) -> bool:
        """Apply what a server reading that began at the loop's step ``began`` shows of the active version.

        Returns:
            Whether there is an alarm: a real request failed, or a process is missing.
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
        """Return whether to probe the active, proved version now."""
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
        """Return when its next action may differ although nothing changed; None for never.

        Args:
            desired: The desired state.
            now: The present time (UTC).
            interval_seconds: Time between probes.
            poll_seconds: Time after which an action that is already due is checked again.
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
        """Return the status of the deployment on this server."""
        if self.facts is None and trouble is None:
            trouble = Trouble(f"{self.server} is being observed")
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
        """Record an event if it settled in a new phase, and keep the transition times of its conditions."""
        status = self.status(desired, trouble, now)
        self.conditions = status.conditions
        self.settled = status.phase.settled and trouble is None and self.facts is not None
        if status.phase is self.reported_phase:
            return
        self.reported_phase = status.phase
        if status.phase.settled:
            bad = status.phase in {Phase.FAILED, Phase.DEGRADED}
            message = f"on {self.server}: {status.message}"
            events.add("Warning" if bad else "Normal", status.phase.value, self.model, message)

    def settle(self, outcome: Outcome, *, now: datetime, backoff: Backoff, events: EventLog) -> None:
        """Apply the outcome of an action. After a failure the state is unknown until the next snapshot."""
        for stage, seconds in outcome.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if outcome.error is None and self.facts is not None:
            self._succeeded(outcome, now, backoff, events)
        elif outcome.error is not None:
            self._failed(outcome, now, backoff, events)
        undone = isinstance(outcome.error, (LoadRefusedError, NotLeaderError))  # the state is unchanged
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
                self.vouched = target.version if action.on_record else None
                self.watch.loaded(self.began)
                told = outcome.fingerprint
                self.applied_config = (
                    AppliedConfig(frozenset(versions), target.digest, told, outcome.gpus) if told else None
                )
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
                        f"version {dropped[-1]} was not kept loaded, because it needs another configuration; a "
                        "rollback to it loads it again"
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
            mark, proof = ProofStatus.UNRESPONSIVE, gone(self.watch.missing, now, target.version)
        clock = time.monotonic()
        if not candidate:
            self.watch.asked(proof, mark, light=action.light, requests=outcome.requests, now=clock)
        if outcome.peer_requests:
            self.watch.compared(outcome.peer_requests)
        if mark is ProofStatus.TIMED_OUT:
            self.probe_timeouts += 1
            if was is ProofStatus.PASSED and not candidate and self.probe_timeouts < LATE_PROBES:
                # It is most likely busy, and a reload would make that worse.
                events.add("Warning", "ProbeTimedOut", self.model, f"on {self.server}: {proof.message}")
                return
            mark = ProofStatus.UNRESPONSIVE
        self.probe_timeouts = 0
        if action.light and mark is ProofStatus.PASSED and was is ProofStatus.PASSED:
            proof = self._refreshed(proof)
        self.record = self.record.after_proof(target, mark, proof, candidate=candidate, now=now, backoff=backoff)
        if mark is not ProofStatus.PASSED:
            if was is ProofStatus.PASSED and not candidate:
                self.watch.broke(clock)
            reason = {ProofStatus.MISMATCH: "ProofFailed", ProofStatus.REGRESSED: "Regressed"}.get(mark, "Unhealthy")
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
        if mark is ProofStatus.UNRESPONSIVE and not candidate:
            self.facts = None  # it may have been unloaded: a snapshot is needed before it is loaded again

    def _refreshed(self, newest: Proof) -> Proof:
        """Return the kept proof of all samples with the time and latency of a passed probe of one sample."""
        proof = self.record.proof
        if proof is None or proof.version != newest.version or not proof.agrees:
            return newest
        return proof.model_copy(update={"at": newest.at, "latency_seconds": newest.latency_seconds})

    def _failed(self, outcome: Outcome, now: datetime, backoff: Backoff, events: EventLog) -> None:
        action, error = outcome.action, outcome.error
        assert error is not None
        self.facts = None
        self.load_overdue = isinstance(action, Load) and isinstance(error, TritonTimeoutError)
        if isinstance(action, Load) and self.applied_config is not None and self.applied_config.gpus != outcome.gpus:
            self.applied_config = None  # the same digest may or may not be loaded on other GPUs now
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
