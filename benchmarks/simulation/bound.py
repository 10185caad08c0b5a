"""A lower bound on what any schedule pays, also one that knows the future. Aware of size and cost.

Between two requests for the same model it is either kept, which takes its size all the time in between, or loaded
again, which costs. With x the part that is kept, this is the interval formulation of caching with sizes and costs
(Albers, Arora and Khanna, "Page Replacement for General Caching Problems", SODA 1999)::

    min  sum of cost_i * (1 - x_i)    over the intervals i
    s.t. for each request j:  sum of size_i * x_i over the i that span j  <=  budget - size of what j asks for
         0 <= x_i <= 1

It lets models be kept in parts, which only lowers the optimum. With a price p_j >= 0 on a byte at each request, weak
duality says that, for *any* prices::

    sum over i of min(cost_i, size_i * sum of p_j over the j it spans)  -  sum over j of p_j * (budget - size_j)

is no more than that optimum. One price for all times is the bound PFOO-L of Berger, Beckmann and Harchol-Balter
("Practical Bounds on Optimal Caching with Variable Object Sizes", SIGMETRICS 2018); we start from the best such price
and then let it vary over time, by gradient ascent, as far as it raises the bound. To this come the first loads,
which every schedule pays.

Requests are taken at their arrival: a schedule that keeps requests waiting so long that it serves some out of order is
not bound by it. The time that unloads take is left out, which only lowers the bound.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.traces import Floats, Ints, Trace

_WINDOWS = 4000
"""Prices over time; each holds for a run of requests."""


@dataclass(frozen=True)
class Bound:
    """No schedule has less than each of these; one schedule need not reach all three."""

    cold_starts: float
    load_seconds: float
    bytes_moved: float


@dataclass(frozen=True)
class _Intervals:
    model: Ints
    start: Ints
    end: Ints


def lower_bound(trace: Trace, budget: int, iterations: int = 300) -> Bound:
    """Bound the cold starts, the seconds of loading and the bytes moved, each separately."""
    order = np.lexsort((np.arange(len(trace.models)), trace.models))
    models = trace.models[order]
    again = models[1:] == models[:-1]
    intervals = _Intervals(models[1:][again], order[:-1][again], order[1:][again])
    first = np.unique(trace.models)
    sizes = trace.sizes.astype(np.float64)
    ones = np.ones(len(sizes))
    return Bound(
        *(
            float(cost[first].sum()) + _dual(trace, intervals, cost, float(budget), iterations)
            for cost in (ones, trace.load_seconds, sizes)
        )
    )


def _dual(trace: Trace, intervals: _Intervals, cost: Floats, budget: float, iterations: int) -> float:
    count = len(trace.models)
    # Sizes in units of the budget and costs in units of their mean keep the steps' size independent of the case.
    size = trace.sizes[intervals.model] / budget
    scale = float(cost.mean())
    price_of = cost[intervals.model] / scale
    room = 1.0 - trace.sizes[trace.models] / budget
    window = np.minimum(np.arange(count) * min(_WINDOWS, count) // count, _WINDOWS - 1)
    room_by_window = np.bincount(window, weights=room)
    inside = intervals.end - intervals.start > 1
    size, price_of, start, end = size[inside], price_of[inside], intervals.start[inside], intervals.end[inside]

    def value(prices: Floats) -> tuple[float, Floats]:
        paid = np.concatenate([[0.0], np.cumsum(prices[window])])
        rent = size * (paid[end] - paid[start + 1])  # the requests strictly between
        kept = rent < price_of
        held = np.bincount(start[kept] + 1, weights=size[kept], minlength=count + 1)
        held -= np.bincount(end[kept], weights=size[kept], minlength=count + 1)
        use = np.bincount(window, weights=np.cumsum(held)[:count])
        return float(np.minimum(rent, price_of).sum() - prices @ room_by_window), use - room_by_window

    best, prices = _one_price(value, len(room_by_window))
    per_window = count / len(room_by_window)
    step = 0.3
    average = prices.copy()
    _, gradient = value(prices)
    for iteration in range(iterations):
        # Multiplicative: prices stay positive, and quiet times keep low ones.
        relative = gradient / per_window
        prices = prices * np.exp(step / (1 + iteration / 30) * np.clip(relative, -2, 2))
        average = 0.9 * average + 0.1 * prices
        reached, gradient = value(prices)
        best = max(best, reached, value(average)[0])
    return best * scale


def _one_price(value, windows: int) -> tuple[float, Floats]:  # type: ignore[no-untyped-def]
    low, high = -20.0, 5.0
    for _ in range(60):  # the dual is concave in the price: look where its slope changes sign
        middle = (low + high) / 2
        slope = value(np.full(windows, np.exp(middle)))[1].sum()
        low, high = (middle, high) if slope > 0 else (low, middle)
    prices = np.full(windows, np.exp(low))
    return max(value(prices)[0], 0.0), prices
