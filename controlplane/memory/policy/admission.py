"""Admission: whether a load can begin now, after an eviction, later, or never. Pure; each decision has its reason."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.domain.units import size_text
from controlplane.memory.policy.eviction import (
    DEFAULT_RULES,
    EvictionPolicy,
    EvictionRules,
    choose,
    freed,
    movable,
    protection,
)
from controlplane.memory.policy.ledger import Ledger, insufficient
from controlplane.memory.policy.types import Footprint, HoldingState, Mode, ModelMemory, Slot
from controlplane.memory.policy.units import total


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A requested load.

    Attributes:
        model: The model in its current state.
        slot: The version to load, under its Triton name.
        footprint: What it needs, by device.
        since: Since when it waits; None if it was just requested.
        units: The pipelines, not loaded yet, for which it is loaded; it begins only if all of these fit.
        missing: What the other models of these pipelines need, by slot and device, if they have no memory yet.
        kept: The other models of these pipelines, whose memory it needs besides its own.
    """

    model: ModelMemory
    slot: Slot
    footprint: Mapping[str, Footprint]
    since: datetime | None = None
    units: frozenset[str] = frozenset()
    missing: Mapping[Slot, Mapping[str, Footprint]] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()

    def together(self, ledger: Ledger) -> dict[str, Footprint]:
        """Return what the other models of its pipelines still need, by device."""
        return total(footprint for slot, footprint in self.missing.items() if not has_memory(ledger, slot))

    def whole(self, ledger: Ledger) -> "LoadRequest":
        """Return the request with everything that its pipelines still need."""
        return replace(self, footprint=total((self.footprint, self.together(ledger)))) if self.missing else self


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """Memory of one device, from the point of view of one load.

    Attributes:
        needed_bytes: What the load reserves.
        free_bytes: What is free.
        freeing_bytes: What unloads in progress are freeing.
        could_be_freed_bytes: What the models that may be evicted now hold.
        budget_bytes: The budget.
        unaccounted_bytes: Memory in use that is attributed to no model.
        held_bytes: What each Triton name that cannot be evicted holds, the largest first.
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
    """Reserve the memory and load."""

    why: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Unload these models first; decide again when their memory is free.

    Attributes:
        victims: The models to evict, in order.
        why: The load, what it lacks, and the victims.
        reasons: By victim, why it was chosen.
    """

    victims: tuple[ModelMemory, ...]
    why: str
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """Wait; decide again when something changes."""

    why: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refuse:
    """The load can never fit in the current configuration, even after evicting everything that can ever be evicted."""

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

    1. Its memory is already reserved: admit, if the number of loads in flight is below the limit.
    2. It can never fit, because it is larger than a budget minus the pinned models: refuse.
    3. The limit of loads in flight is reached: queue. Nothing is evicted before the load could start.
    4. It fits into the free memory: admit.
    5. It fits when the unloads in progress are done: queue, without further evictions.
    6. It is resident and no client waits for it: queue. Residency alone never evicts.
    7. It fits after evicting models that may be evicted: evict them.
    8. Otherwise queue until models that are in use, held or recently loaded may be evicted.

    Args:
        request: The requested load.
        ledger: The ledger of its server.
        models: All models of the server by name, with or without the requested one.
        policy: Determines the order of eviction.
        loads_in_flight: How many loads run now.
        max_loads: How many may run.
        now: The time.
        rules: Minimum residence and back-off.
        promised: Bytes by device that earlier loads in the queue need from the memory that is free or being freed.
    """
    request = request.whole(ledger)
    slot, footprint = request.slot, request.footprint
    if any(holding.state is not HoldingState.UNLOADING for holding in ledger.of(slot)):
        if loads_in_flight >= max_loads:
            return Queue(f"{loads_in_flight} loads are in flight, which is the limit")
        return Admit("its memory is reserved")

    def figures() -> Figures:
        return figures_of(request, ledger, models, now=now, rules=rules)

    if never := _can_never_fit(request, ledger, models):
        whole = f" (for the whole pipeline {', '.join(sorted(request.units))})" if request.units else ""
        return Refuse(never + whole, figures())
    if loads_in_flight >= max_loads:
        return Queue(f"{loads_in_flight} loads are in flight, which is the limit", figures())
    free = {device: ledger.free(device) for device in footprint}
    # Earlier loads in the queue have a claim on the sum of the free memory and the memory being freed.
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
    if model.mode is Mode.RESIDENT and not (model.loaded or leased or model.demanded_at or model.needed_now):
        return Queue("no room, and a resident model that no client waits for evicts no other model", figures())
    victims = choose(_others(models, request), lacking, policy, now, rules=rules, priority=request.model.priority)
    if victims:
        reasons = {victim.model: policy.explain(victim, now) for victim in victims}
        names = ", ".join(victim.model for victim in victims)
        short = _sizes({device: size for device, size in lacking.items() if size > 0})
        return Evict(victims, f"{slot.triton_name}:{slot.version} lacks {short}; evicting {names}", reasons)
    return Queue(_explain_wait(request, ledger, models, lacking, now=now, rules=rules), figures())


def figures_of(
    request: LoadRequest,
    ledger: Ledger,
    models: Mapping[str, ModelMemory],
    *,
    now: datetime,
    rules: EvictionRules = DEFAULT_RULES,
) -> dict[str, DeviceFigures]:
    """Return the figures of each device of a load."""
    may_go = movable(_others(models, request), now, rules, priority=request.model.priority)
    names = {model.model for model in may_go}
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
            could_be_freed_bytes=sum(freed(model, device) for model in may_go),
            budget_bytes=budget.bytes if budget else 0,
            unaccounted_bytes=ledger.unaccounted(device),
            held_bytes=held,
        )
    return figures


def in_order(requests: Iterable[LoadRequest]) -> list[LoadRequest]:
    """Sort the queue: higher priorities first; within one priority, the longest wait first."""
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
    claims: Mapping[str, Mapping[str, Footprint]] | None = None,
) -> list[tuple[LoadRequest, Decision]]:
    """Decide about a whole queue, in order, each load against what the earlier ones leave.

    A pipeline whose first member got its memory has a claim on what its other members need, so two pipelines never
    hold half of their memory each.

    A load that waits for memory keeps its claim on the free memory, so that smaller loads behind it do not starve it;
    they may go ahead only with memory that it does not need. Each victim is chosen only once.

    Args:
        requests: The queue.
        ledger: The ledger of its server.
        models: See `decide`.
        policy: See `decide`.
        loads_in_flight: See `decide`.
        max_loads: See `decide`.
        now: See `decide`.
        rules: See `decide`.
        claims: What each pipeline that is being loaded still needs, by device.
    """
    claimed = dict(claims or {})
    decided: list[tuple[LoadRequest, Decision]] = []
    promised: dict[str, int] = {}
    remaining = dict(models)
    for request in in_order(requests):
        decision = decide(
            request, ledger, remaining, policy=policy, loads_in_flight=loads_in_flight, max_loads=max_loads, now=now,
            rules=rules, promised=with_claims(promised, claimed, request),
        )  # fmt: skip
        decided.append((request, decision))
        match decision:
            case Admit():
                loads_in_flight += 1
                ledger = ledger.reserve(request.slot, request.footprint, now)
                claimed |= dict.fromkeys(request.units, request.together(ledger))
            case Evict(victims):
                for victim in victims:
                    remaining.pop(victim.model)
                    for holding in ledger.of_model(victim.model):
                        ledger = ledger.unloading(holding.slot, now)
                promise(promised, claimed, request, ledger)
            case Queue() if loads_in_flight < max_loads:
                promise(promised, claimed, request, ledger)
            case _:
                pass
    return decided


def promise(
    promised: dict[str, int], claims: dict[str, Mapping[str, Footprint]], request: LoadRequest, ledger: Ledger
) -> None:
    """Add a load's need to what later loads in the queue must leave free for it.

    Args:
        promised: Bytes by device.
        claims: What each pipeline still needs; the needs of its own models are not added to each other.
        request: The load.
        ledger: The ledger of its server.
    """
    if request.units:
        claims.update(dict.fromkeys(request.units, request.whole(ledger).footprint))
        return
    for device, need in request.footprint.items():
        promised[device] = promised.get(device, 0) + need.reserve_bytes


def has_memory(ledger: Ledger, slot: Slot) -> bool:
    """Return whether a version holds memory, or has reserved it."""
    return any(holding.state is not HoldingState.UNLOADING for holding in ledger.of(slot))


def with_claims(
    promised: Mapping[str, int], claims: Mapping[str, Mapping[str, Footprint]], request: LoadRequest
) -> dict[str, int]:
    """Return the promised bytes, by device, with the claims of pipelines that the load does not belong to."""
    found = dict(promised)
    for pipeline, needs in claims.items():
        for device, need in needs.items() if pipeline not in request.units else ():
            found[device] = found.get(device, 0) + need.reserve_bytes
    return found


def _others(models: Mapping[str, ModelMemory], request: LoadRequest) -> list[ModelMemory]:
    return [model for model in models.values() if model.model != request.model.model]


def _can_never_fit(request: LoadRequest, ledger: Ledger, models: Mapping[str, ModelMemory]) -> str | None:
    pinned = {model.model for model in models.values() if model.mode is Mode.PINNED and model.loaded} | request.kept
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
    said = [f"lacks {short}, and the models that may be evicted now do not free enough"]
    if kept:
        said.append("kept: " + ", ".join(kept[:5]) + (f" and {len(kept) - 5} more" if len(kept) > 5 else ""))
    if stray:
        said.append("unaccounted: " + _sizes(stray))
    return "; ".join(said)


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size_text(size)} on {device}" for device, size in sizes.items())
