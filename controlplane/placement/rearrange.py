"""Finds places for guaranteed replicas by rearranging the existing ones: depth-first and bounded. Pure.

Packing replicas of different sizes is bin packing, so no fast rule finds every arrangement. The search is complete up
to `STEPS` steps over at most `SERVERS` servers: within these bounds it fails only if no arrangement exists. It tries
the current place of a replica first, so that few replicas move.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from controlplane.placement.capacity import CapacityIndex, replica_devices
from controlplane.placement.types import Assignment, Pool, Server, Workload

STEPS = 20_000
SERVERS = 32
_CHOICES = 64
"""Maximum number of GPU combinations of one server that are tried for one replica."""


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """New places of guaranteed replicas.

    Attributes:
        assignments: All assignments of each affected model, including the additional one.
        out: Models of lower priority that must be placed again.
    """

    assignments: Mapping[str, tuple[Assignment, ...]]
    out: frozenset[str] = frozenset()


@dataclass
class _Search:
    board: CapacityIndex
    servers: list[Server]
    server_usage: dict[tuple[str, str], int]
    assignments: dict[str, list[Assignment]] = field(default_factory=dict)
    steps: int = 0


def rearrange(board: CapacityIndex, workload: Workload, workloads: Mapping[str, Workload]) -> Rearrangement | None:
    """Find places for one more replica of a guaranteed workload and for all guaranteed replicas that it displaces.

    Models of the same or a higher priority keep their number of replicas. If that is impossible, models of lower
    priority are left out and must be placed again.

    Args:
        board: The plan in progress.
        workload: The model without a place.
        workloads: All workloads.

    Returns:
        The rearrangement; None if there is none, or if the bounds were reached.
    """
    servers = _reach(board, workload, workloads)
    guaranteed = _guaranteed_models(board, servers, workloads) - {workload.model}
    lower = frozenset(model for model in guaranteed if workloads[model].priority < workload.priority)
    for out in (frozenset(), lower) if lower else (frozenset(),):
        found = _solve(board, servers, workload, [workloads[model] for model in sorted(guaranteed - out)], out)
        if found is not None:
            return Rearrangement({model: tuple(assignments) for model, assignments in found.items()}, out)
    return None


def _reach(board: CapacityIndex, workload: Workload, workloads: Mapping[str, Workload]) -> list[Server]:
    """Return the relevant servers: where the workload may run, and where displaced models may run."""
    reached: dict[str, Server] = {}
    frontier = [workload]
    known = {workload.model}
    while frontier and len(reached) < SERVERS:
        one = frontier.pop(0)
        for name in sorted(board.servers):
            server = board.servers[name]
            if name in reached or server.closed or not board.allowed(one, server):
                continue
            reached[name] = server
            if len(reached) >= SERVERS:
                break
            room = board.server_usage.get(name)
            for model in sorted(room.models) if room else ():
                other = workloads.get(model)
                if other is not None and other.guaranteed and model not in known:
                    known.add(model)
                    frontier.append(other)
    return list(reached.values())


def _guaranteed_models(board: CapacityIndex, servers: list[Server], workloads: Mapping[str, Workload]) -> set[str]:
    found = set()
    for server in servers:
        room = board.server_usage.get(server.name)
        for model in room.models if room else ():
            if model in workloads and any(assignment.guaranteed for assignment in board.assignments.get(model, ())):
                found.add(model)
    return found


def _solve(
    board: CapacityIndex, servers: list[Server], more: Workload, others: list[Workload], out: frozenset[str]
) -> dict[str, list[Assignment]] | None:
    names = {server.name for server in servers}
    search = _Search(
        board, servers, {(s.name, pool.name): board.guaranteed_gap(s.name, pool) for s in servers for pool in s.pools}
    )
    items: list[tuple[Workload, Assignment | None]] = []
    for workload in (more, *others):
        here = [
            assignment
            for assignment in board.assignments.get(workload.model, ())
            if assignment.server in names and assignment.guaranteed
        ]
        away = [
            assignment
            for assignment in board.assignments.get(workload.model, ())
            if assignment.server not in names or not assignment.guaranteed
        ]
        search.assignments[workload.model] = away
        items.extend((workload, assignment) for assignment in here)
    items.append((more, None))
    touched = {workload.model for workload, _ in items}
    for model in touched | out:
        for assignment in board.assignments.get(model, ()):
            if assignment.server in names and assignment.guaranteed:
                for device in assignment.devices:
                    search.server_usage[assignment.server, device] += assignment.bytes
    # Large and constrained ones first: they fail early.
    items.sort(key=lambda item: (-item[0].largest * _width(item[0]), item[0].model, item[1] is None))
    if not _place(search, items, 0):
        return None
    return {model: search.assignments[model] for model in touched}


def _width(workload: Workload) -> int:
    return len(workload.gpus) or workload.gpu_count or 1


def _place(search: _Search, items: list[tuple[Workload, Assignment | None]], at: int) -> bool:
    if at == len(items):
        return True
    workload, present = items[at]
    taken = search.assignments[workload.model]
    for server, pools in _choices(search, workload, present):
        search.steps += 1
        if search.steps > STEPS:
            return False
        need = workload.bytes[pools[0].kind]
        names = tuple(pool.name for pool in pools)
        if present is not None and (server.name, names) == (present.server, present.devices):
            why = present.why
        else:
            why = "guaranteed replicas were rearranged so that all of them fit"
        taken.append(Assignment(server.name, names, need, True, why))
        for pool in pools:
            search.server_usage[server.name, pool.name] -= need
        if _place(search, items, at + 1):
            return True
        for pool in pools:
            search.server_usage[server.name, pool.name] += need
        taken.pop()
    return False


def _choices(
    search: _Search, workload: Workload, present: Assignment | None
) -> Iterator[tuple[Server, tuple[Pool, ...]]]:
    """Yield places for a replica: the current one first, then the smallest sufficient free memory."""
    taken = {assignment.server for assignment in search.assignments[workload.model]}
    found = []
    for server in search.servers:
        if server.name in taken or not search.board.allowed(workload, server):
            continue
        pools = search.board.pools_for(workload, server)
        need = workload.bytes[pools[0].kind]
        fitting = [pool for pool in pools if search.server_usage[server.name, pool.name] >= need]
        count = replica_devices(workload, pools)
        for number, chosen in enumerate(combinations(fitting, count)):
            if number >= _CHOICES:
                break
            names = tuple(pool.name for pool in chosen)
            here = present is not None and (server.name, names) == (present.server, present.devices)
            room = min(search.server_usage[server.name, pool.name] for pool in chosen)
            found.append((not here, room, server.name, names, server, chosen))
    found.sort(key=lambda one: one[:4])
    for _, _, _, _, server, chosen in found:
        yield server, chosen
