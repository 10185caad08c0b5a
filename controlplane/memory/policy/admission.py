"""May a load begin: now, after an eviction, later, or never. Pure, and each answer says why, with its figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.units import size_text
from controlplane.memory.policy.eviction import DEFAULT_RULES, EvictionPolicy, EvictionRules, choose, freed, protection
from controlplane.memory.policy.ledger import Ledger, insufficient
from controlplane.memory.policy.types import Footprint, HoldingState, Mode, ModelMemory, Slot


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A load that is wanted.

    Attributes:
        model: Of which model, as it is now.
        slot: Of which version, under which Triton name.
        footprint: What it needs, by device.
        since: Since when it waits; None for just now.
    """

    model: ModelMemory
    slot: Slot
    footprint: Mapping[str, Footprint]
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """The memory of one device, as one load sees it.

    Attributes:
        needed_bytes: What the load reserves.
        free_bytes: What is free.
        freeing_bytes: What is being freed by unloads that are under way.
        could_be_freed_bytes: What the models that may be evicted now hold.
        budget_bytes: The budget.
        unaccounted_bytes: In use, by nobody that is known.
        held_bytes: What each Triton name that stays holds, the largest first.
    """

    needed_bytes: int
    free_bytes: int
    freeing_bytes: int
    could_be_freed_bytes: int
    budget_bytes: int
    unaccounted_bytes: int
    held_bytes: Mapping[str, int] = field(default_factory=dict)


Figures = Mapping[str, DeviceFigures]
"""By device."""


