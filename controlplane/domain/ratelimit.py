"""Token buckets (https://en.wikipedia.org/wiki/Token_bucket): so many requests at once, then so many per second."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit.

    Attributes:
        per_second: Requests per second in the long run.
        burst: Requests at once after a rest.
    """

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is left of a limit.

    Attributes:
        tokens: Requests that may be made at once, as of `at`.
        at: Monotonic time in seconds.
    """

    tokens: float
    at: float


def take(bucket: Bucket | None, rate: Rate, now: float) -> tuple[Bucket, float]:
    """Take one request out of a bucket; a new one is full.

    Returns:
        The bucket afterwards, and the seconds to wait before asking again: 0 where the request may be made. A request
        that was refused costs nothing, so that a client that waits as it is told gets through.
    """
    before = float(rate.burst) if bucket is None else bucket.tokens + max(0.0, now - bucket.at) * rate.per_second
    tokens = min(float(rate.burst), before)
    if tokens >= 1.0:
        return Bucket(tokens - 1.0, now), 0.0
    return Bucket(tokens, now), (1.0 - tokens) / rate.per_second
