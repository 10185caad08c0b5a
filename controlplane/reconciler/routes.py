"""Routes of models: the servers on which the active version is proved."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane.lifecycle.actions import Unload
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import ProofStatus
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.server_state import TrackedServer


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for a model can be sent.

    Attributes:
        servers: Names of the servers on which the active version is proved, sorted.
        version: The active version there; None while the servers differ.
        sequence_idle_seconds: After how long without a request a sequence ends; None without sequence batching.
    """

    servers: tuple[str, ...]
    version: int | None = None
    sequence_idle_seconds: float | None = None


def answers(unit: Replica) -> bool:
    """Return whether the active version of a model is proved here, or is being proved with a proof on record.

    A model that is being unloaded does not answer.
    """
    if unit.facts is None or unit.stale_since is not None:
        return False
    if unit.doing is not None and isinstance(unit.doing.action, Unload) and not unit.doing.action.candidate:
        return False
    answering = max(unit.facts.loaded, default=None)
    if answering is None:
        return False
    mark = unit.record.marks.get(answering)
    return mark is ProofStatus.PASSED or (mark is None and answering == unit.vouched)


def route_of(units: Iterable[Replica]) -> Route | None:
    """Return the route of a model; None if it can be reached nowhere.

    Args:
        units: The model's replicas on available servers.
    """
    found = {unit.server: max(unit.facts.loaded) for unit in units if unit.facts is not None and answers(unit)}
    if not found:
        return None
    versions = set(found.values())
    return Route(tuple(sorted(found)), versions.pop() if len(versions) == 1 else None)


class RouteTable:
    """Current routes of all models. Belongs to the loop.

    Args:
        state: The loop's state.

    Attributes:
        routes: Routes by model, without unreachable models. A new mapping with each change.
        changed: Set when the routes change. A new event each time: take it before the routes.
    """

    def __init__(self, state: LoopState) -> None:
        self._state = state
        self._touched = state.follow()
        self._health: dict[str, tuple[bool, bool]] = {}
        self.routes: Mapping[str, Route] = {}
        self.changed = asyncio.Event()

    def server_changed(self, server: TrackedServer) -> None:
        """Update whether a server may receive requests."""
        health = _health(server)
        if self._health.get(server.name) != health:
            self._health[server.name] = health
            self._touched |= server.present

    def follow(self) -> None:
        """Apply the changes."""
        changes = {model: self.route(model) for model in self._touched}
        self._touched.clear()
        changes = {model: route for model, route in changes.items() if self.routes.get(model) != route}
        if changes:
            self.routes = {model: one for model, one in {**self.routes, **changes}.items() if one is not None}
            self.changed.set()
            self.changed = asyncio.Event()

    def route(self, model: str) -> Route | None:
        """Return the present route of a model; None if it can be reached nowhere."""
        if model not in self._state.desired_state:
            return None
        # A drained server still serves models that no other server can, until shortly before its restart.
        well, drained = [], []
        for server in self._state.servers.values():
            unit = server.units.get(model)
            if unit is not None and unit.facts is not None and unit.facts.loaded:
                is_well, is_drained = _health(server)
                well.extend([unit] if is_well else [])
                drained.extend([unit] if is_drained else [])
        route = route_of(well) or route_of(drained)
        idle = self._state.desired_state[model].sequence_idle_seconds
        return replace(route, sequence_idle_seconds=idle) if route is not None and idle is not None else route


def _health(server: TrackedServer) -> tuple[bool, bool]:
    return server.trouble is None, not server.away and server.guard.answers
