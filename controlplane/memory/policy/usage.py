"""Decaying request rate of a model, kept in two numbers that change only when the model is used."""

import math
from dataclasses import replace
from datetime import datetime

from controlplane.memory.policy.types import Usage

HALF_LIFE_SECONDS = 3600.0
"""Time without use after which a use counts half. Chosen with `benchmarks.eviction`, which is flat around it."""


def used(usage: Usage, at: datetime, count: int = 1, *, half_life_seconds: float = HALF_LIFE_SECONDS) -> Usage:
    """Return the usage after `count` requests that were seen at `at`.

    Each request adds ``ln 2 / half-life``, and the sum decays with the half-life, so a steady stream of r requests a
    second converges to r. The rate is as of `last_used_at`, so nothing changes while a model is idle.

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
    return replace(
        usage,
        last_used_at=newest,
        rate_per_second=rate(usage, newest, half_life_seconds=half_life_seconds)
        + count * math.log(2) / half_life_seconds,
    )


def rate(usage: Usage, now: datetime, *, half_life_seconds: float = HALF_LIFE_SECONDS) -> float:
    """Return the requests per second at `now`, decayed since the last use."""
    if usage.last_used_at is None:
        return 0.0
    idle = (now - usage.last_used_at).total_seconds()
    return usage.rate_per_second * math.exp2(-idle / half_life_seconds) if idle > 0 else usage.rate_per_second
