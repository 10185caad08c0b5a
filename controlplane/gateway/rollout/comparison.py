"""Measures an old and a new version that answer side by side. Mutable; belongs to one event loop. No I/O, no clock.

A latency counts as slow if it exceeds a threshold that is computed from the old version's earlier answers. The new
version's latencies are first divided by ``1 + tolerance``. So if it is at most that much slower, its answers are slow
no more often than the old one's, whatever the threshold is; the test needs nothing more (`domain.rollout.statistics`).
"""

from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.domain.evidence import ArmCounts, Evidence, LabelCounts, Signal
from controlplane.domain.latencies import Latencies, bucket_of, quantile_bucket

SETTLING_REQUESTS = 10
"""Number of first answers of the new version whose latency is not used, because caches and arenas are cold."""
_THRESHOLD_REQUESTS = 50
"""A threshold is computed from at least this many answers of the old version, and again after as many more."""
_FAIR_WEIGHT = 0.5
"""Up to this share the new version has no more load than the old one; above it, the load alone makes it slower."""
_SHADOW_WEIGHT = 0.5
"""In a shadow rollout each version gets every request, so an event comes from either with the same probability."""


class Arm(StrEnum):
    """Which of the two versions."""

    OLD = "old"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Answer:
    """How one version answered one request.

    Attributes:
        failed: Whether the answer is an error that the version caused; errors that the client caused do not count.
        seconds: The latency.
    """

    failed: bool
    seconds: float


@dataclass
class _Counts:
    requests: int = 0
    failures: int = 0
    latencies: dict[int, int] = field(default_factory=dict)

    def frozen(self) -> ArmCounts:
        return ArmCounts(
            requests=self.requests, failures=self.failures, latencies=Latencies(counts=dict(self.latencies))
        )


class SplitMeter:
    """Counts the answers of two versions.

    Args:
        latency_tolerance: The share by which the new version may be slower.
    """

    def __init__(self, latency_tolerance: float) -> None:
        self._allowed = 1 + latency_tolerance
        self._arms = {Arm.OLD: _Counts(), Arm.NEW: _Counts()}
        self._labels: dict[tuple[Signal, float], dict[Arm, int]] = {}
        self._thresholds: dict[Signal, int] = {}
        self._threshold_at = _THRESHOLD_REQUESTS
        self._compared = self._differing = self._refused = self._skipped = 0
        self._largest = 0.0

    def split(self, arm: Arm, answer: Answer, weight: float) -> None:
        """Count a request that was sent to one version at random, to the new one with the probability ``weight``."""
        self._label(arm, answer, weight, fair=weight <= _FAIR_WEIGHT)
        self._count(arm, answer)

    def mirrored(self, old: Answer, new: Answer) -> None:
        """Count a request that was sent to both versions."""
        for arm, answer in ((Arm.OLD, old), (Arm.NEW, new)):
            self._label(arm, answer, _SHADOW_WEIGHT, fair=True)
        self._count(Arm.OLD, old)
        self._count(Arm.NEW, new)

    def chosen(self, arm: Arm, answer: Answer) -> None:
        """Count a request that named its version; it has no effect on the comparison."""
        self._count(arm, answer)

    def compared(self, *, differs: bool, largest: float) -> None:
        """Count a comparison of two answers; ``largest`` is the largest absolute difference of an element."""
        self._compared += 1
        self._differing += differs
        self._largest = max(self._largest, largest)

    def refused(self) -> None:
        """Count a request that the old version answered because the new version was unavailable."""
        self._refused += 1

    def skipped(self) -> None:
        """Count a copy that was not sent."""
        self._skipped += 1

    def evidence(self) -> Evidence:
        """Return the counts."""
        return Evidence(
            old=self._arms[Arm.OLD].frozen(),
            new=self._arms[Arm.NEW].frozen(),
            labels=tuple(
                LabelCounts(signal=signal, weight=weight, old=counts[Arm.OLD], new=counts[Arm.NEW])
                for (signal, weight), counts in self._labels.items()
            ),
            compared=self._compared,
            differing=self._differing,
            largest_difference=self._largest,
            refused=self._refused,
            skipped=self._skipped,
        )

    def _label(self, arm: Arm, answer: Answer, weight: float, *, fair: bool) -> None:
        if answer.failed:
            self._event(Signal.FAILURES, arm, weight)
            return
        if not fair or self._arms[Arm.NEW].requests < SETTLING_REQUESTS:
            return
        bucket = bucket_of(answer.seconds / self._allowed if arm is Arm.NEW else answer.seconds)
        for signal, limit in self._thresholds.items():
            if bucket > limit:
                self._event(signal, arm, weight)

    def _event(self, signal: Signal, arm: Arm, weight: float) -> None:
        self._labels.setdefault((signal, weight), {Arm.OLD: 0, Arm.NEW: 0})[arm] += 1

    def _count(self, arm: Arm, answer: Answer) -> None:
        counts = self._arms[arm]
        counts.requests += 1
        if answer.failed:
            counts.failures += 1
            return
        bucket = bucket_of(answer.seconds)
        counts.latencies[bucket] = counts.latencies.get(bucket, 0) + 1
        if arm is Arm.OLD and counts.requests - counts.failures >= self._threshold_at:
            self._threshold_at = counts.requests - counts.failures + _THRESHOLD_REQUESTS
            for signal, share in ((Signal.MEDIAN, 0.5), (Signal.TAIL, 0.99)):
                limit = quantile_bucket(counts.latencies, share)
                assert limit is not None
                self._thresholds[signal] = limit
