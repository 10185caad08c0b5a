"""Tuning: possible settings, their measurements, and the choice of the best one. Pure.

A *trial* is one setting with its measurements, one for each number of concurrent clients. The search itself is in
`controlplane.services.tuning.search`.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Goal(StrEnum):
    """What is optimized."""

    THROUGHPUT = "throughput"
    """As many answers per second as possible."""
    P99 = "p99"
    """The lowest 99th percentile of the latency."""


class Objective(BaseModel):
    """The goal, and the limits that must hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    goal: Goal = Field(default=Goal.THROUGHPUT, description="What to optimise: throughput or p99.")
    max_p99_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="Maximum p99 latency.")
    min_throughput: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Minimum number of answers per second."
    )

    def meets(self, measured: "Measurement") -> bool:
        """Return whether a measurement meets the limits."""
        return self.shortfall(measured) == 0.0

    def shortfall(self, measured: "Measurement") -> float:
        """Return how far a measurement misses the limits: 0 meets them, 1 misses one of them by a factor of two."""
        missed = 0.0
        if self.max_p99_seconds is not None:
            missed = max(missed, measured.p99_seconds / self.max_p99_seconds - 1.0)
        if self.min_throughput is not None:
            missed = max(missed, self.min_throughput / max(measured.throughput, 1e-9) - 1.0)
        return missed

    def value(self, measured: "Measurement") -> float:
        """Return the value to maximize."""
        return measured.throughput if self.goal is Goal.THROUGHPUT else -measured.p99_seconds

    def __str__(self) -> str:
        limits = []
        if self.max_p99_seconds is not None:
            limits.append(f"a p99 of at most {self.max_p99_seconds * 1000:g} ms")
        if self.min_throughput is not None:
            limits.append(f"at least {self.min_throughput:g} requests/s")
        what = "the highest throughput" if self.goal is Goal.THROUGHPUT else "the lowest p99"
        return f"{what} with {' and '.join(limits)}" if limits else what


class Setting(BaseModel):
    """One point of the search space: the part of `DeploymentSettings` that tuning may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instances: int = Field(ge=1, description="Number of instances per device.")
    max_batch_size: int = Field(ge=0, description="Maximum batch size; 0: no batching.")
    queue_delay_microseconds: int | None = Field(
        default=None,
        ge=0,
        description="How long a request can wait to be batched with others; null: no dynamic batching.",
    )
    preferred_batch_sizes: tuple[int, ...] = Field(default=(), description="Batch sizes that the batcher prefers.")
    threads: int | None = Field(
        default=None, ge=1, description="Threads within an operator, per instance; null: the backend's default."
    )

    def __str__(self) -> str:
        words = [f"{self.instances} instance{'s' * (self.instances > 1)}"]
        if self.queue_delay_microseconds is not None:
            words.append(f"batch {self.max_batch_size} after {self.queue_delay_microseconds} µs")
            if self.preferred_batch_sizes:
                words.append(f"preferred {'+'.join(map(str, self.preferred_batch_sizes))}")
        if self.threads is not None:
            words.append(f"{self.threads} thread{'s' * (self.threads > 1)}")
        return ", ".join(words)


class Measurement(BaseModel):
    """Measurement with a number of clients, each of which sends its next request after the previous answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    clients: int = Field(ge=1, description="Number of concurrent clients.")
    window_seconds: float = Field(gt=0, description="Length of the measurement, after the warm-up.")
    answers: int = Field(
        ge=1, description="Number of answers in that time; with fewer than 100, the p99 is the slowest of them."
    )
    throughput: float = Field(gt=0, description="Answers per second.")
    p50_seconds: float = Field(ge=0, description="Median latency (nearest rank).")
    p99_seconds: float = Field(ge=0, description="99th percentile of the latency (nearest rank).")
    spread: float = Field(
        default=0.0,
        ge=0,
        description="Uncertainty of the throughput: its relative standard error over fifths of the window.",
    )


class TrialState(StrEnum):
    """Result of a trial."""

    MEASURED = "measured"
    """It was measured in the last round that took place."""
    DROPPED = "dropped"
    """Others were so much better in a shorter round that it was not measured in a longer one."""
    WRONG = "wrong"
    """Its answers differ from the recorded ones."""
    MEMORY = "memory"
    """It needs more memory than allowed."""
    FAILED = "failed"
    """Triton refused it, or a request failed."""
    TIME = "time"
    """The time limit was reached before it was measured."""


class Trial(BaseModel):
    """One setting and its result."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    setting: Setting = Field(description="The configuration that was measured.")
    state: TrialState = Field(description="Result of the trial.")
    round: int = Field(
        default=0, ge=0, description="The last round that the trial took part in; later rounds measure for longer."
    )
    measurements: tuple[Measurement, ...] = Field(
        default=(), description="Measurements of its last round, by number of clients."
    )
    memory_bytes: int | None = Field(
        default=None, description="Largest resident memory of its processes; null if it cannot be measured."
    )
    present: bool = Field(default=False, description="Whether this is the deployment's present configuration.")
    message: str = Field(default="", description="Why the trial was not continued.")


class Point(NamedTuple):
    """One measurement of one trial."""

    trial: Trial
    measured: Measurement


def points(trials: Sequence[Trial], *, finished: bool = False) -> list[Point]:
    """Return the measurements of all trials with correct answers.

    Args:
        trials: The trials.
        finished: Only those of the last round: shorter ones are too noisy for a decision.
    """
    shown = {TrialState.MEASURED} if finished else {TrialState.MEASURED, TrialState.DROPPED, TrialState.TIME}
    return [Point(trial, measured) for trial in trials if trial.state in shown for measured in trial.measurements]


def frontier(candidates: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats: none has both more throughput and a lower p99 (Pareto).

    The result ascends by throughput, and so by p99. Of equal points the first one is kept.
    """
    ordered = sorted(candidates, key=lambda point: (-point.measured.throughput, point.measured.p99_seconds))
    kept: list[Point] = []
    for point in ordered:
        if not kept or point.measured.p99_seconds < kept[-1].measured.p99_seconds:
            kept.append(point)
    return kept[::-1]


def rank(trial: Trial, objective: Objective) -> tuple[float, float]:
    """Return the sort key of a trial, the best first: by how far it misses the limits, then by the goal.

    A trial counts with the best of its measurements.
    """
    return min((objective.shortfall(m), -objective.value(m)) for m in trial.measurements)


NOISE = 0.03
"""Two runs of the same setting differ by at least this share, so a smaller difference is no reason for a change."""


def choose(trials: Sequence[Trial], objective: Objective) -> Point | None:
    """Return the best point that meets the limits; None if there is none.

    Among points that are equal within `NOISE`, or within the best one's own spread if that is larger, the current
    setting of the deployment is preferred, then the one that needs the least memory.
    """
    good = [point for point in points(trials, finished=True) if objective.meets(point.measured)]
    if not good:
        return None
    top = max(good, key=lambda point: objective.value(point.measured)).measured
    best = objective.value(top)
    slack = max(NOISE, top.spread) * abs(best)
    close = [point for point in good if objective.value(point.measured) >= best - slack]
    return min(
        close,
        key=lambda point: (
            not point.trial.present,
            point.trial.memory_bytes or 0,
            -objective.value(point.measured),
        ),
    )
