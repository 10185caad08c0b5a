"""Probe results and their summary."""

import math
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


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

    at: datetime = Field(description="When (UTC).")
    version: int = Field(description="The version that was asked.")
    kind: ProbeKind = Field(description="proof: every golden sample; sample: the smallest one.")
    outcome: ProbeOutcome = Field(description="passed, late, unanswered or wrong.")
    latency_seconds: float = Field(default=0.0, description="Mean time of one inference, in seconds.")
    max_absolute_error: float | None = Field(
        default=None, description="Largest distance from a recorded output; null where there was nothing to compare."
    )
    max_relative_error: float | None = Field(default=None, description="The same as a share of the recorded value.")
    message: str = Field(default="", description="What was wrong; empty where nothing was.")


class HealthSummary(BaseModel):
    """Summary of the most recent probes on one server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    probes: int = Field(default=0, description="Probes that are remembered.")
    failed: int = Field(default=0, description="Those of them that did not pass.")
    skipped: int = Field(default=0, description="Probes left out because real requests had just succeeded.")
    p50_seconds: float | None = Field(default=None, description="Median latency of those that passed, in seconds.")
    p99_seconds: float | None = Field(default=None, description="99th percentile of their latency, in seconds.")
    drift_absolute: float | None = Field(
        default=None, description="Largest distance from the recorded outputs that any of them had."
    )
    drift_relative: float | None = Field(default=None, description="The same as a share of the recorded value.")
    newest: ProbeResult | None = Field(default=None, description="The newest probe.")
    last_failure: ProbeResult | None = Field(default=None, description="The newest that did not pass.")
    heals: int = Field(default=0, description="How often it was loaded again because it had stopped answering.")
    last_heal_seconds: float | None = Field(
        default=None, description="From finding the newest such fault to answering again, in seconds."
    )


class ServerHealth(BaseModel):
    """The probes of a deployment on one server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The server's name.")
    summary: HealthSummary = Field(description="What they say together.")
    results: tuple[ProbeResult, ...] = Field(description="The remembered probes, oldest first.")


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile: the smallest value that at least ``share`` of the values do not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    rank = math.ceil(share * len(ordered))
    return ordered[min(max(rank, 1), len(ordered)) - 1]
