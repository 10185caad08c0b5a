"""What the drain of a server would do. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.placement.defragment import Move
from controlplane.placement.planner import plan
from controlplane.placement.types import NO_HINTS, Hints, Plan, Vacate


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """The result of a drain.

    Attributes:
        plan: The plan after it.
        moves: The replicas that move, also from other servers to make room.
        ends: Replicas that end, because their model keeps its minimum elsewhere or the drain is forced: why, by model.
        stays: Replicas that stay because no other server can have them: why, by model.
    """

    plan: Plan
    moves: tuple[Move, ...]
    ends: Mapping[str, str]
    stays: Mapping[str, str]


def drain_plan(made: Plan, name: str, why: str, *, force: bool, hints: Hints = NO_HINTS) -> DrainPlan:
    """Return what the drain of a server would do to a plan, which is not changed.

    Args:
        made: The current plan.
        name: The server.
        why: Why it is drained.
        force: Whether replicas without another place end.
        hints: Where models are loaded and cached.
    """
    after = _after(made, name, why, Vacate.ALWAYS if force else Vacate.ANYWHERE, hints)
    left = set(after.server_usage[name].models) if name in after.server_usage else set()
    forced = _after(made, name, why, Vacate.ALWAYS, hints) if left else after
    moves: list[Move] = []
    ends: dict[str, str] = {}
    for model, assignments in sorted(made.assignments.items()):
        now = after.assignments.get(model, ())
        if now is assignments:
            continue
        old = [one for one in assignments if one.server not in {other.server for other in now}]
        new = [one for one in now if one.server not in {other.server for other in assignments}]
        old.sort(key=lambda one: one.server != name)
        seconds = made.workloads[model].load_seconds
        moves.extend(Move(model, source, target, seconds, target.why) for source, target in zip(old, new, strict=False))
        for one in old[len(new) :]:
            if one.server == name:
                ends[model] = after.unplaced.get(model) or "the model keeps its minimum number of replicas elsewhere"
    stays = {model: forced.unplaced.get(model, "no other server can have it") for model in sorted(left)}
    return DrainPlan(after, tuple(moves), ends, stays)


def _after(made: Plan, name: str, why: str, vacate: Vacate, hints: Hints) -> Plan:
    server = replace(made.servers[name], drained=why, vacate=vacate)
    return plan(made, {**made.servers, name: server}, made.workloads, hints)
