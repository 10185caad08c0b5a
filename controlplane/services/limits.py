"""Limits on requests, by whoever makes them; of this instance alone."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from controlplane.domain.ratelimit import Bucket, Rate, take
from controlplane.errors import RateLimitedError

_KEPT = 10_000
"""Buckets kept: that many who ask at once are told apart. One that is forgotten begins full again."""


class RateLimits:
    """Counts requests; used from the event loop alone.

    Args:
        per_second: The default; 0 is no limit.
        burst: The default of requests at once.
        monotonic: Gives a time that only grows, in seconds.
    """

    def __init__(self, per_second: float, burst: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._default = Rate(per_second, burst)
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, who: str, per_second: float | None = None, burst: int | None = None) -> None:
        """Count one request.

        Args:
            who: Whose limit it is.
            per_second: Their own limit, where they have one.
            burst: Their own number of requests at once.

        Raises:
            RateLimitedError: It is one too many; the details say when the next may be made.
        """
        rate = Rate(
            self._default.per_second if per_second is None else per_second,
            self._default.burst if burst is None else burst,
        )
        if rate.per_second <= 0:
            return
        bucket, wait = take(self._buckets.pop(who, None), rate, self._monotonic())
        self._buckets[who] = bucket
        if len(self._buckets) > _KEPT:
            self._buckets.popitem(last=False)
        if wait > 0:
            raise RateLimitedError(
                f"too many requests: at most {rate.per_second:g} per second and {rate.burst} at once; try again in "
                f"{wait:.1f} s",
                retry_after_seconds=math.ceil(wait),
                rate_per_second=rate.per_second,
                burst=rate.burst,
            )
