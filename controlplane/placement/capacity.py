"""Mutable working copy of a plan while the next one is made: adds and removes assignments, and finds gaps.

Gaps are kept in sorted lists, one for each zone and kind of device, which are created on first use and updated by
bisection. So finding the smallest gap that is large enough takes logarithmic time, not a scan of all devices.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.placement.types import CPU, GPU, UNLIMITED, Assignment, Plan, Pool, Server, ServerUsage, Workload

CPU_ALONE = "cpu alone"
"""Hosts of servers without a GPU."""
_FEW = 64
"""Up to this many servers that match a selector are scanned one by one."""

Entry = tuple[int, str, str]
"""Unassigned bytes (negative if the device is shared), server, device."""


@dataclass(frozen=True, slots=True)
class _Usage:
    """A `ServerUsage` of the plan in progress, whose values change in place: a server may have thousands of models."""

    guaranteed: dict[str, int]
    soft: dict[str, int]
    models: set[str]


class CapacityIndex:
    """A plan in progress.

    Args:
        before: The previous plan.
        servers: The current servers.
    """

    def __init__(self, before: Plan, servers: Mapping[str, Server]) -> None:
        self.servers = servers
        self.assignments: dict[str, tuple[Assignment, ...]] = dict(before.assignments)
        self.server_usage: dict[str, ServerUsage] = dict(before.server_usage)
        self._own: dict[str, _Usage] = {}
        self.grown: set[str] = set()
        """Servers whose guaranteed assignments have grown."""
        self._pools = {name: {pool.name: pool for pool in server.pools} for name, server in servers.items()}
        self._zones: tuple[str, ...] = tuple(sorted({server.zone for server in servers.values()}))
        self._gaps: dict[tuple[str, str], list[Entry]] = {}
        self._indexed: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._matching: dict[tuple[tuple[str, str], ...], tuple[str, ...] | None] = {}

    # Assignments

    def take(self, model: str, assignment: Assignment) -> None:
        """Add an assignment."""
        self.assignments[model] = (*self.assignments.get(model, ()), assignment)
        self._change(model, assignment, +1)
        if assignment.guaranteed:
            self.grown.add(assignment.server)

    def give_back(self, model: str, assignment: Assignment) -> None:
        """Remove an assignment."""
        left = tuple(other for other in self.assignments[model] if other is not assignment)
        if left:
            self.assignments[model] = left
        else:
            del self.assignments[model]
        self._change(model, assignment, -1)

    def _change(self, model: str, assignment: Assignment, sign: int) -> None:
        room = self._own_usage(assignment.server)
        changed = room.guaranteed if assignment.guaranteed else room.soft
        for device in assignment.devices:
            self._unlist(assignment.server, device)
            changed[device] = changed.get(device, 0) + sign * assignment.bytes
            if not changed[device]:
                del changed[device]
            self._list(assignment.server, device)
        (room.models.add if sign > 0 else room.models.discard)(model)

    def _own_usage(self, server: str) -> "_Usage":
        """Return what is assigned to a server, as a copy that may change."""
        room = self._own.get(server)
        if room is None:
            before = self.server_usage.get(server, ServerUsage())
            room = self._own[server] = _Usage(dict(before.guaranteed), dict(before.soft), set(before.models))
            self.server_usage[server] = ServerUsage(room.guaranteed, room.soft, room.models)
        return room

    # Gaps

    def gap(self, server: str, pool: Pool) -> int:
        """Return the unassigned bytes of a device; negative if more is assigned than fits at once."""
        room = self.server_usage.get(server)
        if room is None:
            return pool.bytes
        return pool.bytes - room.guaranteed.get(pool.name, 0) - room.soft.get(pool.name, 0)

    def guaranteed_gap(self, server: str, pool: Pool) -> int:
        """Return the bytes of a device without guaranteed assignments: the most that a replica there can get."""
        room = self.server_usage.get(server)
        return pool.bytes if room is None else pool.bytes - room.guaranteed.get(pool.name, 0)

    # Eligibility

    def matching(self, selector: tuple[tuple[str, str], ...]) -> tuple[str, ...] | None:
        """Return the servers with these labels, sorted; None for all servers."""
        if not selector:
            return None
        if selector not in self._matching:
            self._matching[selector] = tuple(
                sorted(
                    name
                    for name, server in self.servers.items()
                    if all(server.labels.get(key) == value for key, value in selector)
                )
            )
        return self._matching[selector]

    @staticmethod
    def labelled(workload: Workload, server: Server) -> bool:
        """Return whether a server has the labels that a workload requires."""
        return all(server.labels.get(key) == value for key, value in workload.selector)

    def allowed(self, workload: Workload, server: Server) -> bool:
        """Return whether a server has the labels and the kind of device that a workload requires."""
        return self.labelled(workload, server) and bool(self.pools_for(workload, server))

    @staticmethod
    def pools_for(workload: Workload, server: Server) -> list[Pool]:
        """Return the devices of a server that a workload may use; empty if it cannot run there."""
        if server.name in workload.cannot:
            return []
        if GPU in workload.bytes and (server.has_gpu or CPU not in workload.bytes):
            pools = [pool for pool in server.pools if pool.gpu is not None and suits(workload, pool)]
            if not all(pool.numbered for pool in pools) and not _takes_all(workload, server, pools):
                return []
            if workload.gpus:
                return pools if len(pools) == len(workload.gpus) else []
            return pools if len(pools) >= (workload.gpu_count or 1) else []
        return [pool for pool in server.pools if pool.gpu is None] if CPU in workload.bytes else []

    def choose(self, workload: Workload, server: Server, *, fitting: bool) -> tuple[tuple[Pool, ...], int] | None:
        """Choose the devices of a replica on a server.

        Args:
            workload: The model.
            server: The server.
            fitting: Whether the replica must fit into gaps: the smallest that are large enough. Otherwise the devices
                with the largest gaps are chosen among those where guaranteed assignments leave enough memory.

        Returns:
            The devices and the smallest gap among them; None if the replica cannot be placed there.
        """
        pools = self.pools_for(workload, server)
        if not pools:
            return None
        need = workload.bytes[pools[0].kind]
        room = self.gap if fitting else self.guaranteed_gap
        able = [(self.gap(server.name, pool), pool.name, pool) for pool in pools if room(server.name, pool) >= need]
        count = replica_devices(workload, pools)
        if len(able) < count:
            return None
        able.sort(key=lambda one: one[:2], reverse=not fitting)
        return tuple(pool for _, _, pool in able[:count]), min(gap for gap, _, _ in able[:count])

    # Candidates

    def candidates(
        self, workload: Workload, zone: str, *, fitting: bool, preferred: Iterable[str] = ()
    ) -> Iterator[Server]:
        """Yield servers of a zone that may suit a workload, preferred ones first, then the best first.

        Args:
            workload: The model.
            zone: The zone.
            fitting: Whether the replica must fit into a gap: the smallest gap first. Otherwise the largest first.
            preferred: Servers to try in any case.
        """
        seen = set()
        for name in preferred:
            server = self.servers.get(name)
            if server is not None and server.zone == zone and name not in seen:
                seen.add(name)
                yield server
        few = self.matching(workload.selector)
        if not self.best_first(workload):
            for name in few if few is not None else sorted(self.servers):
                if self.servers[name].zone == zone and name not in seen:
                    yield self.servers[name]
            return
        for kind in self._kinds(workload):
            need = workload.bytes[GPU if kind == GPU else CPU]
            gaps = self._gaps_of(kind, zone)
            for _, name, device in _in_order(gaps, need if fitting else None):
                if name in seen or not suits(workload, self._pools[name][device]):
                    continue
                seen.add(name)
                yield self.servers[name]

    def best_first(self, workload: Workload) -> bool:
        """Return whether `candidates` come best first, so that the first non-preferred one is the best of its zone."""
        few = self.matching(workload.selector)
        single = not workload.gpus and (GPU not in workload.bytes or workload.gpu_count == 1)
        return single and (few is None or len(few) > _FEW)

    @property
    def zones(self) -> tuple[str, ...]:
        """All zones, sorted."""
        return self._zones

    def _kinds(self, workload: Workload) -> tuple[str, ...]:
        if GPU not in workload.bytes:
            return (CPU,)
        return (GPU, CPU_ALONE) if CPU in workload.bytes else (GPU,)

    def _gaps_of(self, kind: str, zone: str) -> list[Entry]:
        found = self._gaps.get((kind, zone))
        if found is None:
            found = []
            for name, server in self.servers.items():
                if server.zone != zone or server.closed or (kind == CPU_ALONE and server.has_gpu):
                    continue
                for pool in server.pools:
                    if (pool.gpu is not None) == (kind == GPU):
                        found.append((self.gap(name, pool), name, pool.name))
                        self._indexed.setdefault((name, pool.name), []).append((kind, zone))
            found.sort()
            self._gaps[kind, zone] = found
        return found

    def _unlist(self, server: str, device: str) -> None:
        for key in self._indexed.get((server, device), ()):
            gaps = self._gaps[key]
            del gaps[bisect_left(gaps, (self.gap(server, self._pools[server][device]), server, device))]

    def _list(self, server: str, device: str) -> None:
        for key in self._indexed.get((server, device), ()):
            insort(self._gaps[key], (self.gap(server, self._pools[server][device]), server, device))


def replica_devices(workload: Workload, pools: Sequence[Pool]) -> int:
    """Return how many of the usable devices of a server each replica takes."""
    if workload.gpus or workload.gpu_count is None or pools[0].gpu is None:
        return len(pools)
    return workload.gpu_count


def _takes_all(workload: Workload, server: Server, pools: Sequence[Pool]) -> bool:
    """Return whether a replica takes all GPUs of a server, so that Triton needs no GPU numbers."""
    count = sum(pool.gpu is not None for pool in server.pools)
    return not workload.gpus and len(pools) == count and workload.gpu_count in (None, count)


def suits(workload: Workload, pool: Pool) -> bool:
    """Return whether a device matches a workload's GPU selectors."""
    if pool.gpu is None:
        return not workload.gpus and CPU in workload.bytes
    if workload.gpus and pool.gpu not in workload.gpus:
        return False
    if (pool.total_bytes or pool.bytes) < workload.gpu_min_bytes or GPU not in workload.bytes:
        return False
    return not workload.gpu_product or workload.gpu_product.casefold() in pool.product.casefold()


def _in_order(gaps: list[Entry], need: int | None) -> Iterator[Entry]:
    """Yield gaps of at least ``need``: smallest first, then unlimited ones, emptiest first; else all, largest first."""
    if need is None:
        yield from reversed(gaps)
        return
    start, limited = bisect_left(gaps, (need, "", "")), bisect_left(gaps, (UNLIMITED >> 1, "", ""))
    yield from gaps[start:limited]
    yield from reversed(gaps[max(start, limited) :])
