"""Generates load on a model: N clients in a closed loop, each sending its next request when it has its response.

So the load adapts to the server, at most N requests are in flight, and throughput and mean latency obey Little's law (N
= throughput x mean latency). It does not show the latency of an open stream of arrivals that come faster than the
server answers: there, latency grows without bound, and a closed loop hides that ("coordinated omission").

A latency is the time from the call to the response in numpy arrays, as a Python client on this machine sees it: it
includes the client's own serialisation and, with many clients of a fast model, their waiting for this process's one
interpreter. Percentiles are nearest-rank over all responses of the window: the smallest observed latency that at least
p % of the responses did not exceed. Nothing is interpolated, and no response is left out.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.domain.samples import Tensors
from controlplane.domain.tuning import Measurement
from controlplane.errors import InferenceError, TritonTimeoutError
from controlplane.triton.client import TritonClient

_SLICES = 5
"""Number of slices of a window, from which the variation of its throughput is computed."""


@dataclass(frozen=True, slots=True)
class Load:
    """The amount and the duration of a load.

    Attributes:
        clients: Number of concurrent clients.
        warmup_seconds: Responses during this time are discarded.
        window_seconds: Duration of the measurement after it; extended if there are fewer responses than clients by
            then.
        timeout_seconds: Deadline of one request.
    """

    clients: int
    warmup_seconds: float
    window_seconds: float
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Observed:
    """The clients' results.

    Attributes:
        measurement: The figures; None if a request failed or the load was stopped.
        answers: The newest response to each request, by the request's position.
        failure: Why a request failed; empty if none did.
    """

    measurement: Measurement | None
    answers: Mapping[int, Tensors]
    failure: str = ""


@dataclass
class _Run:
    begin: float
    end: float
    load: Load
    latencies: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    answers: dict[int, Tensors] = field(default_factory=dict)
    failure: str = ""

    def over(self, now: float) -> bool:
        return bool(self.failure) or (now >= self.end and len(self.latencies) >= self.load.clients)


async def generate(
    client: TritonClient,
    triton_name: str,
    requests: Sequence[Tensors],
    load: Load,
    *,
    version: int,
    config: Mapping[str, Any],
    stop: Callable[[], bool] = lambda: False,
) -> Observed:
    """Send requests in turn for a while.

    Args:
        client: A client of its own, whose connection carries all of the load.
        triton_name: The model's name in Triton.
        requests: The requests; each client begins with a different one.
        load: The amount and the duration.
        version: The version to request.
        config: The model's configuration.
        stop: Called before each request; true ends the load without a measurement.

    Raises:
        TritonUnavailableError: The server is not reachable any more.
    """
    now = time.perf_counter()
    begin = now + load.warmup_seconds
    run = _Run(begin, begin + load.window_seconds, load)

    async def one(position: int) -> None:
        while not run.over(time.perf_counter()) and not stop():
            index = position % len(requests)
            position += 1
            sent = time.perf_counter()
            try:
                outputs, _ = await client.infer(
                    triton_name, requests[index], version=version, timeout=load.timeout_seconds, config=config
                )
            except (InferenceError, TritonTimeoutError) as error:
                run.failure = run.failure or error.message
                return
            answered = time.perf_counter()
            # Requests in flight at the end of the window are not counted, because later ones would be missing beside
            # them.
            if answered >= run.begin and not run.over(answered):
                run.latencies.append(answered - sent)
                run.moments.append(answered)
                run.answers[index] = outputs

    try:
        async with asyncio.TaskGroup() as group:
            for position in range(load.clients):
                group.create_task(one(position))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return Observed(_measured(run), run.answers, run.failure)


def _measured(run: _Run) -> Measurement | None:
    if run.failure or len(run.latencies) < run.load.clients:
        return None
    # A model that is slower than the window is measured until there are as many responses as clients.
    end = max(run.end, run.moments[-1])
    seconds = end - run.begin
    ordered = sorted(run.latencies)
    return Measurement(
        clients=run.load.clients,
        window_seconds=seconds,
        answers=len(ordered),
        throughput=len(ordered) / seconds,
        p50_seconds=percentile(ordered, 50),
        p99_seconds=percentile(ordered, 99),
        spread=_spread(run.moments, run.begin, end),
    )


def _spread(moments: Sequence[float], begin: float, end: float) -> float:
    """Return the relative standard error of the throughput: that of the responses per slice, over their mean."""
    counts = [0] * _SLICES
    for moment in moments:
        counts[min(_SLICES - 1, int((moment - begin) / (end - begin) * _SLICES))] += 1
    return statistics.stdev(counts) / math.sqrt(_SLICES) / statistics.mean(counts)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of values in ascending order: the ceil(p/100 x n)-th of them.

    Raises:
        ValueError: There are no values, or the percentage is not above 0 and at most 100.
    """
    if not ordered or not 0 < percent <= 100:
        raise ValueError(f"the {percent:g}th percentile of {len(ordered)} values is not defined")
    return ordered[math.ceil(percent / 100 * len(ordered)) - 1]
