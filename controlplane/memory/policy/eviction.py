"""Selects the models to evict: which ones are protected, and the choice among the rest.

A policy gives each model a score, and the lowest score is evicted first; lower priorities are evicted before higher
ones whatever their score. `choose` returns a *set* that covers the need on every device, and in which every member is
needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controlplane.memory.policy.cost_policy import CostPolicy
from controlplane.memory.policy.policies import EvictionPolicy, LfuPolicy, LruPolicy
from controlplane.memory.policy.types import Mode, ModelMemory
from controlplane.memory.policy.units import Units, combined, own_units, shared_units
from controlplane.memory.policy.victims import freed, select_victims

__all__ = [
    "DEFAULT_RULES",
    "CostPolicy",
    "EvictionPolicy",
    "EvictionRules",
    "LfuPolicy",
    "LruPolicy",
    "choose",
    "early_evictions",
    "freed",
    "movable",
    "policy_named",
    "protection",
]


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """Rules that protect a model regardless of its score.

    Attributes:
        minimum_residence_seconds: How long a model stays loaded at least.
        backoff_factor: Growth of that time with each eviction that came too early (`ModelMemory.evictions`).
        maximum_residence_seconds: The limit of that growth.
    """

    minimum_residence_seconds: float = 10.0
    backoff_factor: float = 2.0
    maximum_residence_seconds: float = 600.0

    def residence_seconds(self, model: ModelMemory) -> float:
        """Return how long this model stays loaded at least, including the back-off for its early evictions."""
        return self.grown_seconds(model.evictions)

    def grown_seconds(self, evictions: int) -> float:
        """Return the residence time after this many early evictions."""
        if self.minimum_residence_seconds >= self.maximum_residence_seconds:
            return self.minimum_residence_seconds
        # `2 ** 64` is beyond any maximum, and floats overflow soon after `2 ** 1000`.
        growth = self.backoff_factor ** min(max(evictions, 0), 64)
        return min(self.minimum_residence_seconds * growth, self.maximum_residence_seconds)


DEFAULT_RULES = EvictionRules()


def early_evictions(
    evictions: int, evicted_at: datetime | None, wanted_at: datetime, rules: EvictionRules = DEFAULT_RULES
) -> int:
    """Return the number of early evictions once a model is requested again: the next `ModelMemory.evictions`.

    An eviction was too early if the model is requested again within its (grown) minimum residence time. Otherwise the
    number decreases by one, so that a model that once thrashed is not protected forever.

    Args:
        evictions: The number so far.
        evicted_at: When it was last evicted; None if it was not (it was unloaded otherwise, or this was already
            counted).
        wanted_at: When it was requested again.
        rules: Minimum residence and back-off.
    """
    if evicted_at is None:
        return evictions
    within = rules.grown_seconds(evictions)
    return evictions + 1 if (wanted_at - evicted_at).total_seconds() < within else max(evictions - 1, 0)


def protection(
    model: ModelMemory, now: datetime, rules: EvictionRules = DEFAULT_RULES, *, priority: int | None = None
) -> str | None:
    """Return why a model may not be evicted now; None if it may.

    Args:
        model: The model.
        now: The time.
        rules: Minimum residence and back-off.
        priority: The priority of the load that needs memory; if it is higher than the model's, the residence time is
            ignored.
    """
    if not model.loaded:
        return "not loaded"
    if model.mode is Mode.PINNED:
        return "pinned"
    if model.needed_by:
        return f"needed by {', '.join(model.needed_by)}"
    if model.busy:
        return "being loaded, unloaded or proved"
    if model.usage.pending > 0:
        return f"{model.usage.pending} requests pending"
    if model.held_until is not None and model.held_until > now:
        return f"held by a client until {model.held_until:%H:%M:%S}"
    if model.demanded_at is not None:
        return "a client waits for it"
    if model.loaded_at is not None and (priority is None or priority <= model.priority):
        age = (now - model.loaded_at).total_seconds()
        # Most models are older than any residence time: one comparison for those, the power only for the rest.
        if age < max(rules.maximum_residence_seconds, rules.minimum_residence_seconds):
            stays = rules.residence_seconds(model) if model.evictions else rules.minimum_residence_seconds
            left = stays - age
            if left > 0:
                return f"loaded too recently, stays for {left:.3g} s more"
    return None


def choose(
    candidates: Iterable[ModelMemory],
    need: Mapping[str, int],
    policy: EvictionPolicy,
    now: datetime,
    *,
    rules: EvictionRules = DEFAULT_RULES,
    priority: int | None = None,
) -> tuple[ModelMemory, ...] | None:
    """Select the models to evict so that each device gets its need; a pipeline goes with its members.

    Args:
        candidates: Models of one server; protected ones are left out.
        need: Bytes to free, by device; devices without a need are ignored.
        policy: Gives the scores.
        now: The time.
        rules: Minimum residence and back-off.
        priority: The priority of the load that needs memory.

    Returns:
        The victims in order; empty if nothing is needed; None if evicting all candidates is not enough.
    """
    short = {device: size for device, size in need.items() if size > 0}
    if not short:
        return ()
    loaded = [model for model in candidates if model.loaded]

    def free(model: ModelMemory) -> bool:
        return _free(model, now, rules, priority)

    found = _select(own_units(loaded, free), short, policy, now)
    if found is None and any(model.needed_by for model in loaded):
        found = _select(shared_units(loaded, free), short, policy, now)
    return found


def movable(
    models: Sequence[ModelMemory], now: datetime, rules: EvictionRules = DEFAULT_RULES, *, priority: int | None = None
) -> list[ModelMemory]:
    """Return the models that may be evicted now, alone or together with the pipelines that need them."""
    loaded = [model for model in models if model.loaded]
    if not any(model.needed_by for model in loaded):
        return [model for model in loaded if _free(model, now, rules, priority)]
    units = [build(loaded, lambda model: _free(model, now, rules, priority)) for build in (own_units, shared_units)]
    found = {model.model: model for one in units for unit in one.values() for model in unit}
    return list(found.values())


def _free(model: ModelMemory, now: datetime, rules: EvictionRules, priority: int | None) -> bool:
    alone = replace(model, needed_by=()) if model.needed_by else model
    return protection(alone, now, rules, priority=priority) is None


def _select(
    units: Units, short: Mapping[str, int], policy: EvictionPolicy, now: datetime
) -> tuple[ModelMemory, ...] | None:
    offered = [combined(unit) for unit in units.values()]
    chosen = select_victims(
        [model for model in offered if any(device in model.footprint for device in short)], short, policy, now
    )
    return None if chosen is None else tuple(model for one in chosen for model in units[one.model])


def policy_named(name: str) -> EvictionPolicy:
    """Return the policy with this name: ``lru``, ``lfu`` or ``cost``.

    Raises:
        ValueError: There is no policy with this name.
    """
    policies: tuple[EvictionPolicy, ...] = (LruPolicy(), LfuPolicy(), CostPolicy())
    for policy in policies:
        if policy.name == name:
            return policy
    raise ValueError(
        f"unknown eviction policy {name!r}; expected one of {', '.join(policy.name for policy in policies)}"
    )
