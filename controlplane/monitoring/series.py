"""The metrics of one version on one server: continuous counters and windows.

Pure data. Triton's counters restart at zero when a model is loaded again; these do not.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from controlplane.monitoring.windows import Row, Windows
from controlplane.triton.metrics_page import COUNTERS, QUANTILES, REASONS, VersionSample

FAILED = tuple(f"failed:{reason}" for reason in REASONS)
COUNTED = (*(name for name, _ in COUNTERS.values()), *FAILED)
"""Triton's counters."""
COLUMNS = (*COUNTED, "cpu_seconds", "pending", "timed", *(f"q{quantile}" for quantile in QUANTILES))
"""The columns of a window. ``timed`` is the number of requests whose quantiles are known, ``q0.99`` the sum over these
requests of the quantile at the time, so that the quantile of a window is their mean."""
INDEX = {name: number for number, name in enumerate(COLUMNS)}
_COUNTED = len(COUNTED)
_CPU, _PENDING, _TIMED = INDEX["cpu_seconds"], INDEX["pending"], INDEX["timed"]

_Key = TypeVar("_Key", str, float)


class Series:
    """The metrics of one version since this process began to scrape it.

    Args:
        at: When it was first seen.
        sample: Its counters at that time if it may have served before: they are the baseline and count as zero. None if
            it appeared between two scrapes: then everything in its first sample happened since the scrape before.
        bounds: Bounds of its histogram in seconds, the last one infinite; empty if it has none.

    Attributes:
        began_at: When it was first seen.
        seen_at: When it was last seen.
        totals: Sums since then, in the order of the counters and ``cpu_seconds``; they never decrease.
        pending: Requests that wait or run now.
        windows: The counts by time.
    """

    def __init__(self, at: float, sample: VersionSample | None, bounds: tuple[float, ...] = ()) -> None:
        self.began_at = self.seen_at = at
        self.bounds = bounds
        self.totals: Row = np.zeros(_CPU + 1)
        self.pending = 0.0
        self.windows = Windows(len(COLUMNS) + len(bounds), (_PENDING,))
        self._before: VersionSample | None = sample
        self._cpu_before: float | None = None

    @property
    def nbytes(self) -> int:
        """Size of its windows in bytes."""
        return self.windows.nbytes

    def gone(self) -> None:
        """Record that the version is not on the server's page; if it appears again, it was loaded again."""
        self._before, self._cpu_before, self.pending = None, None, 0.0

    def take(self, sample: VersionSample, at: float, cpu_seconds: float | None = None, since: float = -1.0) -> None:
        """Add a sample.

        Args:
            sample: The sample.
            at: When it was taken.
            cpu_seconds: Processor time of its processes since they started; None if it is not known.
            since: Time of the previous scrape of the server; by default, of the previous sample of this version.
        """
        row: Row = np.zeros(len(COLUMNS) + len(self.bounds))
        before = self._before
        if before is None or is_reset(before, sample):
            before = VersionSample()
        for number, name in enumerate(COUNTED):
            row[number] = sample.counters.get(name, 0.0) - before.counters.get(name, 0.0)
        if cpu_seconds is not None and self._cpu_before is not None:
            row[_CPU] = max(cpu_seconds - self._cpu_before, 0.0)
        row[_PENDING] = sample.pending
        if row[0] and all(quantile in sample.quantiles for quantile in QUANTILES):
            row[_TIMED] = row[0]
            for number, quantile in enumerate(QUANTILES, _TIMED + 1):
                row[number] = row[0] * sample.quantiles[quantile]
        for number, bound in enumerate(self.bounds, len(COLUMNS)):
            row[number] = sample.buckets.get(bound, 0.0) - before.buckets.get(bound, 0.0)
        if row.any():
            self.windows.add(since if since >= 0 else self.seen_at, at, row)
            self.totals += row[: _CPU + 1]
        self.pending, self.seen_at = sample.pending, at
        self._before, self._cpu_before = sample, cpu_seconds


def is_reset(before: VersionSample, after: VersionSample) -> bool:
    """Return whether counters restarted at zero between two scrapes: one of them is smaller than before."""
    return _smaller(before.counters, after.counters) or _smaller(before.buckets, after.buckets)


def bounds_of(sample: VersionSample) -> tuple[float, ...]:
    """Return the bounds of a sample's histogram."""
    return tuple(sorted(sample.buckets)) if math.inf in sample.buckets else ()


def _smaller(before: Mapping[_Key, float], after: Mapping[_Key, float]) -> bool:
    return any(after.get(name, 0.0) < value for name, value in before.items())
