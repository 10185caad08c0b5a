"""Finds the place for one replica: the server, the devices, and the reason."""

from collections.abc import Mapping

from controlplane.domain.units import size_text
from controlplane.placement.capacity import CapacityIndex, replica_devices, suits
from controlplane.placement.types import UNLIMITED, Assignment, Hints, Pool, Server, Workload


class Fitter:
    """Finds places in a plan in progress.

    Args:
        board: The plan in progress.
        hints: Where models are loaded and cached.
    """

    def __init__(self, board: CapacityIndex, hints: Hints) -> None:
        self.board = board
        self.servers = board.servers
        self.hints = hints

    def find(self, workload: Workload, *, fitting: bool, avoid: frozenset[str] = frozenset()) -> Assignment | None:
        """Find the best place for one more replica.

        Args:
            workload: The model.
            fitting: Whether it must fit into a gap; otherwise it goes where most is free beside guaranteed assignments.
            avoid: Excluded servers.
        """
        board, model = self.board, workload.model
        taken = {assignment.server for assignment in board.assignments.get(model, ())}
        crowd: dict[str, int] = {}
        for name in taken:
            crowd[self.servers[name].zone] = crowd.get(self.servers[name].zone, 0) + 1
        loaded = self.hints.loaded.get(model, {})
        cached = self.hints.cached.get(model, frozenset())
        warm = sorted({*loaded, *cached})
        best: tuple[tuple[object, ...], Server, tuple[Pool, ...], int, int] | None = None
        for zone in board.zones:
            for server in board.candidates(workload, zone, fitting=fitting, preferred=warm):
                if (
                    server.name in taken
                    or server.name in avoid
                    or server.closed
                    or not board.labelled(workload, server)
                ):
                    continue
                chosen = self._devices(workload, server, loaded.get(server.name), fitting=fitting)
                if chosen is None:
                    continue
                pools, gap = chosen
                heat = 0 if server.name in loaded else 1 if server.name in cached else 2
                rank = _leftover(pools, gap, workload, fitting=fitting)
                key = (pools[0].gpu is None, crowd.get(zone, 0), heat, rank, server.name)
                if best is None or key < best[0]:
                    best = (key, server, pools, gap, heat)
                if heat == 2 and board.best_first(workload):
                    break
        if best is None:
            return None
        _, server, pools, gap, heat = best
        why = self._reason(workload, server, pools, gap, heat, len(taken), crowd, fitting=fitting)
        names = tuple(pool.name for pool in pools)
        return Assignment(server.name, names, workload.bytes[pools[0].kind], workload.guaranteed, why)

    def stays(self, workload: Workload, assignment: Assignment, *, drained: bool = False) -> Assignment | None:
        """Return an assignment updated to the current state; None if it may not stay.

        Args:
            workload: The model.
            assignment: The assignment.
            drained: Whether it may stay on a draining server because no other fits.
        """
        server = self.servers.get(assignment.server)
        if server is None or server.trouble or not self.board.allowed(workload, server):
            return None
        if server.drained and not drained:
            return None
        pools = {pool.name: pool for pool in self.board.pools_for(workload, server)}
        if any(device not in pools for device in assignment.devices):
            return None
        if len(assignment.devices) != replica_devices(workload, list(pools.values())):
            return None
        need = workload.bytes[pools[assignment.devices[0]].kind]
        if any(self.board.guaranteed_gap(assignment.server, pools[device]) < need for device in assignment.devices):
            return None
        if need == assignment.bytes and workload.guaranteed == assignment.guaranteed and not assignment.waits:
            return assignment
        why = f"{server.name} answers again" if assignment.waits else assignment.why
        return Assignment(assignment.server, assignment.devices, need, workload.guaranteed, why)

    def _devices(
        self, workload: Workload, server: Server, loaded: tuple[str, ...] | None, *, fitting: bool
    ) -> tuple[tuple[Pool, ...], int] | None:
        """Choose devices on a server: those where the model is loaded, if they suit."""
        board = self.board
        if loaded is not None:
            pools = {pool.name: pool for pool in board.pools_for(workload, server)}
            assignment = Assignment(server.name, loaded, 0)
            if loaded and all(device in pools for device in loaded) and self.stays(workload, assignment) is not None:
                chosen = tuple(pools[device] for device in loaded)
                gap = min(board.gap(server.name, pool) for pool in chosen)
                if not fitting or gap >= workload.bytes[chosen[0].kind]:
                    return chosen, gap
        return board.choose(workload, server, fitting=fitting)

    def _reason(
        self,
        workload: Workload,
        server: Server,
        pools: tuple[Pool, ...],
        gap: int,
        heat: int,
        others: int,
        crowd: Mapping[str, int],
        *,
        fitting: bool,
    ) -> str:
        need = workload.bytes[pools[0].kind]
        where = ", ".join(pool.name for pool in pools)
        parts = [_which(workload, server, pools)] if pools[0].gpu is not None else []
        parts = [part for part in parts if part]
        if len(self.servers) == 1 and (not parts or workload.gpus):
            return "; ".join(["the only server", *parts])
        if heat < 2:
            parts.append("it is loaded there" if heat == 0 else "its files are there")
        if others and server.zone and not crowd.get(server.zone):
            parts.append(f"none of its replicas is in zone {server.zone} yet")
        if gap >= UNLIMITED >> 1:
            parts.append("the budget there is unknown")
        elif fitting:
            parts.append(f"it fits into {size_text(gap)} on {where}, and leaves {size_text(gap - need)}")
        else:
            parts.append(f"no device has {size_text(need)} free; it shares {where}, which has the most free memory")
        return "; ".join(parts)


def _which(workload: Workload, server: Server, pools: tuple[Pool, ...]) -> str:
    """Return which of a server's GPUs a replica takes, and what was requested; empty if it takes all of them."""
    gpus = [pool for pool in server.pools if pool.gpu is not None]
    if len(pools) == len(gpus):
        return ""
    where = ", ".join(pool.name for pool in pools)
    if workload.gpus:
        return f"on {where}, as requested"
    able = sum(suits(workload, pool) for pool in gpus)
    asked = [f"of product {workload.gpu_product!r}"] if workload.gpu_product else []
    asked += [f"with at least {size_text(workload.gpu_min_bytes)}"] if workload.gpu_min_bytes else []
    of = f"{able} GPUs {' and '.join(asked)} ({len(gpus)} in all)" if asked else f"{len(gpus)} GPUs"
    return f"on {where}, {len(pools)} of {of}"


def _leftover(pools: tuple[Pool, ...], gap: int, workload: Workload, *, fitting: bool) -> int:
    """Return the tie-breaker among otherwise equal places; smaller is better."""
    if not fitting or gap >= UNLIMITED >> 1:
        return (UNLIMITED << 1) - gap
    return gap - workload.bytes[pools[0].kind]
