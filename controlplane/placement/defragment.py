"""Defragmentation: moves that are worth their cost. Pure.

A plan never moves a replica only for a better layout, so over time memory is shared on one server while another has
room, replicas that could be apart are in the same zone, and free memory is in many small gaps. A defragmentation is
requested explicitly. Moves are made in this order, each only if its gain exceeds its cost:

1. *Relief*: from a device with more assigned than fits at once, into a gap. Gain: the seconds of loading that sharing
   would cost in the next hour (the share that does not fit, times the model's uses); cost: one load.
2. *Spread*: a replica from a zone that has another one of the same model, into a gap of a zone that has none. The gain
   is that both do not fail together, and always counts as worth a load.
3. *Consolidation*: everything on one device, into gaps of devices that are in use, if that increases the largest gap of
   its kind by at least a tenth. Gain: the bytes by which it grows; cost: the loads, at least `WORTH_BYTES_PER_SECOND`
   for each second of loading.

Every move is make-before-break: the replica is loaded and proved at its new place before the old one is unloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.domain.units import size_text
from controlplane.placement.capacity import CapacityIndex
from controlplane.placement.fit import Fitter
from controlplane.placement.types import NO_HINTS, UNLIMITED, Assignment, Hints, Plan, Pool, Server, Workload

WORTH_BYTES_PER_SECOND = 64 * 1024 * 1024
_GREATER = 1.1
_HOUR_SECONDS = 3600.0
_ROUNDS = 64


@dataclass(frozen=True, slots=True)
class Move:
    """A move of one replica to another server, or to other devices of the same server.

    Attributes:
        model: The model.
        source: Its assignment before.
        target: Its assignment after.
        seconds: Expected duration of the load there, including the fetch if the files are not cached.
        why: The gain, as one sentence.
    """

    model: str
    source: Assignment
    target: Assignment
    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Defragmentation:
    """Result of a defragmentation.

    Attributes:
        plan: The plan after it.
        moves: In the order in which they are made.
        largest_before: The largest gap before, by kind of device.
        largest_after: The largest gap after.
        shared_before: Bytes assigned beyond what fits at once, over all devices.
        shared_after: The same after.
    """

    plan: Plan
    moves: tuple[Move, ...]
    largest_before: Mapping[str, int]
    largest_after: Mapping[str, int]
    shared_before: int
    shared_after: int

    @property
    def seconds(self) -> float:
        """Total seconds of loading of all moves."""
        return sum(move.seconds for move in self.moves)


def defragment(made: Plan, hints: Hints = NO_HINTS, *, limit: int = 100) -> Defragmentation:
    """Return the moves that are worth their cost. The given plan is not changed.

    Args:
        made: The current plan.
        hints: Where files are cached, and how models are used.
        limit: The maximum number of moves.
    """
    work = _Work(made, hints, limit)
    work.relieve()
    work.spread()
    work.consolidate()
    after = Plan(made.servers, made.workloads, work.board.assignments, made.unplaced, work.board.server_usage)
    before = CapacityIndex(made, made.servers)
    return Defragmentation(
        after, tuple(work.moves), _largest(before), _largest(work.board), _shared(before), _shared(work.board)
    )


class _Work:
    def __init__(self, made: Plan, hints: Hints, limit: int) -> None:
        self.made, self.hints, self.limit = made, hints, limit
        self.board = CapacityIndex(made, made.servers)
        # Where a replica is loaded now is no reason to place it there: that is what is to change.
        self.finder = Fitter(self.board, Hints(cached=hints.cached))
        self.moves: list[Move] = []
        self.moved: set[str] = set()

    def relieve(self) -> None:
        for server, pool in self._devices():
            over = -self.board.gap(server.name, pool)
            if over <= 0:
                continue
            soft = self.board.server_usage[server.name].soft.get(pool.name, 0)
            here = self._on(server.name, pool.name)
            here.sort(key=lambda one: (-self.hints.rates.get(one[0].model, 0.0), one[0].model))
            for workload, assignment in here:
                if over <= 0:
                    break
                uses = self.hints.rates.get(workload.model, 0.0) * _HOUR_SECONDS
                gain, cost = workload.load_seconds * uses * min(over / soft, 1.0), self._seconds(workload, "")
                if assignment.guaranteed or gain <= cost:
                    continue
                why = (
                    f"the assignments of {server.name} {pool.name} exceed its memory by {size_text(over)}; the move "
                    f"saves about {gain:.0f} s of loading per hour"
                )
                if self._move(workload, assignment, why):
                    over -= assignment.bytes

    def spread(self) -> None:
        for model in sorted(self.board.assignments):
            assignments = self.board.assignments[model]
            if len(assignments) < 2:
                continue
            zones = [self.made.servers[assignment.server].zone for assignment in assignments]
            for assignment, zone in list(zip(assignments, zones, strict=True)):
                if zones.count(zone) < 2 or len(set(zones)) == len(self.board.zones):
                    continue
                crowded = frozenset(name for name, server in self.made.servers.items() if server.zone in zones)
                workload = self.made.workloads[model]
                if self._move(workload, assignment, f"two replicas are in zone {zone}", avoid=crowded):
                    zones.remove(zone)
                    zones.append(self.made.servers[self.moves[-1].target.server].zone)

    def consolidate(self) -> None:
        tried: set[tuple[str, str]] = set()
        for _ in range(_ROUNDS):
            largest = _largest(self.board)
            found = [
                (self._used(server.name, pool.name), server.name, pool.name, server, pool)
                for server, pool in self._devices()
                if (server.name, pool.name) not in tried
                and self._on(server.name, pool.name)
                and pool.bytes > largest.get(pool.kind, 0) * _GREATER
            ]
            if not found:
                return
            _, _, _, server, pool = min(found, key=lambda one: one[:3])
            tried.add((server.name, pool.name))
            self._empty(server, pool, largest[pool.kind])

    def _empty(self, server: Server, pool: Pool, largest: int) -> None:
        """Move everything on a device, or nothing."""
        here = sorted(self._on(server.name, pool.name), key=lambda one: (-one[1].bytes, one[0].model))
        seconds = sum(self._seconds(workload, "") for workload, _ in here)
        gain = pool.bytes - largest
        if gain < seconds * WORTH_BYTES_PER_SECOND or len(self.moves) + len(here) > self.limit:
            return
        empty = frozenset(name for name in self.made.servers if not self.board.server_usage.get(name))
        why = f"the largest gap grows by {size_text(gain)}, to all {size_text(pool.bytes)} of {server.name} {pool.name}"
        before = len(self.moves)
        for workload, assignment in here:
            if not self._move(workload, assignment, why, avoid=empty | {server.name}):
                while len(self.moves) > before:
                    self._undo(self.moves.pop())
                return

    def _move(
        self, workload: Workload, assignment: Assignment, why: str, *, avoid: frozenset[str] = frozenset()
    ) -> bool:
        if len(self.moves) >= self.limit or workload.model in self.moved or assignment.waits:
            return False
        target = self.finder.find(workload, fitting=True, avoid=avoid | {assignment.server})
        if target is None:
            return False
        self.board.give_back(workload.model, assignment)
        self.board.take(workload.model, target)
        self.moves.append(Move(workload.model, assignment, target, self._seconds(workload, target.server), why))
        self.moved.add(workload.model)
        return True

    def _undo(self, move: Move) -> None:
        self.board.give_back(move.model, move.target)
        self.board.take(move.model, move.source)
        self.moved.discard(move.model)

    def _seconds(self, workload: Workload, server: str) -> float:
        cached = server in self.hints.cached.get(workload.model, frozenset())
        return workload.load_seconds + (0.0 if cached else workload.fetch_seconds)

    def _on(self, server: str, device: str) -> list[tuple[Workload, Assignment]]:
        room = self.board.server_usage.get(server)
        return [
            (self.made.workloads[model], assignment)
            for model in sorted(room.models if room else ())
            for assignment in self.board.assignments[model]
            if assignment.server == server and device in assignment.devices
        ]

    def _used(self, server: str, device: str) -> int:
        room = self.board.server_usage.get(server)
        return room.guaranteed.get(device, 0) + room.soft.get(device, 0) if room else 0

    def _devices(self) -> list[tuple[Server, Pool]]:
        return [
            (server, pool)
            for _, server in sorted(self.made.servers.items())
            if not server.closed
            for pool in server.pools
            if pool.bytes < UNLIMITED >> 1
        ]


def _largest(board: CapacityIndex) -> dict[str, int]:
    """Return the largest gap of each kind of device that has a budget."""
    found: dict[str, int] = {}
    for name, server in board.servers.items():
        for pool in server.pools if not server.closed else ():
            if pool.bytes < UNLIMITED >> 1:
                found[pool.kind] = max(found.get(pool.kind, 0), board.gap(name, pool))
    return found


def _shared(board: CapacityIndex) -> int:
    return sum(max(-board.gap(name, pool), 0) for name, server in board.servers.items() for pool in server.pools)
