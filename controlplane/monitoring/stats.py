"""Computes metrics from the rows of a window. Pure."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.metrics import Latency, LatencySource, Point, TrafficStats
from controlplane.monitoring.series import COLUMNS, COUNTED, FAILED, INDEX
from controlplane.monitoring.windows import Row
from controlplane.triton.metrics_page import QUANTILES

_TIMED = INDEX["timed"]
_COMPUTE = ("compute_input_seconds", "compute_infer_seconds", "compute_output_seconds")
_Rows = NDArray[np.float32]
_Array = NDArray[np.float64]


def failed(total: Row) -> float:
    """Return how many requests failed."""
    return float(sum(total[INDEX[name]] for name in FAILED))


def traffic_stats(
    total: Row,
    *,
    model: str,
    version: int | None,
    server: str | None,
    window_seconds: float,
    covered_seconds: float,
    latency: Latency,
    pending: float,
    cpu_known: bool,
) -> TrafficStats:
    """Return the metrics of a window from its totals.

    Args:
        total: Sum of each column of `COLUMNS`.
        model: See `TrafficStats`.
        version: See `TrafficStats`.
        server: See `TrafficStats`.
        window_seconds: See `TrafficStats`.
        covered_seconds: See `TrafficStats`.
        latency: See `TrafficStats`.
        pending: See `TrafficStats`.
        cpu_known: Whether the processor time of its instances is known.
    """
    value = {name: float(total[INDEX[name]]) for name in (*COUNTED, "cpu_seconds", "pending")}
    good, bad = value["requests"], failed(total)
    requests = good + bad
    seconds = covered_seconds if covered_seconds > 0 else math.inf
    return TrafficStats(
        model=model,
        version=version,
        server=server,
        window_seconds=window_seconds,
        covered_seconds=covered_seconds,
        requests=_count(requests),
        failures={name.partition(":")[2]: _count(value[name]) for name in FAILED if value[name] > 0},
        inferences=_count(value["inferences"]),
        executions=_count(value["executions"]),
        request_rate=requests / seconds,
        inference_rate=value["inferences"] / seconds,
        failure_rate=bad / seconds,
        failure_share=bad / requests if requests > 0 else None,
        request_seconds=_mean(value["request_seconds"], good),
        queue_seconds=_mean(value["queue_seconds"], good),
        compute_seconds=_mean(sum(value[name] for name in _COMPUTE), good),
        latency=latency,
        batch_size=_mean(value["inferences"], value["executions"]),
        pending=pending,
        pending_max=max(value["pending"], pending),
        cpu_cores=value["cpu_seconds"] / seconds if cpu_known else None,
    )


def point(total: Row, *, ago_seconds: float, seconds: float) -> Point:
    """Return one part of a curve."""
    good, bad = float(total[INDEX["requests"]]), failed(total)
    return Point(
        ago_seconds=ago_seconds,
        request_rate=(good + bad) / seconds,
        failure_rate=bad / seconds,
        request_seconds=_mean(float(total[INDEX["request_seconds"]]), good),
        p99_seconds=_mean(float(total[INDEX["q0.99"]]), float(total[_TIMED])),
        batch_size=_mean(float(total[INDEX["inferences"]]), float(total[INDEX["executions"]])),
        pending_max=float(total[INDEX["pending"]]),
    )


def latency(total: Row, bounds: Sequence[float] = ()) -> Latency:
    """Return percentiles, from the summaries if there are any, else from the histogram.

    Args:
        total: Sum of each column, followed by the histogram's buckets.
        bounds: Bounds of the histogram in seconds, the last one infinite.
    """
    if total[_TIMED] > 0:
        means = [_mean(float(total[INDEX[f"q{quantile}"]]), float(total[_TIMED])) for quantile in (0.5, 0.9, 0.99)]
        source = LatencySource.SUMMARY
    elif bounds and total[-1] > 0:
        buckets = total[len(COLUMNS) :]
        means = [histogram_quantile(quantile, bounds, buckets) for quantile in (0.5, 0.9, 0.99)]
        source = LatencySource.HISTOGRAM
    else:
        return Latency(source=LatencySource.NONE)
    return Latency(source=source, p50_seconds=means[0], p90_seconds=means[1], p99_seconds=means[2])


def histogram_quantile(quantile: float, bounds: Sequence[float], buckets: Sequence[float] | Row) -> float:
    """Return a quantile as Prometheus' ``histogram_quantile`` does: linear inside a bucket.

    Args:
        quantile: 0 to 1.
        bounds: Upper bounds, ascending, the last one infinite.
        buckets: Number of requests no slower than each bound; the last one is the number of all requests.
    """
    rank = quantile * float(buckets[-1])
    number = next(i for i, count in enumerate(buckets) if count >= rank)
    if math.isinf(bounds[number]):
        return bounds[number - 1] if number else math.nan  # slower than all bounds: the exact value is not known
    low, below = (bounds[number - 1], float(buckets[number - 1])) if number else (0.0, 0.0)
    within = float(buckets[number]) - below
    return low + (bounds[number] - low) * ((rank - below) / within if within > 0 else 1.0)


def slow(rows: _Rows, limit_seconds: float, bounds: Sequence[float] = ()) -> tuple[float, float]:
    """Return how many requests were slower than a limit, and how many have a known latency.

    With a summary, the share of each slot is interpolated linearly between its quantiles, and is zero above the 99.9th;
    with a histogram, requests are counted, with linear interpolation inside the limit's bucket.

    Args:
        rows: The rows of a window.
        limit_seconds: The limit.
        bounds: Bounds of the histogram.
    """
    timed = rows[:, _TIMED].astype(np.float64)
    known = timed > 0
    if known.any():
        weights = timed[known]
        quantiles: _Array = rows[known, _TIMED + 1 : _TIMED + 1 + len(QUANTILES)] / weights[:, None]
        shares = _shares(np.maximum.accumulate(quantiles, axis=1), limit_seconds)
        return float(((1.0 - shares) * weights).sum()), float(weights.sum())
    if bounds and len(rows):
        buckets: _Array = rows[:, len(COLUMNS) :].sum(axis=0, dtype=np.float64)
        finite = len(bounds) - 1
        fast = float(np.interp(limit_seconds, (0.0, *bounds[:finite]), (0.0, *buckets[:finite]))) if finite else 0.0
        return float(buckets[-1]) - fast, float(buckets[-1])
    return 0.0, 0.0


def _shares(quantiles: _Array, limit_seconds: float) -> _Array:
    """Return the share of each row's requests that were no slower than a limit, from the row's quantiles."""
    shares: _Array = np.ones(len(quantiles))
    below, reached = np.zeros(len(quantiles)), 0.0
    for number, quantile in enumerate(QUANTILES):
        above = quantiles[:, number]
        inside = (below <= limit_seconds) & (limit_seconds < above)
        part = (limit_seconds - below[inside]) / (above[inside] - below[inside])
        shares[inside] = reached + (quantile - reached) * part
        below, reached = above, quantile
    return shares


def _mean(total: float, count: float) -> float | None:
    return total / count if count > 0 else None


def _count(value: float) -> float:
    """Round a count that is almost whole: shares of a count that was spread over slots add up with rounding errors."""
    return float(round(value)) if abs(value - round(value)) < 1e-3 * max(1.0, value * 1e-3) else value
