"""What a model's memory is worth: the port that eviction policies implement, and the two plain ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, Self

from controlplane.memory.policy.types import ModelMemory
from controlplane.memory.policy.usage import HALF_LIFE_SECONDS, rate


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

    def learned(
        self, used: ModelMemory, models: Mapping[str, ModelMemory], budgets: Mapping[str, int], now: datetime
    ) -> Self:
        """The policy after a use of a model; itself, where it learns nothing.

        Args:
            used: What was used, its usage up to date. Loaded or not: a use that had to wait for a load counts too.
            models: All models of the server, by name.
            budgets: Bytes by device.
            now: When.
        """
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
        return -idle_seconds(model, now)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Its age."""
        return last_use(model, now)

    def learned(
        self,
        used: ModelMemory,  # noqa: ARG002
        models: Mapping[str, ModelMemory],  # noqa: ARG002
        budgets: Mapping[str, int],  # noqa: ARG002
        now: datetime,  # noqa: ARG002
    ) -> Self:
        """Itself: it learns nothing."""
        return self


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

    def learned(
        self,
        used: ModelMemory,  # noqa: ARG002
        models: Mapping[str, ModelMemory],  # noqa: ARG002
        budgets: Mapping[str, int],  # noqa: ARG002
        now: datetime,  # noqa: ARG002
    ) -> Self:
        """Itself: it learns nothing."""
        return self


def idle_seconds(model: ModelMemory, now: datetime) -> float:
    """Seconds since the last use, or the load of one that was never used; infinite without either."""
    newest, loaded_at = model.usage.last_used_at, model.loaded_at
    if newest is None or (loaded_at is not None and loaded_at > newest):
        newest = loaded_at
    return float("inf") if newest is None else (now - newest).total_seconds()


def last_use(model: ModelMemory, now: datetime) -> str:
    """When it was last used, for a person."""
    if model.usage.last_used_at is None:
        return "never used"
    return f"last used {max((now - model.usage.last_used_at).total_seconds(), 0):.3g} s ago"
