"""One model on one server: what is remembered, what is in flight, what an outcome means. Mutable; the loop's own."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.states import Phase, ServerDeploymentStatus
from controlplane.errors import InvalidInputError, NotFoundError, TritonUnavailableError
from controlplane.reconciler.actions import CleanUp, Load, Prove, Stage, Unload, Wait
from controlplane.reconciler.events import EventLog
from controlplane.reconciler.executor import NotLeaderError, Outcome
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.record import Backoff, ModelRecord
from controlplane.reconciler.status import Doing, Trouble, View, server_status
from controlplane.reconciler.types import DesiredModel, Mark
from controlplane.reconciler.wishes import Wish

LATE_PROBES = 3
"""So many probes in a row without an answer in time, and a version that was healthy counts as broken."""


@dataclass
class Unit:
    """One model on one server.

    Attributes:
        server: The server's name.
        model: The model's name.
        facts: What is there, as seen or as known from our own actions; None until somebody looked.
        record: What is remembered.
        task: The action in flight.
        doing: The same for display; also set while waiting for Triton.
        changed: Number of the loop's step that last changed something; looks that began before do not count.
        note: Something about the newest rollout that a person should know.
        seconds: Time by stage of the newest rollout.
        proved_at: Monotonic time of the newest proof.
        told: The phase that was last told in an event.
        late: Probes in a row that got no answer in time.
    """

    server: str
    model: str
    facts: Facts | None = None
    record: ModelRecord = field(default_factory=ModelRecord)
    task: "asyncio.Task[None] | None" = None
    doing: Doing | None = None
    changed: int = 0
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    proved_at: float = 0.0
    told: Phase | None = None
    late: int = 0

    def adopt(self, wish: Wish, now: datetime, backoff: Backoff) -> None:
        """Something else is wanted."""
        self.record = self.record.wanted_anew(wish.wanted)
        if wish.trial is not None:
            self.record = self.record.wanted_anew(wish.trial)
        self.note, self.seconds = "", {}
        if wish.problem:
            self.record = self.record.after_failure(wish.wanted, wish.problem, final=True, now=now, backoff=backoff)

    def see(self, facts: Facts) -> None:
        """A look showed this."""
        before = self.facts
        changed = before is not None and bool(before.loaded) and before.digest != facts.digest
        self.facts = facts
        self.record = self.record.seen(facts.loaded, digest_changed=changed, candidate=facts.candidate is not None)

    def lost(self) -> None:
        """The server was not there, or started anew."""
        self.facts = None
        self.record = self.record.server_lost()

    def status(self, desired: DesiredModel, trouble: Trouble | None, now: datetime) -> ServerDeploymentStatus:
        """Return how the deployment stands here."""
        if self.facts is None and trouble is None:
            trouble = Trouble(f"{self.server} is being looked at")
        observed = (self.facts or Facts()).with_record(self.record)
        view = View(self.server, desired, observed, self.record, self.doing, trouble, self.note, dict(self.seconds))
        return server_status(view, now)

    def announce(self, desired: DesiredModel, trouble: Trouble | None, now: datetime, events: EventLog) -> None:
        """Tell in an event that it settled in another phase than was told last."""
        status = self.status(desired, trouble, now)
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

    def _succeeded(self, outcome: Outcome, now: datetime, backoff: Backoff, events: EventLog) -> None:
        action, before = outcome.action, self.facts
        assert before is not None
        self.record = self.record.released()
        self.facts = before.after(action)
        match action:
            case Load(candidate=False, versions=versions, target=target):
                self.record = self.record.after_load(action, before=before.loaded, digest=before.digest, now=now)
                took = outcome.seconds.get("load", 0.0) + outcome.seconds.get("switch", 0.0)
                if max(versions) != max(before.loaded, default=None):
                    events.add(
                        "Normal",
                        "Switched",
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
            case Prove(target=target, candidate=candidate):
                assert outcome.mark is not None
                assert outcome.proof is not None
                was = self.record.marks.get(target.version)
                mark = outcome.mark
                if mark is Mark.LATE:
                    self.late += 1
                    if was is Mark.PASSED and not candidate and self.late < LATE_PROBES:
                        # Most likely it is busy, and to load it again would make that worse.
                        events.add("Warning", "Slow", self.model, f"on {self.server}: {outcome.proof.message}")
                        return
                    mark = Mark.BROKEN
                self.late = 0
                self.record = self.record.after_proof(
                    target, mark, outcome.proof, candidate=candidate, now=now, backoff=backoff
                )
                if mark is not Mark.PASSED:
                    reason = "ProofFailed" if mark is Mark.WRONG else "Unhealthy"
                    what = f"version {target.version} on {self.server}: {outcome.proof.message}"
                    events.add("Warning", reason, self.model, what)
                elif was is not Mark.PASSED:
                    where = " as a candidate" if candidate else ""
                    events.add(
                        "Normal",
                        "Proved",
                        self.model,
                        f"version {target.version} answers {outcome.proof.samples} golden samples as recorded "
                        f"on {self.server}{where}",
                    )
            case Unload(candidate=False):
                events.add("Normal", "Unloaded", self.model, f"unloaded from {self.server}: {action.because}")

    def _failed(self, outcome: Outcome, now: datetime, backoff: Backoff, events: EventLog) -> None:
        action, error = outcome.action, outcome.error
        assert error is not None
        self.facts = None
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
