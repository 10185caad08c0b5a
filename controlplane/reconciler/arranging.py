"""Gives out memory after everything that happened: holds, grants, evictions, refusals, demands."""

from collections.abc import Callable
from datetime import datetime

from controlplane.domain.states import Phase
from controlplane.memory.leaks import LeakStep
from controlplane.reconciler.actions import Wait
from controlplane.reconciler.background import Background
from controlplane.reconciler.driving import Driver
from controlplane.reconciler.fleet import KnownServer
from controlplane.reconciler.holding import Holds
from controlplane.reconciler.record import Backoff
from controlplane.reconciler.state import LoopState
from controlplane.reconciler.status import Doing
from controlplane.reconciler.units import Unit


class Arranger:
    """Lets the stewards decide, and has done what they say.

    Args:
        state: What the loop knows.
        driver: Takes next steps.
        background: Restarts servers.
        holds: The client leases.
        backoff: How long a refused load waits.
        leading: Whether this process may change anything.
    """

    def __init__(
        self,
        state: LoopState,
        driver: Driver,
        background: Background,
        holds: Holds,
        backoff: Backoff,
        *,
        leading: Callable[[], bool],
    ) -> None:
        self._state = state
        self._driver = driver
        self._background = background
        self._holds = holds
        self._backoff = backoff
        self._leading = leading

    def arrange_all(self) -> None:
        """Give out memory, now that something may have changed."""
        now = self._state.clock()
        held = self._holds.until(now)
        for server in self._state.servers.values():
            server.steward.hold({model: end for model, end in held.items() if model in self._state.wishes}, now)
            for model in self._state.judge(server):
                self._driver.drive(server, server.unit(model))
            if server.trouble is None and self._leading():
                self._arrange(server, now)

    def guard(self, server: KnownServer) -> None:
        """Drain and restart a server that has lost too much memory. The leader's alone."""
        now, embedded = self._state.clock(), server.managed.embedded
        if not self._leading():
            server.guard.call_off(now)
            return
        busy = [unit.model for unit in server.units.values() if unit.task is not None]
        moving = [model for model, place in server.places.items() if place.here and not place.seat and place.why]
        step = server.guard.look(self._holds.active(now), busy, moving, self._state.events, now)
        if step is LeakStep.RESTART and embedded is not None:
            self._background.spawn(embedded.restart(), f"restart {server.name}")
        elif step is LeakStep.RESUME:
            self._driver.drive_all(server)

    def demanded(self, model: str) -> None:
        """Somebody wants to use a model now."""
        wish = self._state.wishes.get(model)
        if wish is None:
            return
        for server in self._state.servers.values():
            if not server.has_place(model):
                continue
            unit = server.unit(model)
            server.steward.demand(model, self._state.clock())
            waits = server.steward.tenant(model).demanded_at is not None
            if waits and unit.task is None and not wish.problem:
                unit.record = unit.record.wanted_anew(wish.wanted)
            self._state.judge(server)
            self._driver.drive(server, unit)

    def _arrange(self, server: KnownServer, now: datetime) -> None:
        moves = server.steward.queue.arrange(server.units, now)
        for model, why in moves.refused:
            self._refused(server, server.unit(model), why, now)
        for model, why in moves.untried:
            self._untried(server, server.unit(model), why, now)
        for record in moves.evicted:
            self._state.events.add("Normal", "Evicted", record.victim, f"from {server.name}: {record.why}")
            self._driver.drive(server, server.unit(record.victim))
        for model in moves.go:
            unit = server.unit(model)
            self._driver.drive(server, unit)
            if unit.task is None:
                server.steward.queue.withdraw(model)  # it wants something else by now
        for model in moves.waiting:
            unit, request = server.unit(model), server.steward.tenant(model).request
            if unit.task is None and request is not None:
                unit.doing = Doing(Wait(f"waits for memory: {request.why}"), Phase.PENDING)

    def _refused(self, server: KnownServer, unit: Unit, why: str, now: datetime) -> None:
        wish = self._state.wishes.get(unit.model)
        if wish is not None:
            unit.record = unit.record.after_failure(wish.wanted, why, final=False, now=now, backoff=self._backoff)
            self._state.events.add("Warning", "LoadRefused", unit.model, f"on {unit.server}: {why}")
            self._state.judge(server)
            self._driver.drive(server, unit)

    def _untried(self, server: KnownServer, unit: Unit, why: str, now: datetime) -> None:
        """There is no room for a rollout's new version beside the old one, which goes on as it is."""
        wish = self._state.wishes.get(unit.model)
        if wish is not None and wish.trial is not None:
            unit.record = unit.record.after_failure(wish.trial, why, final=True, now=now, backoff=self._backoff)
            self._state.events.add("Warning", "TrialRefused", unit.model, f"on {unit.server}: {why}")
            self._driver.drive(server, unit)
