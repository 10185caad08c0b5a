"""Measurements of an old and a new version that run side by side. Frozen; can be summed over instances."""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.latencies import Latencies, quantile
from controlplane.domain.rollout.statistics import Labels


class Signal(StrEnum):
    """Metrics in which a new version can be worse."""

    FAILURES = "failures"
    MEDIAN = "p50"
    """Answers slower than the old version's median."""
    TAIL = "p99"
    """Answers slower than the 99th percentile of the old version's."""
    DIFFERENCES = "differences"
    """Answers to the same request that differ; shadow only."""


class ArmCounts(BaseModel):
    """Measurements of one of the two versions."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    requests: int = Field(default=0, ge=0, description="Number of requests sent to the version.")
    failures: int = Field(default=0, ge=0, description="Number of failed requests.")
    latencies: Latencies = Field(default=Latencies(), description="Latencies of its successful responses.")

    def plus(self, other: Self) -> Self:
        """Return the sum."""
        return self.model_copy(
            update={
                "requests": self.requests + other.requests,
                "failures": self.failures + other.failures,
                "latencies": self.latencies.plus(other.latencies),
            }
        )

    def minus(self, earlier: Self) -> Self:
        """Return the difference to earlier counts."""
        return self.model_copy(
            update={
                "requests": max(self.requests - earlier.requests, 0),
                "failures": max(self.failures - earlier.failures, 0),
                "latencies": self.latencies.minus(earlier.latencies),
            }
        )


class LabelCounts(BaseModel):
    """Events of one signal at one share of the requests."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    signal: Signal = Field(description="The measured signal.")
    weight: float = Field(description="Share of requests that went to the new version at that time, 0 to 1.")
    old: int = Field(default=0, ge=0, description="Number of events of the old version.")
    new: int = Field(default=0, ge=0, description="Number of events of the new version.")


class Evidence(BaseModel):
    """Measurements since a rollout began."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    old: ArmCounts = Field(default=ArmCounts(), description="Measurements of the old version.")
    new: ArmCounts = Field(default=ArmCounts(), description="Measurements of the new version.")
    labels: tuple[LabelCounts, ...] = Field(default=(), description="Number of events by signal and share.")
    compared: int = Field(default=0, ge=0, description="Number of compared pairs of answers to the same request.")
    differing: int = Field(default=0, ge=0, description="Number of pairs that differ by more than the tolerance.")
    largest_difference: float = Field(default=0.0, ge=0, description="Largest absolute difference of an element.")
    refused: int = Field(
        default=0,
        ge=0,
        description="Number of requests that the old version answered because the new one was not loaded.",
    )
    skipped: int = Field(
        default=0, ge=0, description="Number of shadow requests that were not sent because too many were in flight."
    )

    def plus(self, other: Self) -> Self:
        """Return the sum of two instances' measurements."""
        sums = {(one.signal, one.weight): one for one in self.labels}
        for one in other.labels:
            before = sums.get((one.signal, one.weight))
            sums[one.signal, one.weight] = (
                one
                if before is None
                else before.model_copy(update={"old": before.old + one.old, "new": before.new + one.new})
            )
        return self.model_copy(
            update={
                "old": self.old.plus(other.old),
                "new": self.new.plus(other.new),
                "labels": tuple(sums.values()),
                "compared": self.compared + other.compared,
                "differing": self.differing + other.differing,
                "largest_difference": max(self.largest_difference, other.largest_difference),
                "refused": self.refused + other.refused,
                "skipped": self.skipped + other.skipped,
            }
        )

    def labelled(self, signal: Signal) -> list[Labels]:
        """Return the events of a signal, in the form that the test takes."""
        return [Labels(one.weight, one.old, one.new) for one in self.labels if one.signal is signal]


class ArmFigures(BaseModel):
    """One version's metrics, for display."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    requests: int = Field(description="Number of requests sent to the version.")
    failures: int = Field(description="Number of failed requests.")
    p50_seconds: float | None = Field(description="Median latency in seconds; null without an answer.")
    p99_seconds: float | None = Field(description="99th percentile of the latency in seconds; null without an answer.")

    @classmethod
    def of(cls, counts: ArmCounts) -> "ArmFigures":
        """Compute the metrics from the counts."""
        latencies = counts.latencies.counts
        return cls(
            requests=counts.requests,
            failures=counts.failures,
            p50_seconds=quantile(latencies, 0.5),
            p99_seconds=quantile(latencies, 0.99),
        )
