"""A compact latency histogram that can be summed over instances and takes a few hundred bytes. Pure, frozen."""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

_GROWTH = 1.05
_LOG_GROWTH = math.log(_GROWTH)
_SMALLEST_SECONDS = 1e-5


def bucket_of(seconds: float) -> int:
    """Return a latency's bucket; bucket ``n`` ends at ``1e-5 * 1.05**n`` seconds."""
    return max(0, math.ceil(math.log(max(seconds, _SMALLEST_SECONDS) / _SMALLEST_SECONDS) / _LOG_GROWTH))


def quantile_bucket(counts: Mapping[int, int], share: float) -> int | None:
    """Return the bucket that ``share`` of the requests do not exceed; None without requests."""
    left = math.ceil(share * sum(counts.values()))
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            return bucket
    return None


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """Return the latency in seconds that ``share`` of the requests do not exceed (up to 5 % too high), or None."""
    bucket = quantile_bucket(counts, share)
    return None if bucket is None else _SMALLEST_SECONDS * _GROWTH**bucket


class Latencies(BaseModel):
    """Number of requests by latency bucket."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    counts: dict[int, int] = Field(
        default_factory=dict, description="Number of requests by bucket; bucket n ends at 1e-5 * 1.05**n seconds."
    )

    def plus(self, other: "Latencies") -> "Latencies":
        """Return the sum of two histograms."""
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return Latencies(counts=counts)

    def minus(self, earlier: "Latencies") -> "Latencies":
        """Return the difference to an earlier histogram; never negative, even if an instance's part was lost."""
        left = {bucket: count - earlier.counts.get(bucket, 0) for bucket, count in self.counts.items()}
        return Latencies(counts={bucket: count for bucket, count in left.items() if count > 0})
