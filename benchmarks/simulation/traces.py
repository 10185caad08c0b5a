"""Request traces over a fleet of models, all from stated distributions and a seed.

The fleet: sizes are log-normal (median 150 MiB, sigma 1.2, cut to 5 MiB … 8 GiB); a load takes 1.2 s (process start and
imports, measured on the embedded Triton) plus size over a throughput that is log-normal over models (median 250 MiB/s,
sigma 0.6: some lie in a cache, some come from a far store, some optimise their graph for long).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MIB = 1024**2
DAY = 86_400.0
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival.

    Attributes:
        name: What it is called.
        times: Seconds since the start.
        models: Which model each asks for.
        sizes: Bytes of each model.
        load_seconds: Seconds of a load of each model.
        skewed: Whether few models get most of the requests.
    """

    name: str
    times: Floats
    models: Ints
    sizes: Ints
    load_seconds: Floats
    skewed: bool


Generator = np.random.Generator


def fleet(random: Generator, count: int) -> tuple[Ints, Floats]:
    sizes = np.clip(random.lognormal(np.log(150 * MIB), 1.2, count), 5 * MIB, 8192 * MIB).astype(np.int64)
    throughput = random.lognormal(np.log(250 * MIB), 0.6, count)
    return sizes, 1.2 + sizes / throughput


def zipf(count: int, exponent: float) -> Floats:
    weights: Floats = 1.0 / np.arange(1, count + 1) ** exponent
    return weights / weights.sum()


def poisson(random: Generator, requests: int, rate: float) -> Floats:
    return np.cumsum(random.exponential(1 / rate, requests))


def drawn(random: Generator, weights: Floats, requests: int) -> Ints:
    return random.choice(len(weights), size=requests, p=weights / weights.sum()).astype(np.int64)


def stationary(random: Generator, count: int, requests: int, rate: float) -> tuple[Floats, Ints]:
    """Zipf 1.0, the same for ever."""
    order = random.permutation(count)
    return poisson(random, requests, rate), order[drawn(random, zipf(count, 1.0), requests)]


