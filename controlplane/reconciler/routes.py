"""Where a model can be asked: on the servers where the version that answers is proved."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controlplane.lifecycle.actions import Unload
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import ProofStatus
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.server_state import TrackedServer


@dataclass(frozen=True, slots=True)
class Route:
    """Where a model can be asked.

    Attributes:
        servers: Names of the servers on which the version that answers is proved, sorted.
        version: Which version answers there; None while the servers differ.
    """

    servers: tuple[str, ...]
    version: int | None = None


def answers(unit: Replica) -> bool:
    """Whether a model's own name is answered here by a version that is proved, and that is not about to go."""
    if unit.facts is None or unit.stale_since is not None:
        return False
    if unit.doing is not None and isinstance(unit.doing.action, Unload) and not unit.doing.action.candidate:
        return False
    answering = max(unit.facts.loaded, default=None)
    return answering is not None and unit.record.marks.get(answering) is ProofStatus.PASSED


def route_of(units: Iterable[Replica]) -> Route | None:
    """Return where a model can be asked; None where nowhere.

    Args:
        units: The model on the servers that answer.
    """
    found = {unit.server: max(unit.facts.loaded) for unit in units if unit.facts is not None and answers(unit)}
    if not found:
        return None
    versions = set(found.values())
    return Route(tuple(sorted(found)), versions.pop() if len(versions) == 1 else None)


class RouteTable:
    """Where every model can be asked, kept up to date with what changes. Belongs to the loop.

    Args:
        state: What the loop knows.

    Attributes:
        routes: By model; what can be asked nowhere is left out. A new mapping with each change.
        changed: Is set when the routes change. A new event each time: take it before the routes.
    """

    def __init__(self, state: LoopState) -> None:
        self._state = state
        self._touched = state.follow()
        self._health: dict[str, tuple[bool, bool]] = {}
        self.routes: Mapping[str, Route] = {}
        self.changed = asyncio.Event()

    def server_changed(self, server: TrackedServer) -> None:
        """Take in whether a server may be asked."""
        health = _health(server)
        if self._health.get(server.name) != health:
            self._health[server.name] = health
            self._touched |= server.present

    def follow(self) -> None:
        """Take in what changed."""
        changes = {model: self.route(model) for model in self._touched}
        self._touched.clear()
        changes = {model: route for model, route in changes.items() if self.routes.get(model) != route}
        if changes:
            self.routes = {model: one for model, one in {**self.routes, **changes}.items() if one is not None}
            self.changed.set()
            self.changed = asyncio.Event()

    def route(self, model: str) -> Route | None:
        """Return where a model can be asked now; None where nowhere."""
        if model not in self._state.desired_state:
            return None
        # A server that is drained goes on with what can be asked nowhere else, until it is about to be restarted.
        well, drained = [], []
        for server in self._state.servers.values():
            unit = server.units.get(model)
            if unit is not None and unit.facts is not None and unit.facts.loaded:
                is_well, is_drained = _health(server)
                well.extend([unit] if is_well else [])
                drained.extend([unit] if is_drained else [])
        return route_of(well) or route_of(drained)


def _health(server: TrackedServer) -> tuple[bool, bool]:
    return server.trouble is None, not server.away and server.guard.answers
