"""Decides which models are to be loaded on a server. Evictions for them are decided elsewhere (`admission`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from controlplane.domain.units import size_text
from controlplane.memory.policy.eviction import DEFAULT_RULES, EvictionPolicy, EvictionRules
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import Mode, ModelMemory, Slot
from controlplane.memory.policy.units import total


@dataclass(frozen=True, slots=True)
class ResidencyDecision:
    """Whether a model is to be loaded.

    Attributes:
        loaded: Whether it is to be loaded.
        why: The reason, as one sentence.
    """

    loaded: bool
    why: str


def decide_residency(
    models: Mapping[str, ModelMemory],
    ledger: Ledger,
    policy: EvictionPolicy,
    now: datetime,
    *,
    rules: EvictionRules = DEFAULT_RULES,
) -> dict[str, ResidencyDecision]:
    """Decide for each model whether it is to be loaded, and why.

    Pinned, held and requested models are to be loaded; on-demand models stay until `expires_at`; resident models stay,
    and are loaded where there is room that no other load needs. Residency alone never evicts: an eviction is the result
    of `admission.decide` for a load that a client waits for (or for a pinned model).
    """
    answers = {model.model: without_room(model, now, rules) for model in models.values()}
    found = {model: answer for model, answer in answers.items() if answer is not None}
    takes = [models[model] for model, answer in found.items() if answer.loaded and not models[model].loaded]
    waiting = [models[model] for model, answer in answers.items() if answer is None]
    return found | if_room(waiting, free_for(ledger, takes), policy, now)


def free_for(ledger: Ledger, takes: Iterable[ModelMemory]) -> dict[str, int]:
    """Return the memory that is free for residency, by device.

    Args:
        ledger: The ledger of the server.
        takes: Models that are to be loaded and are not loaded yet. Their memory is subtracted, so that residency does
            not compete with them.
    """
    free = {device: ledger.free(device) for device in ledger.budgets}
    for model in takes:
        if not ledger.of(Slot(model.model, model.version)):
            for device, need in model.footprint.items():
                free[device] = free.get(device, 0) - need.reserve_bytes
    return free


def if_room(
    waiting: Iterable[ModelMemory], free: Mapping[str, int], policy: EvictionPolicy, now: datetime
) -> dict[str, ResidencyDecision]:
    """Decide which resident models that are not loaded fit into the free memory.

    Args:
        waiting: The models.
        free: Free bytes, by device.
        policy: Determines the order among equal priorities.
        now: The time.
    """
    left = dict(free)
    order = sorted(waiting, key=lambda model: (-model.priority, -policy.score(model, now), model.model))
    return {model.model: _if_room(model, left) for model in order}


def next_turn(model: ModelMemory, now: datetime, rules: EvictionRules = DEFAULT_RULES) -> datetime | None:
    """Return when the result of `without_room` may change without any event; None for never."""
    times = (model.held_until, expires_at(model, rules))
    return min((at for at in times if at is not None and at > now), default=None)


def expires_at(model: ModelMemory, rules: EvictionRules = DEFAULT_RULES) -> datetime | None:
    """Return when a loaded on-demand model expires if it is not used again; None for never, or if not applicable.

    The time counts from the last use. A model that was not used since its load stays at least its minimum residence
    time, so that a client that requested it finds it loaded even with a keep-alive of 0. The demand that caused the
    load counts as a use at the time of the load.
    """
    if model.mode is not Mode.ON_DEMAND or not model.loaded or model.keep_alive_seconds is None:
        return None
    ends = []
    if model.usage.last_used_at is not None:
        ends.append(model.usage.last_used_at + timedelta(seconds=model.keep_alive_seconds))
    if model.loaded_at is not None and (
        model.usage.last_used_at is None or model.usage.last_used_at <= model.loaded_at
    ):
        grace = max(model.keep_alive_seconds, rules.minimum_residence_seconds)
        ends.append(model.loaded_at + timedelta(seconds=grace))
    if model.held_until is not None:
        ends.append(model.held_until)
    return max(ends, default=None)


def without_room(model: ModelMemory, now: datetime, rules: EvictionRules) -> ResidencyDecision | None:
    """Return the decision if it does not depend on free memory; None for a resident model that is not loaded."""
    if model.mode is Mode.PINNED:
        return ResidencyDecision(loaded=True, why="pinned")
    if model.needed_by:
        return ResidencyDecision(loaded=True, why=f"needed by {', '.join(model.needed_by)}")
    if model.held_until is not None and model.held_until > now:
        return ResidencyDecision(loaded=True, why=f"held by a client until {model.held_until:%H:%M:%S} UTC")
    if model.demanded_at is not None:
        return ResidencyDecision(loaded=True, why=f"a client has waited since {model.demanded_at:%H:%M:%S} UTC")
    if model.mode is Mode.RESIDENT:
        return ResidencyDecision(loaded=True, why="resident") if model.loaded or model.busy else None
    if not model.loaded:
        return ResidencyDecision(loaded=False, why="on demand: not requested")
    if model.usage.pending > 0:
        return ResidencyDecision(loaded=True, why=f"on demand: {model.usage.pending} requests pending")
    end = expires_at(model, rules)
    if end is None or end > now:
        until = "indefinitely" if end is None else f"until {end:%H:%M:%S} UTC"
        return ResidencyDecision(loaded=True, why=f"on demand: kept {until} if it is not used")
    return ResidencyDecision(loaded=False, why=f"on demand: not used for {model.keep_alive_seconds:.3g} s")


def _if_room(model: ModelMemory, free: dict[str, int]) -> ResidencyDecision:
    whole = total((model.footprint, model.unit))
    missing = {
        device: need.reserve_bytes - free.get(device, 0)
        for device, need in whole.items()
        if need.reserve_bytes > free.get(device, 0)
    }
    if missing:
        short = ", ".join(f"{size_text(size)} on {device}" for device, size in missing.items())
        return ResidencyDecision(loaded=False, why=f"resident: no room, lacks {short}")
    for device, need in whole.items():
        free[device] -= need.reserve_bytes
    return ResidencyDecision(loaded=True, why="resident: there is room")
