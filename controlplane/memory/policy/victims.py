"""Picks a set of models whose memory covers a need on every device, and no more of them than that takes."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from heapq import heapify, heappop

from controlplane.memory.policy.policies import EvictionPolicy
from controlplane.memory.policy.types import ModelMemory


def select_victims(
    models: Iterable[ModelMemory], need: Mapping[str, int], policy: EvictionPolicy, now: datetime
) -> tuple[ModelMemory, ...] | None:
    """As `choose`, among models that may all go.

    By priority and score until the need is met, each of them giving something that is still missing; then whoever
    turns out not to be needed is spared, the most valuable first. So no member of the set can be left out.
    """
    score = policy.score
    # A heap, since only the first few of it are ever taken; names are unique, so models are never compared.
    order = [(model.priority, score(model, now), model.model, model) for model in models]
    heapify(order)
    taken: list[ModelMemory] = []
    left = {device: size for device, size in need.items() if size > 0}
    while order:
        model = heappop(order)[-1]
        if not any(size > 0 and freed(model, device) > 0 for device, size in left.items()):
            continue
        taken.append(model)
        for device in left:
            left[device] -= freed(model, device)
        if all(size <= 0 for size in left.values()):
            return _needed(taken, left)
    return None


def freed(model: ModelMemory, device: str) -> int:
    """Bytes that its eviction gives back on a device."""
    footprint = model.footprint.get(device)
    return 0 if footprint is None else footprint.bytes


def _needed(taken: Sequence[ModelMemory], left: Mapping[str, int]) -> tuple[ModelMemory, ...]:
    """Spare whoever is not needed, the most valuable first. `left` is what is missing, so at most 0 everywhere."""
    spare = {device: -size for device, size in left.items()}
    kept = []
    for model in reversed(taken):
        gives = {device: freed(model, device) for device in spare}
        if all(spare[device] >= size for device, size in gives.items()):
            for device, size in gives.items():
                spare[device] -= size
        else:
            kept.append(model)
    return tuple(reversed(kept))