def drifting(random: Generator, count: int, requests: int, rate: float) -> tuple[Floats, Ints]:
    """Zipf 1.0; every 10 minutes 1 % of the models change places in popularity, so that all do in a day or so."""
    times = poisson(random, requests, rate)
    ranks = drawn(random, zipf(count, 1.0), requests)
    order = random.permutation(count)
    models = np.empty(requests, dtype=np.int64)
    epochs = (times // 600).astype(np.int64)
    borders = np.flatnonzero(np.diff(epochs, prepend=-1))
    for start, end in zip(borders, [*borders[1:], requests], strict=True):
        models[start:end] = order[ranks[start:end]]
        swapped = random.choice(count, size=max(count // 100, 2), replace=False)
        order[swapped] = order[np.roll(swapped, 1)]
    return times, models


@dataclass(frozen=True)
class Bursts:
    """The requests of `bursts`, with what only their generator knows.

    Attributes:
        times: Seconds since the start, in order.
        models: Which model each request asks for.
        burst: The number of the burst that each request belongs to.
        rates: Bursts per second of each model.
    """

    times: Floats
    models: Ints
    burst: Ints
    rates: Floats


BURST_LENGTH = 30
"""Mean number of requests in a burst; geometric."""
BURST_SECONDS = (60.0, 1800.0)
"""Shortest and longest span of a burst; log-uniform."""
BURST_SKEW = 0.7
"""Exponent of the Zipf distribution of the models' bursts."""


def generate_bursts(random: Generator, count: int, requests: int, rate: float) -> Bursts:
    """Generate the requests of `bursts`."""
    order = random.permutation(count)
    number = requests // BURST_LENGTH + 1
    starts = np.sort(random.uniform(0, requests / rate, number))
    who = order[drawn(random, zipf(count, BURST_SKEW), number)]
    lengths = random.geometric(1 / BURST_LENGTH, number)
    spans = np.exp(random.uniform(*np.log(BURST_SECONDS), number))
    burst = np.repeat(np.arange(number), lengths)
    times = starts[burst] + random.uniform(0, 1, len(burst)) * spans[burst]
    first = np.argsort(times, kind="stable")[:requests]
    rates = np.empty(count)
    rates[order] = zipf(count, BURST_SKEW) * number / (requests / rate)
    return Bursts(times[first], who[burst][first], burst[first], rates)


def bursts(random: Generator, count: int, requests: int, rate: float) -> tuple[Floats, Ints]:
    """Models sleep and wake: a burst has a geometric number of requests (mean 30) spread over 1 to 30 minutes.

    Which model bursts next is Zipf 0.7, so that what was popular says less about what will be than what is.
    """
    made = generate_bursts(random, count, requests, rate)
    return made.times, made.models


def scans(random: Generator, count: int, requests: int, rate: float) -> tuple[Floats, Ints]:
    """Zipf 1.0, and every 4 hours one request to each model, in order, one every 5 seconds."""
    times, models = stationary(random, count, requests, rate)
    sweeps = np.arange(2 * 3600.0, times[-1], 4 * 3600.0)
    extra = (sweeps[:, None] + np.arange(count) * 5.0).ravel()
    return _first(np.concatenate([times, extra]), np.concatenate([models, np.tile(np.arange(count), len(sweeps))]),
                  requests)  # fmt: skip


def diurnal(random: Generator, count: int, requests: int, rate: float) -> tuple[Floats, Ints]:
    """Zipf 1.0, each model with a day of its own: its rate follows a sine of 24 hours, thinned to its phase."""
    candidates = requests * 2 + 2 * round(requests**0.5) * 10
    times = poisson(random, candidates, rate * 2)
    models = random.permutation(count)[drawn(random, zipf(count, 1.0), candidates)]
    phases = random.choice([0.0, 8 / 24, 16 / 24], size=count)  # three regions of the world
    activity = 0.5 + 0.5 * np.sin(2 * np.pi * (times / DAY + phases[models]))
    kept = random.uniform(0, 1, candidates) < activity
    return _first(times[kept], models[kept], requests)


def uniform(random: Generator, count: int, requests: int, rate: float) -> tuple[Floats, Ints]:
    """No skew at all: each request asks any model."""
    return poisson(random, requests, rate), random.integers(0, count, requests)


def recent(random: Generator, count: int, requests: int, rate: float) -> tuple[Floats, Ints]:
    """What LRU is made for: the next request asks the model at a Zipf 1.2 depth of the stack of recent use.

    With models of one size and one cost (see `make`), LRU is the best there is.
    """
    depths = drawn(random, zipf(count, 1.2), requests)
    stack = list(random.permutation(count))
    models = np.empty(requests, dtype=np.int64)
    for position, depth in enumerate(depths):
        model = stack.pop(depth)
        stack.insert(0, model)
        models[position] = model
    return poisson(random, requests, rate), models


def _first(times: Floats, models: Ints, requests: int) -> tuple[Floats, Ints]:
    order = np.argsort(times, kind="stable")[:requests]
    return times[order], models[order]


KINDS: dict[str, tuple[Callable[[Generator, int, int, float], Any], bool]] = {
    "zipf": (stationary, True),
    "drift": (drifting, True),
    "bursts": (bursts, True),
    "scans": (scans, True),
    "diurnal": (diurnal, True),
    "uniform": (uniform, False),
    "recency": (recent, False),
}


def make(name: str, *, models: int, requests: int, rate: float, seed: int) -> Trace:
    """One trace; its kind, and the models' sizes and costs, from the seed."""
    kind, skewed = KINDS[name]
    random = _random(name, seed)
    sizes, load_seconds = fleet(random, models)
    if name == "recency":
        sizes, load_seconds = np.full(models, 150 * MIB), np.full(models, 1.8)
    times, asked = kind(random, models, requests, rate)
    return Trace(name, times, asked, sizes, load_seconds, skewed)


def bursts_of(*, models: int, requests: int, rate: float, seed: int) -> Bursts:
    """Return the requests of the trace ``bursts`` that `make` returns, with what only their generator knows."""
    random = _random("bursts", seed)
    fleet(random, models)
    return generate_bursts(random, models, requests, rate)


def _random(name: str, seed: int) -> Generator:
    return np.random.default_rng([seed, sorted(KINDS).index(name)])
