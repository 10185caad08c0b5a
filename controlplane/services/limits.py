"""Request limits per caller, on this instance alone."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from controlplane.domain.ratelimit import Bucket, Rate, take
from controlplane.errors import RateLimitedError

_KEPT = 10_000
"""Number of callers that are tracked at the same time. A forgotten caller starts with a full bucket again."""


class RateLimits:
    """Counts requests; used from the event loop alone.

    Args:
        per_second: The default rate; 0 is no limit.
        burst: The default number of requests at once.
        monotonic: Returns a monotonic time in seconds.
    """

    def __init__(self, per_second: float, burst: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._default = Rate(per_second, burst)
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, who: str, per_second: float | None = None, burst: int | None = None) -> None:
        """Count one request.

        Args:
            who: The caller.
            per_second: The caller's own rate, if any.
            burst: The caller's own number of requests at once, if any.

        Raises:
            RateLimitedError: The limit is exceeded; the details say when the next request may be made.
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
