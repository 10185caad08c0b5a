"""Finds places for firm copies by rearranging the firm ones there are: depth-first, with bounds. Pure.

Packing copies of different sizes is bin packing, so no quick rule finds every arrangement. The search here is complete
up to `STEPS` steps over at most `SERVERS` servers: within these bounds it fails only where no arrangement exists.
Places where a copy sits already come first, so that little is moved.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from controlplane.memory.placement.board import Board, copies_devices
from controlplane.memory.placement.types import Pool, Seat, Server, Workload

STEPS = 20_000
SERVERS = 32
_CHOICES = 64
"""Sets of GPUs of one server that are tried at most for one copy."""


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """Where firm copies shall sit.

    Attributes:
        seats: All seats of each model that is touched, the one more included.
        out: Models of lower priority that have to be placed anew.
    """

    seats: Mapping[str, tuple[Seat, ...]]
    out: frozenset[str] = frozenset()


@dataclass
class _Search:
    board: Board
    servers: list[Server]
    rooms: dict[tuple[str, str], int]
    seats: dict[str, list[Seat]] = field(default_factory=dict)
    steps: int = 0


def rearrange(board: Board, workload: Workload, workloads: Mapping[str, Workload]) -> Rearrangement | None:
    """Find places for one more copy of a firm workload and for all firm copies it would disturb.

    Models of the same or a higher priority keep as many copies as they have. If that cannot be, those of lower priority
    are left out, and have to be placed anew.

    Args:
        board: The plan in the making.
        workload: Whose copy has no place.
        workloads: All workloads.

    Returns:
        None where there is none, or the bounds were reached.
    """
    servers = _reach(board, workload, workloads)
    firm = _firm_models(board, servers, workloads) - {workload.model}
    lower = frozenset(model for model in firm if workloads[model].priority < workload.priority)
    for out in (frozenset(), lower) if lower else (frozenset(),):
        found = _solve(board, servers, workload, [workloads[model] for model in sorted(firm - out)], out)
        if found is not None:
            return Rearrangement({model: tuple(seats) for model, seats in found.items()}, out)
    return None


def _reach(board: Board, workload: Workload, workloads: Mapping[str, Workload]) -> list[Server]:
    """Servers that could matter: where it may sit, and where those may sit that it would push out."""
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
            room = board.rooms.get(name)
            for model in sorted(room.models) if room else ():
                other = workloads.get(model)
                if other is not None and other.firm and model not in known:
                    known.add(model)
                    frontier.append(other)
    return list(reached.values())


def _firm_models(board: Board, servers: list[Server], workloads: Mapping[str, Workload]) -> set[str]:
    found = set()
    for server in servers:
        room = board.rooms.get(server.name)
        for model in room.models if room else ():
            if model in workloads and any(seat.firm for seat in board.seats.get(model, ())):
                found.add(model)
    return found


def _solve(
    board: Board, servers: list[Server], more: Workload, others: list[Workload], out: frozenset[str]
) -> dict[str, list[Seat]] | None:
    names = {server.name for server in servers}
    search = _Search(
        board, servers, {(s.name, pool.name): board.firm_gap(s.name, pool) for s in servers for pool in s.pools}
    )
    items: list[tuple[Workload, Seat | None]] = []
    for workload in (more, *others):
        here = [seat for seat in board.seats.get(workload.model, ()) if seat.server in names and seat.firm]
        away = [seat for seat in board.seats.get(workload.model, ()) if seat.server not in names or not seat.firm]
        search.seats[workload.model] = away
        items.extend((workload, seat) for seat in here)
    items.append((more, None))
    touched = {workload.model for workload, _ in items}
    for model in touched | out:
        for seat in board.seats.get(model, ()):
            if seat.server in names and seat.firm:
                for device in seat.devices:
                    search.rooms[seat.server, device] += seat.bytes
    # Large and picky ones first: they fail early.
    items.sort(key=lambda item: (-item[0].largest * _width(item[0]), item[0].model, item[1] is None))
    if not _place(search, items, 0):
        return None
    return {model: search.seats[model] for model in touched}


def _width(workload: Workload) -> int:
    return len(workload.gpus) or workload.gpu_count or 1


def _place(search: _Search, items: list[tuple[Workload, Seat | None]], at: int) -> bool:
    if at == len(items):
        return True
    workload, present = items[at]
    taken = search.seats[workload.model]
    for server, pools in _choices(search, workload, present):
        search.steps += 1
        if search.steps > STEPS:
            return False
        need = workload.bytes[pools[0].kind]
        names = tuple(pool.name for pool in pools)
        if present is not None and (server.name, names) == (present.server, present.devices):
            why = present.why
        else:
            why = "firm copies were rearranged, so that all have room"
        taken.append(Seat(server.name, names, need, True, why))
        for pool in pools:
            search.rooms[server.name, pool.name] -= need
        if _place(search, items, at + 1):
            return True
        for pool in pools:
            search.rooms[server.name, pool.name] += need
        taken.pop()
    return False


def _choices(search: _Search, workload: Workload, present: Seat | None) -> Iterator[tuple[Server, tuple[Pool, ...]]]:
    """Places for a copy: where it sits first, then the smallest room that is large enough; of equal ones only one."""
    taken = {seat.server for seat in search.seats[workload.model]}
    found = []
    for server in search.servers:
        if server.name in taken or not search.board.allowed(workload, server):
            continue
        pools = search.board.pools_for(workload, server)
        need = workload.bytes[pools[0].kind]
        fitting = [pool for pool in pools if search.rooms[server.name, pool.name] >= need]
        count = copies_devices(workload, pools)
        for number, chosen in enumerate(combinations(fitting, count)):
            if number >= _CHOICES:
                break
            names = tuple(pool.name for pool in chosen)
            here = present is not None and (server.name, names) == (present.server, present.devices)
            room = min(search.rooms[server.name, pool.name] for pool in chosen)
            found.append((not here, room, server.name, names, server, chosen))
    found.sort(key=lambda one: one[:4])
    for _, _, _, _, server, chosen in found:
        yield server, chosen
