"""Pipelines as units of eviction: a pipeline goes with the members that nothing else needs. Pure.

A member is protected while a pipeline needs it. To free its memory, its pipelines are evicted with it: one pipeline
with the members that it alone needs, or, if that is not enough, all pipelines that share members, with these members.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from controlplane.memory.policy.types import Footprint, FootprintSource, ModelMemory

Free = Callable[[ModelMemory], bool]
"""Returns whether a model may be evicted, apart from the pipelines that need it."""

Units = dict[str, tuple[ModelMemory, ...]]
"""What is evicted together, in order, by the name of its first model."""


def own_units(models: Iterable[ModelMemory], free: Free) -> Units:
    """Return each model that may be evicted, with the members that it alone needs."""
    known = {model.model: model for model in models}
    members = [model for model in known.values() if model.needed_by]
    return {
        name: (model, *_followers(members, frozenset((name,)), free))
        for name, model in known.items()
        if not model.needed_by and free(model)
    }


def shared_units(models: Iterable[ModelMemory], free: Free) -> Units:
    """Return the units if pipelines that share members are evicted together."""
    known = {model.model: model for model in models}
    followers = [model for model in known.values() if model.needed_by]
    units: Units = {}
    for names in _components(known):
        members = [known[name] for name in sorted(names)]
        if all(free(model) for model in members):
            units[members[0].model] = (*members, *_followers(followers, names, free))
    return units


def combined(unit: tuple[ModelMemory, ...]) -> ModelMemory:
    """Return a unit as one model, for the policy that chooses among the units."""
    first = unit[0]
    if len(unit) == 1:
        return first
    used = [model.usage for model in unit if model.usage.last_used_at is not None]
    return replace(
        first,
        footprint=total(model.footprint for model in unit),
        priority=max(model.priority for model in unit),
        load_seconds=sum(model.load_seconds for model in unit),
        usage=max(used, key=lambda one: (one.rate_per_second, one.visits_per_second), default=first.usage),
    )


def total(footprints: Iterable[Mapping[str, Footprint]]) -> dict[str, Footprint]:
    """Return the sum of footprints, by device."""
    found: dict[str, Footprint] = {}
    for footprint in footprints:
        for device, one in footprint.items():
            before = found.get(device)
            found[device] = one if before is None else _plus(before, one)
    return found


def _plus(one: Footprint, other: Footprint) -> Footprint:
    measured = one.source is other.source is FootprintSource.MEASURED
    return Footprint(
        one.bytes + other.bytes,
        one.error_bytes + other.error_bytes,
        FootprintSource.MEASURED if measured else FootprintSource.ESTIMATE,
        one.reserve_bytes + other.reserve_bytes,
    )


def _followers(members: Iterable[ModelMemory], names: frozenset[str], free: Free) -> list[ModelMemory]:
    """Return the members that only these pipelines need and that may be evicted otherwise."""
    return [model for model in members if names.issuperset(model.needed_by) and free(model)]


def _components(known: Mapping[str, ModelMemory]) -> list[frozenset[str]]:
    """Return the loaded models that nothing needs, those that share members in one set."""
    groups = [{name} for name, model in known.items() if not model.needed_by]
    for model in known.values():
        touched = [group for group in groups if group & set(model.needed_by)]
        if len(touched) > 1:
            groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    return [frozenset(group) for group in groups]
