"""A lower bound on what any policy pays on ``bursts`` that knows the generator, but not the future.

`benchmarks.simulation.bound` is a bound for schedules that know every request. Here the policy knows what the generator
draws from: the distributions of a burst's requests and span, the models' chances (not which model has which chance; it
infers that from the bursts seen so far), and, more than a real policy, which burst a request belongs to. From this
follows the hazard of each model, its expected requests per second now given all earlier requests. A policy that keeps
the part x_i of model i in memory saves ``sum(x_i * hazard_i * cost_i)`` per second, and ``sum(x_i * size_i)`` is at
most the budget. So no policy saves more than one that keeps the models of the highest hazard * cost / size, the last
one in part (with one size and one cost: Panigrahy, Nain, Neglia and Towsley, "A New Upper Bound on Cache Hit
Probability for Non-Anticipative Caching Policies", 2020). First loads are not spared. Two simplifications only lower
the bound: moving a model back into memory costs nothing, and a request within `_SURE_SECONDS` of the previous one, or
within the time of a load, never needs a load (requests that wait for one load share it).

The bound holds for the mean over traces; a single trace can be cheaper by chance. Bursts are taken to begin as a
Poisson process, and the models' chances to be independent of each other.
"""

import numpy as np

from benchmarks.simulation.bound import Bound
from benchmarks.simulation.traces import BURST_LENGTH, BURST_SECONDS, Bursts, Floats, Ints, Trace

_SURE_SECONDS = 20.0
_STEPS = 20
_SPANS: Floats = np.exp(np.linspace(*np.log(BURST_SECONDS), 2 * _STEPS + 1)[1::2])
"""Spans of a burst, equally likely."""
_PARTS: Floats = (np.arange(_STEPS) + 0.5) / _STEPS
_CONTINUES = 1 - 1 / BURST_LENGTH
"""Likelihood that a burst has another request after each of its requests, before times are drawn."""


def informed_bound(trace: Trace, bursts: Bursts, budget: int, *, chances_known: bool = False) -> Bound:
    """Bound the mean cold starts, seconds of loading and bytes moved, each separately.

    Args:
        trace: The trace ``bursts``.
        bursts: The same requests with what their generator knows (`benchmarks.simulation.traces.bursts_of`).
        budget: Bytes.
        chances_known: Whether the policy also knows from the start which model has which chance.
    """
    sizes = trace.sizes.astype(np.float64)
    costs = np.stack([np.ones(len(sizes)), trace.load_seconds, sizes])
    paid = np.zeros(len(costs))
    seen = _Seen(bursts)
    for at, model, burst in zip(bursts.times, bursts.models, bursts.burst, strict=True):
        if seen.bursts_of[model] == 0:
            paid += costs[:, model]
        elif at - seen.used_at[model] > max(_SURE_SECONDS, trace.load_seconds[model]):
            hazards = seen.hazards(at, chances_known=chances_known)
            values = hazards * costs / sizes
            for row, value in enumerate(values):
                room = budget - sizes[value > value[model]].sum()
                paid[row] += costs[row, model] * (1 - min(max(room / sizes[model], 0.0), 1.0))
        seen.add(at, model, burst)
    return Bound(*paid.tolist())


def expected_requests(requests: Ints, spread: Floats, idle: Floats) -> Floats:
    """Return the expected requests per second of bursts now, given their requests so far.

    The times of the k requests of a burst are uniform within its span S. Given S, its start, and the part r of the span
    that is left, the number of requests still to come has a negative binomial distribution, with the weight
    ``S**-k / (1 - q r)**(k + 1)`` and the rate ``(k + 1) q / (S (1 - q r))``, where q is `_CONTINUES`. Both are summed
    over a grid of spans and starts.

    Args:
        requests: The number of requests of each burst so far.
        spread: Seconds from its first to its latest request.
        idle: Seconds since its latest request.
    """
    count, spread, idle = requests[:, None, None].astype(np.float64), spread[:, None, None], idle[:, None, None]
    span = _SPANS[None, :, None]
    room = np.maximum(span - spread, 0.0)
    before = _PARTS[None, None, :] * room  # seconds from the start of the burst to its first request
    left = 1 - _CONTINUES * np.clip((span - before - spread - idle) / span, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        likelihood = np.log(room) - count * np.log(span) - (count + 1) * np.log(left)
    weight = np.exp(likelihood - np.maximum(likelihood.max(axis=(1, 2), keepdims=True), -1e300))
    # Without time left there is no rate; `left` is 1 then.
    rate = np.where(left < 1, (count + 1) * _CONTINUES / (span * left), 0.0)
    total = weight.sum(axis=(1, 2))
    return np.divide((weight * rate).sum(axis=(1, 2)), total, out=np.zeros_like(total), where=total > 0)


class _Seen:
    """The requests so far: the requests of each burst, and the bursts of each model."""

    def __init__(self, bursts: Bursts) -> None:
        models, number = len(bursts.rates), int(bursts.burst.max()) + 1
        self._rates = bursts.rates
        self._requests, self._model = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
        self._first, self._last = np.zeros(number), np.zeros(number)
        self._open: list[int] = []
        self.bursts_of = np.zeros(models, dtype=np.int64)
        self.used_at = np.full(models, -np.inf)

    def add(self, at: float, model: int, burst: int) -> None:
        if self._requests[burst] == 0:
            self._first[burst], self._model[burst] = at, model
            self._open.append(burst)
            self.bursts_of[model] += 1
        self._requests[burst] += 1
        self._last[burst] = self.used_at[model] = at

    def hazards(self, at: float, *, chances_known: bool) -> Floats:
        """Return the expected requests per second of each model; 0 before its first request."""
        hazards = self._rates.copy() if chances_known else self._expected_rates(at)
        self._open = [burst for burst in self._open if at - self._first[burst] < BURST_SECONDS[1]]
        now = np.array(self._open, dtype=np.int64)
        within = expected_requests(self._requests[now], self._last[now] - self._first[now], at - self._last[now])
        np.add.at(hazards, self._model[now], within)
        hazards[self.bursts_of == 0] = 0.0
        return hazards

    def _expected_rates(self, at: float) -> Floats:
        """Return the mean of each model's rate of bursts, given the number of its bursts so far."""
        counts, which = np.unique(self.bursts_of, return_inverse=True)
        likelihood = counts[:, None] * np.log(self._rates) - self._rates * at
        weight = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
        means: Floats = (weight @ self._rates) / weight.sum(axis=1)
        return means[which]
