"""Decaying rates of a model's requests and visits, kept in three numbers that change only when the model is used."""

import math
from dataclasses import replace
from datetime import datetime

from controlplane.memory.policy.types import Usage

HALF_LIFE_SECONDS = 3600.0
"""Time without use after which a use counts half. Chosen with `benchmarks.eviction`, which is flat around it."""
VISIT_PAUSE_SECONDS = 600.0
"""A use after a longer pause begins a visit."""
VISIT_HALF_LIFE_SECONDS = 86_400.0
"""Time without use after which a visit counts half. Longer than for requests, since visits are rare."""


def used(usage: Usage, at: datetime, count: int = 1, *, half_life_seconds: float = HALF_LIFE_SECONDS) -> Usage:
    """Return the usage after `count` requests that were seen at `at`.

    Each request adds ``ln 2 / half-life``, and the sum decays with the half-life, so a steady stream of r requests a
    second converges to r. The rates are as of `last_used_at`, so nothing changes while a model is idle. The rate of
    visits decays likewise, with a half-life of its own.

    Args:
        usage: The usage before.
        at: When the requests were seen; a time before the last use counts as the last use (clocks and polls may
            differ).
        count: The number of requests; 0 changes nothing.
        half_life_seconds: The half-life of the decay.
    """
    if count <= 0:
        return usage
    newest = at if usage.last_used_at is None else max(at, usage.last_used_at)
    visits = visit_rate(usage, newest)
    if usage.last_used_at is None or (newest - usage.last_used_at).total_seconds() > VISIT_PAUSE_SECONDS:
        visits += math.log(2) / VISIT_HALF_LIFE_SECONDS
    return replace(
        usage,
        last_used_at=newest,
        rate_per_second=rate(usage, newest, half_life_seconds=half_life_seconds)
        + count * math.log(2) / half_life_seconds,
        visits_per_second=visits,
    )


def rate(usage: Usage, now: datetime, *, half_life_seconds: float = HALF_LIFE_SECONDS) -> float:
    """Return the requests per second at `now`, decayed since the last use."""
    return _decayed(usage.rate_per_second, usage, now, half_life_seconds)


def visit_rate(usage: Usage, now: datetime) -> float:
    """Return the visits per second at `now`, decayed since the last use."""
    return _decayed(usage.visits_per_second, usage, now, VISIT_HALF_LIFE_SECONDS)


def _decayed(per_second: float, usage: Usage, now: datetime, half_life_seconds: float) -> float:
    if usage.last_used_at is None:
        return 0.0
    idle = (now - usage.last_used_at).total_seconds()
    return per_second * math.exp2(-idle / half_life_seconds) if idle > 0 else per_second
