"""Applies holds, load requests, and the decisions about pending loads: grants, evictions, refusals."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.states import Phase
from controlplane.lifecycle.actions import Wait
from controlplane.lifecycle.history import Backoff
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.status import Doing
from controlplane.memory.load_queue import QueueDecisions
from controlplane.memory.policy.leaks import LeakStep
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.model_holds import HoldCache
from controlplane.reconciler.server_state import TrackedServer
from controlplane.reconciler.tasks import TaskRunner


@dataclass
class Admissions:
    """Result of the decisions about pending loads.

    Attributes:
        granted: Models whose load may begin, with their servers.
        evicted: How many models are evicted.
        refused: How many loads were refused.
        waiting: How many loads keep waiting.
    """

    granted: list[tuple[TrackedServer, str]] = field(default_factory=list)
    evicted: int = 0
    refused: int = 0
    waiting: int = 0


class LoadScheduler:
    """Lets the servers' memory schedulers decide, and applies their decisions.

    Args:
        state: The loop's state.
        background: Restarts servers.
        holds: The holds.
        backoff: Pause after a refused load.
        leading: Whether this process may change anything.
    """

    def __init__(
        self,
        state: LoopState,
        background: TaskRunner,
        holds: HoldCache,
        backoff: Backoff,
        *,
        leading: Callable[[], bool],
    ) -> None:
        self._state = state
        self._background = background
        self._holds = holds
        self._backoff = backoff
        self._leading = leading
        self._held: dict[str, datetime] = {}

    def hold(self) -> None:
        """Apply the present holds of clients."""
        now = self._state.clock()
        held = {model: end for model, end in self._holds.until(now).items() if model in self._state.desired_state}
        if held == self._held:
            return
        self._held = held
        for server in self._state.servers.values():
            server.scheduler.hold(held, now)

    def admit(self) -> Admissions:
        """Decide about the pending loads on every server, and apply the decisions."""
        found = Admissions()
        if self._leading():
            now = self._state.clock()
            for server in self._state.servers.values():
                if server.trouble is None:
                    self._apply(server, server.scheduler.queue.schedule(server.units, now), found, now)
        return found

    def withdraw_unused(self, granted: Iterable[tuple[TrackedServer, str]]) -> None:
        """Release memory that was granted to a load which did not begin because the model now needs another action."""
        for server, model in granted:
            if server.unit(model).task is None:
                server.scheduler.queue.withdraw(model)

    def guard(self, server: TrackedServer) -> None:
        """Drain and restart a server that has leaked too much memory. Only the leader acts."""
        now, embedded = self._state.clock(), server.managed.embedded
        if not self._leading():
            server.guard.call_off(now)
            return
        busy = [model for model in server.present if server.units[model].task is not None]
        # Models that stay until they answer elsewhere are loaded here.
        places = ((model, server.places.get(model)) for model in server.present)
        moving = [model for model, place in places if place and place.here and not place.assignment and place.why]
        step = server.guard.look(self._holds.active(now), busy, moving, self._state.events, now)
        if step is LeakStep.RESTART and embedded is not None:
            self._background.spawn(embedded.restart(), f"restart {server.name}")
        elif step is LeakStep.RESUME:
            self._state.plan_all_again(server)

    def demanded(self, model: str) -> None:
        """Apply a load request."""
        desired_deployment = self._state.desired_state.get(model)
        if desired_deployment is None:
            return
        for server in self._state.servers.values():
            if not server.has_place(model):
                continue
            unit = server.unit(model)
            server.scheduler.demand(model, self._state.clock())
            waits = server.scheduler.model_state(model).demand.since is not None
            if waits and unit.task is None and not desired_deployment.problem:
                unit.record = unit.record.wanted_again(desired_deployment.wanted)
            self._state.plan_again(server, model)

    def _apply(self, server: TrackedServer, moves: QueueDecisions, found: Admissions, now: datetime) -> None:
        for model, why in moves.refused:
            self._refused(server, server.unit(model), why, now)
        for model, why in moves.untried:
            self._untried(server, server.unit(model), why, now)
        for record in moves.evicted:
            self._state.events.add("Normal", "Evicted", record.victim, f"from {server.name}: {record.why}")
            self._state.plan_again(server, record.victim)
        for model in moves.go:
            self._state.plan_again(server, model)
        for model in moves.waiting:
            unit, request = server.unit(model), server.scheduler.model_state(model).ticket.request
            if unit.task is None and request is not None:
                doing = Doing(Wait(f"waits for memory: {request.why}"), Phase.PENDING)
                if doing != unit.doing:
                    unit.doing = doing
                    self._state.touch((model,), moves=False)
        found.granted.extend((server, model) for model in moves.go)
        found.evicted += len(moves.evicted)
        found.refused += len(moves.refused) + len(moves.untried)
        found.waiting += len(moves.waiting)

    def _refused(self, server: TrackedServer, unit: Replica, why: str, now: datetime) -> None:
        desired_deployment = self._state.desired_state.get(unit.model)
        if desired_deployment is not None:
            unit.record = unit.record.after_failure(
                desired_deployment.wanted, why, final=False, now=now, backoff=self._backoff
            )
            self._state.events.add("Warning", "LoadRefused", unit.model, f"on {unit.server}: {why}")
            self._state.plan_again(server, unit.model)

    def _untried(self, server: TrackedServer, unit: Replica, why: str, now: datetime) -> None:
        """Record that memory is insufficient for a rollout's new version; the active version is not affected."""
        desired_deployment = self._state.desired_state.get(unit.model)
        if desired_deployment is not None and desired_deployment.trial is not None:
            unit.record = unit.record.after_failure(
                desired_deployment.trial, why, final=True, now=now, backoff=self._backoff
            )
            self._state.events.add("Warning", "CandidateRejected", unit.model, f"on {unit.server}: {why}")
            self._state.plan_again(server, unit.model)