@dataclass(frozen=True, slots=True)
class Admit:
    """Reserve and load."""

    why: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Unload these first; ask again when their memory is really free.

    Attributes:
        victims: The first to go first.
        why: For whom, how much, and why these.
        reasons: By victim, why it.
    """

    victims: tuple[ModelMemory, ...]
    why: str
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """Not now; ask again when something changed."""

    why: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refuse:
    """Never, as things are configured: not even with everything evicted that can ever be."""

    why: str
    figures: Figures = field(default_factory=dict)


Decision = Admit | Evict | Queue | Refuse


def decide(
    request: LoadRequest,
    ledger: Ledger,
    models: Mapping[str, ModelMemory],
    *,
    policy: EvictionPolicy,
    loads_in_flight: int,
    max_loads: int,
    now: datetime,
    rules: EvictionRules = DEFAULT_RULES,
    promised: Mapping[str, int] | None = None,
) -> Decision:
    """Decide about one load.

    1. It has its memory already: admit, if there is a place among the loads in flight.
    2. It can never fit, because it is larger than a budget less what is pinned: refuse.
    3. As many loads as may be are in flight: queue. Nothing is evicted before its turn.
    4. It fits into what is free: admit.
    5. It fits when what is being unloaded is gone: queue. Nobody else need go.
    6. It is resident and nobody waits for it: queue. Nothing is evicted for mere residency.
    7. Some may go, and then it fits: evict them.
    8. Else queue, until who is in use, leased or new may go.

    Args:
        request: What is wanted.
        ledger: Of its server.
        models: All models of the server by name, the requested one included or not.
        policy: Gives the order of eviction.
        loads_in_flight: How many loads run now.
        max_loads: How many may run.
        now: The time.
        rules: Minimum residence and back-off.
        promised: Bytes, by device, that those before it in the queue need, out of what is free or is being freed.
    """
    slot, footprint = request.slot, request.footprint
    if any(holding.state is not HoldingState.UNLOADING for holding in ledger.of(slot)):
        if loads_in_flight >= max_loads:
            return Queue(f"{loads_in_flight} loads are in flight, as many as may be")
        return Admit("its memory is reserved")

    def figures() -> Figures:
        return figures_of(request, ledger, models, now=now, rules=rules)

    if never := _can_never_fit(request, ledger, models):
        return Refuse(never, figures())
    if loads_in_flight >= max_loads:
        return Queue(f"{loads_in_flight} loads are in flight, as many as may be", figures())
    free = {device: ledger.free(device) for device in footprint}
    # Those before it have a claim on what is free and on what is coming, taken together.
    lacking = {
        device: need.reserve_bytes
        + (promised or {}).get(device, 0)
        - free[device]
        - ledger.held(device, HoldingState.UNLOADING)
        for device, need in footprint.items()
    }
    if all(size <= 0 for size in lacking.values()):
        if all(need.reserve_bytes <= free[device] for device, need in footprint.items()):
            return Admit(f"there is room: {_sizes(free)} free")
        return Queue("waits for memory that is being freed", figures())
    model = request.model
    leased = model.held_until is not None and model.held_until > now
    if model.mode is Mode.RESIDENT and not (model.loaded or leased or model.demanded_at):
        return Queue("no room, and nothing is evicted for a resident model that nobody waits for", figures())
    victims = choose(_others(models, request), lacking, policy, now, rules=rules, priority=request.model.priority)
    if victims:
        reasons = {victim.model: policy.explain(victim, now) for victim in victims}
        names = ", ".join(victim.model for victim in victims)
        short = _sizes({device: size for device, size in lacking.items() if size > 0})
        return Evict(victims, f"{slot.triton_name}:{slot.version} lacks {short}; to go: {names}", reasons)
    return Queue(_explain_wait(request, ledger, models, lacking, now=now, rules=rules), figures())


def figures_of(
    request: LoadRequest,
    ledger: Ledger,
    models: Mapping[str, ModelMemory],
    *,
    now: datetime,
    rules: EvictionRules = DEFAULT_RULES,
) -> dict[str, DeviceFigures]:
    """How the devices of a load stand."""
    movable = [
        model
        for model in _others(models, request)
        if protection(model, now, rules, priority=request.model.priority) is None
    ]
    names = {model.model for model in movable}
    figures = {}
    for device, need in request.footprint.items():
        held: dict[str, int] = {}
        for holder, size in ledger.holders(device).items():
            if holder.triton_name not in names:
                held[holder.triton_name] = held.get(holder.triton_name, 0) + size
        budget = ledger.budgets.get(device)
        figures[device] = DeviceFigures(
            needed_bytes=need.reserve_bytes,
            free_bytes=ledger.free(device),
            freeing_bytes=ledger.held(device, HoldingState.UNLOADING),
            could_be_freed_bytes=sum(freed(model, device) for model in movable),
            budget_bytes=budget.bytes if budget else 0,
            unaccounted_bytes=ledger.unaccounted(device),
            held_bytes=held,
        )
    return figures


def in_order(requests: Iterable[LoadRequest]) -> list[LoadRequest]:
    """The queue: higher priorities first; within one, who waits longest."""
    return sorted(
        requests,
        key=lambda request: (
            -request.model.priority,
            request.since is None,
            request.since.timestamp() if request.since else 0.0,
            request.slot,
        ),
    )


def decide_all(
    requests: Sequence[LoadRequest],
    ledger: Ledger,
    models: Mapping[str, ModelMemory],
    *,
    policy: EvictionPolicy,
    loads_in_flight: int,
    max_loads: int,
    now: datetime,
    rules: EvictionRules = DEFAULT_RULES,
) -> list[tuple[LoadRequest, Decision]]:
    """Decide about a whole queue, in its order, each against what those before it leave.

    Whoever must wait for memory keeps what is free for itself, so that smaller ones behind it do not starve it; they
    may go ahead only with what it does not need. Victims are chosen once.
    """
    decided: list[tuple[LoadRequest, Decision]] = []
    promised: dict[str, int] = {}
    remaining = dict(models)
    for request in in_order(requests):
        decision = decide(
            request, ledger, remaining, policy=policy, loads_in_flight=loads_in_flight, max_loads=max_loads, now=now,
            rules=rules, promised=promised,
        )  # fmt: skip
        decided.append((request, decision))
        match decision:
            case Admit():
                loads_in_flight += 1
                ledger = ledger.reserve(request.slot, request.footprint, now)
            case Evict(victims):
                for victim in victims:
                    remaining.pop(victim.model)
                    for holding in ledger.of_model(victim.model):
                        ledger = ledger.unloading(holding.slot, now)
                promise(promised, request)
            case Queue() if loads_in_flight < max_loads:
                promise(promised, request)
            case _:
                pass
    return decided


def promise(promised: dict[str, int], request: LoadRequest) -> None:
    """Add what a load needs to the bytes, by device, that those behind it in the queue must leave to it."""
    for device, need in request.footprint.items():
        promised[device] = promised.get(device, 0) + need.reserve_bytes


def _others(models: Mapping[str, ModelMemory], request: LoadRequest) -> list[ModelMemory]:
    return [model for model in models.values() if model.model != request.model.model]


def _can_never_fit(request: LoadRequest, ledger: Ledger, models: Mapping[str, ModelMemory]) -> str | None:
    pinned = {model.model for model in models.values() if model.mode is Mode.PINNED and model.loaded}
    missing = {}
    for device, need in request.footprint.items():
        budget = ledger.budgets.get(device)
        fixed = sum(
            size
            for holder, size in ledger.holders(device).items()
            if holder.triton_name in pinned and holder.triton_name != request.slot.triton_name
        )
        short = need.reserve_bytes + fixed - (budget.bytes if budget else 0)
        if short > 0:
            missing[device] = short
    if not missing:
        return None
    movable = {
        device: sum(
            size
            for holder, size in ledger.holders(device).items()
            if holder.triton_name not in pinned and holder.triton_name != request.slot.triton_name
        )
        for device in missing
    }
    error = insufficient(ledger, request.slot, request.footprint, missing, could_be_freed=movable)
    return error.message


def _explain_wait(
    request: LoadRequest,
    ledger: Ledger,
    models: Mapping[str, ModelMemory],
    coming: Mapping[str, int],
    *,
    now: datetime,
    rules: EvictionRules,
) -> str:
    short = _sizes({device: size for device, size in coming.items() if size > 0})
    kept = [
        f"{model.model} ({why})"
        for model in _others(models, request)
        if any(freed(model, device) for device in coming)
        and model.loaded
        and (why := protection(model, now, rules, priority=request.model.priority))
    ]
    stray = {device: size for device in coming if (size := ledger.unaccounted(device))}
    said = [f"lacks {short}, and what may go now is not enough"]
    if kept:
        said.append("kept: " + ", ".join(kept[:5]) + (f" and {len(kept) - 5} more" if len(kept) > 5 else ""))
    if stray:
        said.append("unaccounted: " + _sizes(stray))
    return "; ".join(said)


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size_text(size)} on {device}" for device, size in sizes.items())
