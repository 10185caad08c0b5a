"""Makes the next plan from the previous one and from what has changed.

The rules, in order:

1. Assignments that may not stay are dropped: models that were removed, and servers that were removed, are in trouble,
   cannot load the model, or lack the required labels, devices or memory. Everything else stays: a plan never moves a
   replica only for a better layout (`defragment` weighs gains and costs). Replicas on a draining server move; `Vacate`
   says which of them stay if no other server has a gap (3), memory to share (4) or room after a rearrangement (5).
   Replicas on a cordoned server stay.
2. Guaranteed workloads are placed before others, higher priorities before lower ones, larger before smaller.
3. Each replica is placed by these criteria, in this order: where it fits into a gap; on a GPU, if it can use one; in
   the zone with the fewest of its replicas; where it is loaded, else where its files are cached; in the smallest gap
   that is large enough, so that large gaps remain (best fit).
4. If no gap is large enough, the minimum number of replicas is placed nevertheless, where most is free: guaranteed ones
   on memory that others share, the others on memory without guaranteed assignments. Replicas beyond the minimum go only
   into gaps.
5. If no server has memory for a guaranteed replica beside the other guaranteed ones, they are rearranged (`rearrange`),
   and lower priorities give way.
6. For a replica that cannot be placed, the plan states the reason. If all servers that could run it are in trouble, the
   replica is assigned to one of them and waits.

Pure and deterministic: the same arguments give the same plan.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from operator import is_
from typing import TypeVar

from controlplane.domain.units import size_text
from controlplane.placement.capacity import CapacityIndex
from controlplane.placement.fit import Fitter
from controlplane.placement.rearrange import rearrange
from controlplane.placement.types import GPU, NO_HINTS, Assignment, Hints, Plan, Server, ServerUsage, Vacate, Workload

_T = TypeVar("_T")


def plan(
    before: Plan, servers: Mapping[str, Server], workloads: Mapping[str, Workload], hints: Hints = NO_HINTS
) -> Plan:
    """Return the next plan, or the previous one itself if nothing changed.

    A value that is the same object as in the previous plan counts as unchanged without a comparison, so the cost is
    proportional to the changes if the caller reuses its values.

    Args:
        before: The previous plan; `NO_PLAN` at first.
        servers: The current servers, by name.
        workloads: The current workloads, by model.
        hints: Where models are loaded and cached.
    """
    changed = _changed(before.workloads, workloads)
    moved = _changed(before.servers, servers)
    if not changed and not moved:
        return before
    return _Planner(before, servers, workloads, hints).run(changed, moved)


def _changed(before: Mapping[str, _T], now: Mapping[str, _T]) -> set[str]:
    """Return the names of changed values. Each value contains its name, so the same objects have the same names."""
    if before is now or (len(before) == len(now) and all(map(is_, before.values(), now.values()))):
        return set()
    get = before.get
    found = {name for name, one in now.items() if get(name) is not one and get(name) != one}
    if len(now) < len(before) + len(found):
        found.update(before.keys() - now.keys())
    return found


def order(workload: Workload) -> tuple[bool, int, int, str]:
    """Return the sort key that determines which workload is placed first."""
    return (not workload.guaranteed, -workload.priority, -workload.largest, workload.model)


class _Planner:
    def __init__(
        self, before: Plan, servers: Mapping[str, Server], workloads: Mapping[str, Workload], hints: Hints
    ) -> None:
        self.before, self.servers, self.workloads, self.hints = before, servers, workloads, hints
        self.board = CapacityIndex(before, servers)
        self.finder = Fitter(self.board, hints)
        self.unplaced = dict(before.unplaced)
        self.aside: dict[str, tuple[Assignment, ...]] = {}
        """Dropped assignments, by model."""

    def run(self, changed: set[str], moved: set[str]) -> Plan:
        dirty = set(changed)
        for name in moved:
            dirty |= self._disturbed(name)
        if moved or any(model in self.before.assignments for model in changed):
            dirty |= self.unplaced.keys()  # memory may have become free
        if any(self._is_opened(name) for name in moved):
            dirty |= self._short()
        while dirty:
            self._settle(dirty)
            dirty = self._squeezed()
        server_usage = {
            name: room for name, room in self.board.server_usage.items() if name in self.servers and room.models
        }
        return Plan(self.servers, self.workloads, self.board.assignments, self.unplaced, server_usage)

    def _disturbed(self, name: str) -> Set[str]:
        """Return the models on a changed server that may not be able to stay.

        If only budgets changed, these are the ones that do not fit any more: a reading of the devices must not cost
        time for each of thousands of models that stay.
        """
        usage = self.before.server_usage.get(name)
        if usage is None:
            return frozenset()
        before, now = self.before.servers.get(name), self.servers.get(name)
        if before is None or now is None or not before.differs_in_room_alone(now):
            return usage.models
        gaps = {pool.name: self.board.guaranteed_gap(name, pool) for pool in now.pools}
        return {
            model
            for model in usage.models
            for assignment in self.before.assignments[model]
            if assignment.server == name
            and any(gaps[device] < (0 if assignment.guaranteed else assignment.bytes) for device in assignment.devices)
        }

    def _is_opened(self, name: str) -> bool:
        """Return whether a server takes replicas now and did not before, or has more room."""
        before, now = self.before.servers.get(name), self.servers.get(name)
        if now is None or now.closed:
            return False
        if before is None or before.closed or not before.differs_in_room_alone(now):
            return True
        return any(one.bytes < other.bytes for one, other in zip(before.pools, now.pools, strict=True))

    def _short(self) -> set[str]:
        """Return the models with fewer replicas than desired; those beyond the minimum had no gap."""
        assignments = self.before.assignments
        return {
            model
            for model, workload in self.workloads.items()
            if workload.replicas > 1 and len(assignments.get(model, ())) < workload.replicas
        }

    def _settle(self, dirty: set[str]) -> None:
        """Drop the assignments of some models and place them again, in the same place if they may stay."""
        held: dict[str, tuple[Assignment, ...]] = {}
        for model in dirty:
            held[model] = self.board.assignments.get(model, ()) or self._found(model)
            for assignment in self.board.assignments.get(model, ()):
                self.board.give_back(model, assignment)
            self.unplaced.pop(model, None)
            if model not in self.workloads:
                self.aside.pop(model, None)
        todo = sorted((self.workloads[model] for model in dirty if model in self.workloads), key=order)
        for workload in todo:
            self._keep(workload, held[workload.model])
        for workload in todo:
            self._place(workload)
        for workload in todo:
            self._place_more(workload)

    def _found(self, model: str) -> tuple[Assignment, ...]:
        """Return assignments for a model that is new to the plan but already loaded."""
        workload = self.workloads.get(model)
        found = []
        for name, devices in sorted(self.hints.loaded.get(model, {}).items()) if workload else ():
            server = self.servers.get(name)
            if server is None or workload is None:
                continue
            chosen = None if devices else self.board.choose(workload, server, fitting=False)
            names = devices or (tuple(pool.name for pool in chosen[0]) if chosen else ())
            if names:
                found.append(Assignment(name, names, 0, why="it is loaded there"))
        return tuple(found)

    def _keep(self, workload: Workload, held: Sequence[Assignment]) -> None:
        """Restore the assignments that may stay; if there are more than desired, the best ones."""
        kept: list[Assignment] = []
        lost: list[Assignment] = []
        for assignment in held:
            stays = self.finder.stays(workload, assignment)
            (lost if stays is None else kept).append(assignment if stays is None else stays)
        if len(kept) > workload.replicas:
            kept = self._best(workload, kept)[: workload.replicas]
        for assignment in kept:
            if self.finder.stays(workload, assignment) is None:
                lost.append(assignment)
            else:
                self.board.take(workload.model, assignment)
        self.aside[workload.model] = tuple(lost)

    def _best(self, workload: Workload, assignments: Iterable[Assignment]) -> list[Assignment]:
        """Sort assignments by their value: loaded ones in different zones first."""
        loaded = self.hints.loaded.get(workload.model, {})
        ranked = sorted(assignments, key=lambda assignment: (assignment.server not in loaded, assignment.server))
        first: list[Assignment] = []
        rest: list[Assignment] = []
        zones: set[str] = set()
        for assignment in ranked:
            zone = self.servers[assignment.server].zone
            (rest if zone in zones else first).append(assignment)
            zones.add(zone)
        return first + rest

    def _place(self, workload: Workload) -> None:
        """Place the minimum number of replicas, on shared memory if necessary."""
        model = workload.model
        while len(self.board.assignments.get(model, ())) < min(workload.min_replicas, workload.replicas):
            assignment = (
                self.finder.find(workload, fitting=True)
                or self._back(workload, Vacate.GAPS)
                or self.finder.find(workload, fitting=False)
            )
            if assignment is not None:
                self.board.take(model, assignment)
            elif not self._make_room(workload):
                self._leave_unplaced(workload)
                return

    def _place_more(self, workload: Workload) -> None:
        """Place replicas beyond the minimum, only into gaps."""
        if workload.model in self.unplaced:
            return
        while len(self.board.assignments.get(workload.model, ())) < workload.replicas:
            assignment = self.finder.find(workload, fitting=True) or self._back(workload, Vacate.GAPS)
            if assignment is None:
                return
            self.board.take(workload.model, assignment)

    def _back(self, workload: Workload, vacate: Vacate) -> Assignment | None:
        """Return the assignment that a replica keeps on a server that is drained so far and no further."""
        taken = {assignment.server for assignment in self.board.assignments.get(workload.model, ())}
        for assignment in self.aside.get(workload.model, ()):
            server = self.servers.get(assignment.server)
            if server is None or not server.drained or server.vacate is not vacate:
                continue
            if assignment.server not in taken:
                stays = self.finder.stays(workload, assignment, drained=True)
                if stays is not None:
                    return stays
        return None

    def _make_room(self, workload: Workload) -> bool:
        """Rearrange guaranteed assignments to place one more guaranteed replica; lower priorities give way.

        A replica on a server that is drained by an operator stays there rather than displace others.
        """
        found = rearrange(self.board, workload, self.workloads) if workload.guaranteed else None
        if found is None or found.out:
            alone = not self.board.assignments.get(workload.model)
            back = self._back(workload, Vacate.ANYWHERE) or (self._back(workload, Vacate.LAST) if alone else None)
            if back is not None:
                self.board.take(workload.model, back)
                return True
        if found is None:
            return False
        touched = found.assignments.keys() | found.out
        for model in sorted(touched):
            for assignment in self.board.assignments.get(model, ()):
                self.board.give_back(model, assignment)
        for model, assignments in sorted(found.assignments.items()):
            for assignment in assignments:
                self.board.take(model, assignment)
        for model in sorted(found.out):
            self._place(self.workloads[model])
            self._place_more(self.workloads[model])
        return True

    def _leave_unplaced(self, workload: Workload) -> None:
        """Record why a replica cannot be placed; if all eligible servers are in trouble, assign it to one of them."""
        model = workload.model
        taken = {assignment.server for assignment in self.board.assignments.get(model, ())}
        names = self.board.matching(workload.selector)
        matching = [self.servers[name] for name in (sorted(self.servers) if names is None else names)]
        able = [server for server in matching if self.board.allowed(workload, server)]
        down = [server for server in able if server.trouble and server.name not in taken]
        self.unplaced[model] = _unplaced_reason(self.board, workload, matching, able, taken)
        held = {assignment.server: assignment for assignment in self.aside.get(model, ())}
        down.sort(key=lambda server: (server.name not in held, server.name))
        for server in down if not taken else ():
            chosen = self.board.choose(workload, server, fitting=False)
            if chosen is not None:
                pools, _ = chosen
                devices = tuple(pool.name for pool in pools)
                why = f"waits for {server.name}: {server.trouble}"
                need = workload.bytes[pools[0].kind]
                self.board.take(model, Assignment(server.name, devices, need, workload.guaranteed, why, waits=True))
                return

    def _squeezed(self) -> set[str]:
        """Return the models whose replicas no longer fit beside new guaranteed ones."""
        found = set()
        for name in self.board.grown:
            server = self.servers[name]
            gaps = {pool.name: self.board.guaranteed_gap(name, pool) for pool in server.pools}
            for model in self.board.server_usage[name].models:
                for assignment in self.board.assignments.get(model, ()):
                    if (
                        assignment.server == name
                        and not assignment.guaranteed
                        and any(gaps[d] < assignment.bytes for d in assignment.devices)
                    ):
                        found.add(model)
        self.board.grown.clear()
        return found


def _unplaced_reason(
    board: CapacityIndex, workload: Workload, matching: Sequence[Server], able: Sequence[Server], taken: Set[str]
) -> str:
    """Return why a model has fewer replicas than its minimum.

    Args:
        board: The plan in progress.
        workload: The model.
        matching: The servers with the required labels.
        able: Those of them with the required devices that can load it.
        taken: The servers where replicas of it are placed.
    """
    labels = ", ".join(f"{key}={value}" for key, value in workload.selector)
    if not board.servers:
        return "there is no Triton server to run it"
    if not matching:
        return f"no server has the labels {labels}"
    with_labels = f" with {labels}" if labels else ""
    refused = [
        f"{server.name}: {workload.cannot[server.name]}" for server in matching if server.name in workload.cannot
    ]
    if not able and refused:
        others = len(matching) - len(refused)
        rest = f"; the other {others} do not have {_asked_for(workload)}" if others else ""
        return f"no server{with_labels} can load it ({'; '.join(refused[:3])}){rest}"
    if not able and len(matching) == 1:
        return f"the only server{with_labels} does not have {_asked_for(workload)}"
    if not able:
        return f"none of the {len(matching)} servers{with_labels} has {_asked_for(workload)}"
    least, placed = min(workload.min_replicas, workload.replicas), len(taken)
    answering = [server for server in able if not server.trouble]
    if not answering:
        return f"no suitable server answers: {'; '.join(server.trouble for server in able[:3])}"
    healthy = [server for server in answering if server.name in taken or not server.closed]
    closed = "; ".join(f"{server.name}: {server.closed}" for server in answering if server not in healthy)
    if not healthy:
        return f"no suitable server takes new replicas ({closed})"
    if placed and placed >= len(healthy):
        besides = f" ({closed})" if closed else ""
        return f"{least} replicas need different servers, and only {len(healthy)} can run it{besides}"
    need = max(workload.bytes[board.pools_for(workload, server)[0].kind] for server in healthy)
    most = max(
        (board.guaranteed_gap(server.name, pool) for server in healthy for pool in board.pools_for(workload, server)),
        default=0,
    )
    replicas = f"{placed} of {least} replicas are placed; another one" if placed else "it"
    guaranteed = (
        " besides pinned models"
        if any(board.server_usage.get(server.name, ServerUsage()).guaranteed for server in healthy)
        else ""
    )
    return f"{replicas} needs {size_text(need)}, and a suitable server has at most {size_text(most)}{guaranteed}"


def _asked_for(workload: Workload) -> str:
    if GPU not in workload.bytes:
        return "a host to run it on"
    parts = []
    if workload.gpus:
        parts.append(f"the GPUs {', '.join(map(str, workload.gpus))}")
    else:
        count = workload.gpu_count or 1
        parts.append(f"{count} GPU{'s' if count > 1 else ''}")
    if workload.gpu_product:
        parts.append(f"of product {workload.gpu_product!r}")
    if workload.gpu_min_bytes:
        parts.append(f"with at least {size_text(workload.gpu_min_bytes)}")
    return " ".join(parts)
