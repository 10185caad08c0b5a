"""Selection of a minimal set of models whose memory covers a need on every device."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from heapq import heapify, heappop

from controlplane.memory.policy.policies import EvictionPolicy
from controlplane.memory.policy.types import ModelMemory


def select_victims(
    models: Iterable[ModelMemory], need: Mapping[str, int], policy: EvictionPolicy, now: datetime
) -> tuple[ModelMemory, ...] | None:
    """Select victims as `choose` does, among models that may all be evicted.

    Models are taken by priority and score until the need is met; each must free some of what is still missing. Then
    models that turn out not to be needed are spared, the most valuable first, so every member of the result is needed.
    """
    score = policy.score
    # A heap, since only the first few elements are taken. Names are unique, so models are never compared.
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
    """Return the bytes that evicting a model frees on a device."""
    footprint = model.footprint.get(device)
    return 0 if footprint is None else footprint.bytes


def _needed(taken: Sequence[ModelMemory], left: Mapping[str, int]) -> tuple[ModelMemory, ...]:
    """Drop models that are not needed, the most valuable first. `left`, the bytes still missing, is at most 0."""
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
