"""Which models go when room is needed: the policies, who is protected, and the choice of a set.

A policy gives each model a score, and the lowest goes first; lower priorities go before higher ones whatever their
score. `choose` takes a *set* that covers the need of every device and that has no member which is not needed for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from controlplane.memory.ledger import size_text
from controlplane.memory.types import Mode, ModelMemory
from controlplane.memory.usage import HALF_LIFE_SECONDS, rate


@dataclass(frozen=True, slots=True)
class EvictionRules:
    """What protects a model that the policy would let go.

    Attributes:
        minimum_residence_seconds: How long a model stays after its load, whatever its score.
        backoff_factor: By how much that time grows with each eviction that came too early (`ModelMemory.evictions`).
        maximum_residence_seconds: Where that growth ends.
    """

    minimum_residence_seconds: float = 10.0
    backoff_factor: float = 2.0
    maximum_residence_seconds: float = 600.0

    def residence_seconds(self, model: ModelMemory) -> float:
        """How long this model stays after its load, its history of early evictions taken into account."""
        return max(
            min(self.minimum_residence_seconds * self.backoff_factor**model.evictions, self.maximum_residence_seconds),
            self.minimum_residence_seconds,
        )


DEFAULT_RULES = EvictionRules()


class EvictionPolicy(Protocol):
    """What a model's memory is worth."""

    @property
    def name(self) -> str:
        """What it is called in the settings."""
        ...

    def score(self, model: ModelMemory, now: datetime) -> float:
        """The lowest goes first."""
        ...

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Why it has this score, for a person."""
        ...


@dataclass(frozen=True, slots=True)
class LruPolicy:
    """Least recently used."""

    @property
    def name(self) -> str:
        """What it is called in the settings."""
        return "lru"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Seconds since the last use (or the load, if it was never used), negative."""
        return -_idle_seconds(model, now)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Its age."""
        return _last_use(model, now)


@dataclass(frozen=True, slots=True)
class LfuPolicy:
    """Least frequently used, by the decaying rate (plain counts would keep for ever what was once popular)."""

    half_life_seconds: float = HALF_LIFE_SECONDS

    @property
    def name(self) -> str:
        """What it is called in the settings."""
        return "lfu"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Requests per second."""
        return rate(model.usage, now, half_life_seconds=self.half_life_seconds)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Its rate."""
        return f"{self.score(model, now) * 3600:.3g} requests an hour"


@dataclass(frozen=True, slots=True)
class CostPolicy:
    """Seconds of reloading that each byte saves: reload seconds times rate of use, by its bytes.

    The GreedyDual-Size-Frequency family (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997;
    Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HPL-98-69R1, 1998).
    Those age by an offset that grows with each eviction, which is state; here the rate itself decays with time.
    """

    half_life_seconds: float = HALF_LIFE_SECONDS

    @property
    def name(self) -> str:
        """What it is called in the settings."""
        return "cost"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Expected seconds of reloading per second and GiB."""
        uses = rate(model.usage, now, half_life_seconds=self.half_life_seconds)
        return model.load_seconds * uses / max(_bytes(model), 1) * 2**30

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Cost, rate and size."""
        uses = rate(model.usage, now, half_life_seconds=self.half_life_seconds)
        return (
            f"a reload costs {model.load_seconds:.3g} s, {uses * 3600:.3g} uses an hour are expected, "
            f"it frees {size_text(_bytes(model))}"
        )


def policy_named(name: str) -> EvictionPolicy:
    """The policy of a name: ``lru``, ``lfu`` or ``cost``.

    Raises:
        ValueError: There is none of that name.
    """
    policies: tuple[EvictionPolicy, ...] = (LruPolicy(), LfuPolicy(), CostPolicy())
    for policy in policies:
        if policy.name == name:
            return policy
    raise ValueError(f"no eviction policy {name!r}; there are: {', '.join(policy.name for policy in policies)}")


def protection(
    model: ModelMemory, now: datetime, rules: EvictionRules = DEFAULT_RULES, *, priority: int | None = None
) -> str | None:
    """Why a model may not be evicted now; None if it may.

    Args:
        model: The model.
        now: The time.
        rules: Minimum residence and back-off.
        priority: Of the one that needs the room; a higher one than the model's does not wait for the residence time.
    """
    if not model.loaded:
        return "not loaded"
    if model.mode is Mode.PINNED:
        return "pinned"
    if model.busy:
        return "being loaded, unloaded or proved"
    if model.usage.pending > 0:
        return f"{model.usage.pending} requests pending"
    if model.held_until is not None and model.held_until > now:
        return f"held by a lease until {model.held_until:%H:%M:%S}"
    if model.demanded_at is not None:
        return "somebody waits for it"
    if model.loaded_at is not None and (priority is None or priority <= model.priority):
        left = rules.residence_seconds(model) - (now - model.loaded_at).total_seconds()
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
    """Pick the models to evict so that each device gets its need.

    Args:
        candidates: Models of one server; those that are protected are left out.
        need: Bytes to free, by device; devices with none to free are ignored.
        policy: Gives the scores.
        now: The time.
        rules: Minimum residence and back-off.
        priority: Of the one that needs the room.

    Returns:
        The victims, the first to go first; empty if nothing is needed; None if all that may go is not enough.
    """
    short = {device: size for device, size in need.items() if size > 0}
    if not short:
        return ()
    scored = [
        ((model.priority, policy.score(model, now), model.model), model)
        for model in candidates
        if any(device in model.footprint for device in short)
        and protection(model, now, rules, priority=priority) is None
    ]
    scored.sort(key=lambda item: item[0])
    taken: list[ModelMemory] = []
    left = dict(short)
    for _, model in scored:
        gives = [device for device, size in left.items() if size > 0 and freed(model, device) > 0]
        if not gives:
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


def _bytes(model: ModelMemory) -> int:
    return sum(footprint.bytes for footprint in model.footprint.values())


def _idle_seconds(model: ModelMemory, now: datetime) -> float:
    newest = max((at for at in (model.usage.last_used_at, model.loaded_at) if at is not None), default=None)
    return float("inf") if newest is None else (now - newest).total_seconds()


def _last_use(model: ModelMemory, now: datetime) -> str:
    if model.usage.last_used_at is None:
        return "never used"
    return f"last used {max((now - model.usage.last_used_at).total_seconds(), 0):.3g} s ago"
