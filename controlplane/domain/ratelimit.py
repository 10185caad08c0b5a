"""Token buckets (https://en.wikipedia.org/wiki/Token_bucket): a burst of requests, then a constant rate."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate limit.

    Attributes:
        per_second: Requests per second in the long run.
        burst: Requests at once after a pause.
    """

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Remaining capacity of a limit.

    Attributes:
        tokens: Requests that may be made at once, as of `at`.
        at: Monotonic time in seconds.
    """

    tokens: float
    at: float


def take(bucket: Bucket | None, rate: Rate, now: float) -> tuple[Bucket, float]:
    """Take one request out of a bucket; a new bucket is full.

    Returns:
        The bucket afterwards, and the seconds to wait before the next attempt: 0 if the request is permitted. A refused
        request costs no tokens, so a client that waits as instructed succeeds.
    """
    before = float(rate.burst) if bucket is None else bucket.tokens + max(0.0, now - bucket.at) * rate.per_second
    tokens = min(float(rate.burst), before)
    if tokens >= 1.0:
        return Bucket(tokens - 1.0, now), 0.0
    return Bucket(tokens, now), (1.0 - tokens) / rate.per_second
