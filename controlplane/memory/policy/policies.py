"""The interface of eviction policies, and the two simple ones (LRU and LFU)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, Self

from controlplane.memory.policy.types import ModelMemory
from controlplane.memory.policy.usage import HALF_LIFE_SECONDS, rate


class EvictionPolicy(Protocol):
    """Values the memory of a model."""

    @property
    def name(self) -> str:
        """Name of the policy in the settings."""
        ...

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Return the model's score; the lowest score is evicted first."""
        ...

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Return a readable reason for the score."""
        ...

    def learned(
        self, used: ModelMemory, models: Mapping[str, ModelMemory], budgets: Mapping[str, int], now: datetime
    ) -> Self:
        """Return the policy after a use of a model; a policy that does not learn returns itself.

        Args:
            used: The model that was used, with up-to-date usage. It need not be loaded: a use that waited for a load
                counts.
            models: All models of the server, by name.
            budgets: Bytes by device.
            now: The current time.
        """
        ...


@dataclass(frozen=True, slots=True)
class LruPolicy:
    """Least recently used."""

    @property
    def name(self) -> str:
        """Name of the policy in the settings."""
        return "lru"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Return the negative number of seconds since the last use (or since the load, if it was never used)."""
        return -idle_seconds(model, now)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Return the time since the last use."""
        return last_use(model, now)

    def learned(
        self,
        used: ModelMemory,  # noqa: ARG002
        models: Mapping[str, ModelMemory],  # noqa: ARG002
        budgets: Mapping[str, int],  # noqa: ARG002
        now: datetime,  # noqa: ARG002
    ) -> Self:
        """Return itself; this policy does not learn."""
        return self


@dataclass(frozen=True, slots=True)
class LfuPolicy:
    """Least frequently used, by the decaying rate (plain counts would never forget past popularity)."""

    half_life_seconds: float = HALF_LIFE_SECONDS

    @property
    def name(self) -> str:
        """Name of the policy in the settings."""
        return "lfu"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Return the requests per second."""
        return rate(model.usage, now, half_life_seconds=self.half_life_seconds)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Return the request rate."""
        return f"{self.score(model, now) * 3600:.3g} requests an hour"

    def learned(
        self,
        used: ModelMemory,  # noqa: ARG002
        models: Mapping[str, ModelMemory],  # noqa: ARG002
        budgets: Mapping[str, int],  # noqa: ARG002
        now: datetime,  # noqa: ARG002
    ) -> Self:
        """Return itself; this policy does not learn."""
        return self


def idle_seconds(model: ModelMemory, now: datetime) -> float:
    """Return the seconds since the last use, or since the load if it was never used; infinite without either."""
    newest, loaded_at = model.usage.last_used_at, model.loaded_at
    if newest is None or (loaded_at is not None and loaded_at > newest):
        newest = loaded_at
    return float("inf") if newest is None else (now - newest).total_seconds()


def last_use(model: ModelMemory, now: datetime) -> str:
    """Return a readable time since the last use."""
    if model.usage.last_used_at is None:
        return "never used"
    return f"last used {max((now - model.usage.last_used_at).total_seconds(), 0):.3g} s ago"
