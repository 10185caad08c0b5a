"""How often a model is used: a rate that forgets, kept in two numbers and moved forward only when there is use."""

import math
from dataclasses import replace
from datetime import datetime

from controlplane.memory.policy.types import Usage

HALF_LIFE_SECONDS = 3600.0
"""After this time without use, a use counts half. Chosen with `benchmarks.eviction`; the result is flat around it."""


def used(usage: Usage, at: datetime, count: int = 1, *, half_life_seconds: float = HALF_LIFE_SECONDS) -> Usage:
    """Return the usage after `count` requests that were seen at `at`.

    Each request adds ``ln 2 / half-life``, and the sum decays with the half-life; a steady stream of r requests a
    second converges to r. The rate is as of `last_used_at`, so that nothing changes while a model is idle.

    Args:
        usage: Before.
        at: When they were seen; earlier than the newest use counts as at the newest use (clocks and polls may differ).
        count: How many; none changes nothing.
        half_life_seconds: How fast it forgets.
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
    """Requests per second as of now, decayed since the last use."""
    if usage.last_used_at is None:
        return 0.0
    idle = (now - usage.last_used_at).total_seconds()
    return usage.rate_per_second * math.exp2(-idle / half_life_seconds) if idle > 0 else usage.rate_per_second
