"""The default policy: value is reload cost times the likelihood of the next use, per byte that an eviction frees.

It belongs to the GreedyDual-Size-Frequency family: Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms" (USITS
1997), value an entry at cost / size; Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
Caching Policy" (HPL-98-69R1, 1998), at frequency * cost / size. Both age by an offset that grows with each eviction.
Here the value is a hazard, expected reload seconds per second and byte, and it ages with time. There are three
predictors:

- *rate*: the decaying rate of requests. It is accurate when popularity lasts for hours or more.
- *recency*: 1 / the time since the last use, the hazard of a heavy-tailed gap. It follows bursts, and equals LRU for
  models of one size and cost. (Blankstein, Sen and Freedman, "Hyperbolic Caching", USENIX ATC 2017, use such a value,
  n / time.)
- *visits*: the decaying rate of visits, plus a hazard within a visit that falls with the square of the time since the
  last use. A visit counts once, however many requests it has. It is accurate for bursts when some models have more of
  them than others.

None is best for every workload: on bursts the rate keeps models whose burst is over, and without bursts recency
forgets popular models. So all are simulated in ghost caches (sets of names, without memory) that count the loads each
would have needed. The predictor with the lower recent cost decides. (Set duelling: Qureshi et al., "Adaptive Insertion
Policies for High Performance Caching", ISCA 2007; choosing among experts by regret: Vietri et al., "Driving Cache
Replacement with ML-based LeCaR", HotStorage 2018.)
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
from controlplane.memory.policy.usage import HALF_LIFE_SECONDS, VISIT_HALF_LIFE_SECONDS, rate, visit_rate
from controlplane.memory.policy.victims import freed, select_victims

_KEPT = 1 - 1 / 500
"""Decay of a ghost cache's cost with each load in any of them; the last 500 loads or so decide."""
_CLEARLY = 0.95
"""Another predictor takes over when its cost is below this share of the current one's."""
_SOON_SECONDS = 1.0
"""Added to the time since the last use: uses are seen by polling, so shorter times are not meaningful."""
_WITHIN_SECONDS = 10.0
"""Scale of the hazard within a visit, ``_WITHIN_SECONDS / (idle + 1)²``: 1 in 10 hours after 10 minutes without use."""

_GIB = 2**30
_DAY_SECONDS = 86_400


class Predictor(StrEnum):
    """Predictor of the next use."""

    RATE = "rate"
    RECENCY = "recency"
    VISITS = "visits"


@dataclass(frozen=True, slots=True)
class ValuePolicy:
    """Expected seconds of reloading that each byte saves, with one predictor."""

    outlook: Predictor = Predictor.RATE
    half_life_seconds: float = HALF_LIFE_SECONDS

    @property
    def name(self) -> str:
        """Name of the policy."""
        return f"cost by {self.outlook}"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Return the expected seconds of reloading per second and GiB."""
        # The hottest code in the policies, called for each loaded model at each choice: no generators, no calls. `uses`
        # computes the same; a test checks that both agree.
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
            visits = 0.0
            if self.outlook is Predictor.VISITS and newest is not None:
                idle = (now - newest).total_seconds()
                visits = usage.visits_per_second * (exp2(-idle / VISIT_HALF_LIFE_SECONDS) if idle > 0 else 1.0)
            loaded_at = model.loaded_at
            if newest is None or (loaded_at is not None and loaded_at > newest):
                newest = loaded_at
            if newest is None:
                return 0.0
            idle = (now - newest).total_seconds()
            since = idle + _SOON_SECONDS if idle > 0 else _SOON_SECONDS
            uses = 1.0 / since if self.outlook is Predictor.RECENCY else visits + _WITHIN_SECONDS / (since * since)
        return model.load_seconds * uses * _GIB / (size or 1)

    def uses(self, model: ModelMemory, now: datetime) -> float:
        """Return the expected uses per second now."""
        if self.outlook is Predictor.RATE:
            return rate(model.usage, now, half_life_seconds=self.half_life_seconds)
        since = max(idle_seconds(model, now), 0.0) + _SOON_SECONDS
        if self.outlook is Predictor.RECENCY:
            return 1.0 / since
        return visit_rate(model.usage, now) + _WITHIN_SECONDS / since**2

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Return the cost, likelihood and size as text."""
        size = sum(footprint.bytes for footprint in model.footprint.values())
        if self.outlook is Predictor.RATE:
            likely = f"{self.uses(model, now) * 3600:.3g} uses an hour are expected"
        else:
            likely = last_use(model, now)
        if self.outlook is Predictor.VISITS:
            likely += f", {visit_rate(model.usage, now) * _DAY_SECONDS:.3g} visits a day are expected"
        return f"a reload costs {model.load_seconds:.3g} s, {likely}, it frees {size_text(size)}"

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
class GhostCache:
    """Simulated cache: what would be loaded if one policy had always decided, and what that would have cost.

    Attributes:
        policy: The policy.
        loaded: Names of models; their sizes are always taken from the models as they are now.
        paid_seconds: Seconds of loading, with older ones weighted less.
    """

    policy: ValuePolicy
    loaded: frozenset[str] = frozenset()
    paid_seconds: float = 0.0

    def loads(
        self, used: ModelMemory, models: Mapping[str, ModelMemory], budgets: Mapping[str, int], now: datetime
    ) -> Self:
        """Add a model that is not in the cache, evicting others for it."""
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
    """Policy that uses the predictor with the lower recent cost. Immutable: `learned` returns the next value.

    Attributes:
        chosen: The policy that decides.
        shadows: One ghost cache for each predictor.
    """

    chosen: ValuePolicy = field(default_factory=ValuePolicy)
    shadows: tuple[GhostCache, ...] = field(default_factory=_shadows)

    @property
    def name(self) -> str:
        """Name of the policy in the settings."""
        return "cost"

    def score(self, model: ModelMemory, now: datetime) -> float:
        """Return the expected seconds of reloading per second and GiB."""
        return self.chosen.score(model, now)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        """Return the cost, likelihood and size as text."""
        return self.chosen.explain(model, now)

    def learned(
        self, used: ModelMemory, models: Mapping[str, ModelMemory], budgets: Mapping[str, int], now: datetime
    ) -> Self:
        """Return the policy after a use. The cost is negligible unless a ghost cache must load."""
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
