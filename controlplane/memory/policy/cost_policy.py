"""The default policy: what a reload would cost, how likely the next use is, and the bytes that it frees.

The GreedyDual-Size-Frequency family: Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms" (USITS 1997), value an
entry at cost / size; Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy"
(HPL-98-69R1, 1998), at frequency * cost / size. Both age by an offset that grows with each eviction. Here the value is
a hazard, expected reload seconds per second and byte, and it ages with time:

- *rate*: the decaying rate of requests. It is right where popularity lasts, for hours and more.
- *recency*: 1 / the time since the last use, the hazard of a heavy-tailed gap. It is right where use comes in bursts,
  and with models of one size and cost it is LRU. (Blankstein, Sen and Freedman, "Hyperbolic Caching", USENIX ATC 2017,
  use such a value, n / time.)

Neither is right everywhere: on bursts the rate keeps what is over, and without bursts recency forgets what is popular.
So both are tried in the shadow, as sets of names without any memory: what would each have had to load? The one that
pays less, lately, decides. (Set duelling: Qureshi et al., "Adaptive Insertion Policies for High Performance Caching",
ISCA 2007; choosing among experts by regret: Vietri et al., "Driving Cache Replacement with ML-based LeCaR", HotStorage
2018.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from math import exp2
from typing import Self

from controlplane.domain.units import size_text
from controlplane.memory.policy.policies import idle_seconds, last_use
from controlplane.memory.policy.types import Mode, ModelMemory
from controlplane.memory.policy.usage import HALF_LIFE_SECONDS, rate
from controlplane.memory.policy.victims import freed, select_victims

_KEPT = 1 - 1 / 500
"""What a shadow paid counts by this much less with each load in either; so about the last 500 loads decide."""
_CLEARLY = 0.95
"""The other outlook takes over when it pays less than this share of what the present one pays."""
_SOON_SECONDS = 1.0
"""Added to the time since the last use: uses are seen by polling, so times below this mean nothing."""


_GIB = 2**30


class Predictor(StrEnum):
    """How likely the next use is."""

    RATE = "rate"
    RECENCY = "recency"


@dataclass(frozen=True, slots=True)
class ValuePolicy:
    """Expected seconds of reloading that a byte saves, with one outlook."""

    outlook: Predictor = Predictor.RATE
    half_life_seconds: float = HALF_LIFE_SECONDS

    @property
    def name(self) -> str:
        """What it is called."""
        return f"cost by {self.outlook}"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Expected seconds of reloading per second and GiB."""
        # The hottest code there is, called for each loaded model at each choice: no generator, no calls. `uses` says
        # the same, and a test holds the two together.
        size = 0
        for footprint in model.footprint.values():
            size += footprint.bytes
        usage = model.usage
        newest = usage.last_used_at
        if self.outlook is Predictor.RATE:
            if newest is None:
                return 0.0
            idle = (now - newest).total_seconds()
            uses = usage.rate_per_second * exp2(-idle / self.half_life_seconds) if idle > 0 else usage.rate_per_second
        else:
            loaded_at = model.loaded_at
            if newest is None or (loaded_at is not None and loaded_at > newest):
                newest = loaded_at
            if newest is None:
                return 0.0
            idle = (now - newest).total_seconds()
            uses = 1.0 / (idle + _SOON_SECONDS) if idle > 0 else 1.0 / _SOON_SECONDS
        return model.load_seconds * uses * _GIB / (size or 1)

    def uses(self, model: ModelMemory, now: datetime) -> float:
        """Uses per second that are to be expected now."""
        if self.outlook is Predictor.RATE:
            return rate(model.usage, now, half_life_seconds=self.half_life_seconds)
        idle = idle_seconds(model, now)
        return 1.0 / (idle + _SOON_SECONDS) if idle > 0 else 1.0 / _SOON_SECONDS

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Cost, likelihood and size."""
        size = sum(footprint.bytes for footprint in model.footprint.values())
        if self.outlook is Predictor.RATE:
            likely = f"{self.uses(model, now) * 3600:.3g} uses an hour are expected"
        else:
            likely = last_use(model, now)
        return f"a reload costs {model.load_seconds:.3g} s, {likely}, it frees {size_text(size)}"

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
class GhostCache:
    """What would be loaded if one policy had always decided, and what it would have paid.

    Attributes:
        policy: The policy.
        loaded: Names of models. Mere names: their sizes are asked of the models as they are now.
        paid_seconds: Seconds of loading, older ones counting less.
    """

    policy: ValuePolicy
    loaded: frozenset[str] = frozenset()
    paid_seconds: float = 0.0

    def loads(
        self, used: ModelMemory, models: Mapping[str, ModelMemory], budgets: Mapping[str, int], now: datetime
    ) -> Self:
        """Take a model in that is not in here, others leaving for it."""
        others = [models[name] for name in self.loaded if name in models]
        need = {
            device: sum([freed(model, device) for model in others]) + freed(used, device) - budgets.get(device, 0)
            for device in used.footprint
        }
        leaving = select_victims(others, need, self.policy, now) or ()
        return replace(self, loaded=(self.loaded - {model.model for model in leaving}) | {used.model})


def _shadows() -> tuple[GhostCache, ...]:
    return tuple(GhostCache(ValuePolicy(outlook)) for outlook in Predictor)


@dataclass(frozen=True, slots=True)
class CostPolicy:
    """The outlook that would have loaded less, lately. A value: `learned` returns the next one.

    Attributes:
        chosen: The policy that decides.
        shadows: One for each outlook.
    """

    chosen: ValuePolicy = field(default_factory=ValuePolicy)
    shadows: tuple[GhostCache, ...] = field(default_factory=_shadows)

    @property
    def name(self) -> str:
        """What it is called in the settings."""
        return "cost"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Expected seconds of reloading per second and GiB."""
        return self.chosen.score(model, now)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Cost, likelihood and size."""
        return self.chosen.explain(model, now)

    def learned(
        self, used: ModelMemory, models: Mapping[str, ModelMemory], budgets: Mapping[str, int], now: datetime
    ) -> Self:
        """The policy after a use. Costs nothing worth mentioning unless a shadow has to load."""
        if used.mode is Mode.PINNED or all(used.model in shadow.loaded for shadow in self.shadows):
            return self
        room = {
            device: budget - sum([freed(model, device) for model in models.values() if model.mode is Mode.PINNED])
            for device, budget in budgets.items()
        }
        shadows = tuple(
            replace(
                shadow if used.model in shadow.loaded else shadow.loads(used, models, room, now),
                paid_seconds=shadow.paid_seconds * _KEPT + (0 if used.model in shadow.loaded else used.load_seconds),
            )
            for shadow in self.shadows
        )
        best = min(shadows, key=lambda shadow: shadow.paid_seconds)
        present = next(shadow for shadow in shadows if shadow.policy == self.chosen)
        chosen = best.policy if best.paid_seconds < _CLEARLY * present.paid_seconds else self.chosen
        return replace(self, chosen=chosen, shadows=shadows)
