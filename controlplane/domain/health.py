"""Probe results and their summary."""

import math
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass


class ProbeKind(StrEnum):
    """Kind of a probe."""

    PROOF = "proof"
    """Every golden sample."""
    SAMPLE = "sample"
    """The smallest golden sample."""


class ProbeOutcome(StrEnum):
    """Result of a probe."""

    PASSED = "passed"
    LATE = "late"
    """No answer in time: the version is broken, or only busy."""
    UNANSWERED = "unanswered"
    """An error instead of an answer, or some of its processes are gone."""
    WRONG = "wrong"
    """An answer that differs from the recorded one."""


class ProbeResult(BaseModel):
    """One probe."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime = Field(description="When the probe ran (UTC).")
    version: int = Field(description="The version that was probed.")
    kind: ProbeKind = Field(description="Kind of probe: proof (every golden sample) or sample (the smallest one).")
    outcome: ProbeOutcome = Field(description="Result: passed, late, unanswered or wrong.")
    latency_seconds: float = Field(default=0.0, description="Mean time of one inference, in seconds.")
    max_absolute_error: float | None = Field(
        default=None, description="Largest absolute difference from a recorded output; null if nothing was compared."
    )
    max_relative_error: float | None = Field(
        default=None, description="Largest relative difference from a recorded output; null if nothing was compared."
    )
    message: str = Field(default="", description="What was wrong; empty for a passed probe.")


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore"))
class HealthSummary:
    """Summary of the most recent probes on one server."""

    probes: int = Field(default=0, description="Number of probes in memory.")
    failed: int = Field(default=0, description="Number of those that did not pass.")
    skipped: int = Field(default=0, description="Number of probes skipped because real requests had just succeeded.")
    p50_seconds: float | None = Field(default=None, description="Median latency of passed probes, in seconds.")
    p99_seconds: float | None = Field(
        default=None, description="99th percentile of the latency of passed probes, in seconds."
    )
    drift_absolute: float | None = Field(
        default=None, description="Largest absolute difference from the recorded outputs in any probe."
    )
    drift_relative: float | None = Field(
        default=None, description="Largest relative difference from the recorded outputs in any probe."
    )
    newest: ProbeResult | None = Field(default=None, description="The newest probe.")
    last_failure: ProbeResult | None = Field(default=None, description="The newest probe that did not pass.")
    heals: int = Field(default=0, description="How often the model was reloaded because it had stopped answering.")
    last_heal_seconds: float | None = Field(
        default=None,
        description="Time from the detection of the newest such fault until the model answered again, in seconds.",
    )


class ServerHealth(BaseModel):
    """The probes of a deployment on one server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The server's name.")
    summary: HealthSummary = Field(description="Summary of the probes.")
    results: tuple[ProbeResult, ...] = Field(description="The probes in memory, oldest first.")


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile: the smallest value that at least ``share`` of the values do not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    rank = math.ceil(share * len(ordered))
    return ordered[min(max(rank, 1), len(ordered)) - 1]
