"""Qualification report: the results of the checks of a version before it receives traffic."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Verdict(StrEnum):
    """Result of a check."""

    PASSED = "passed"
    WARNING = "warning"
    """Not as expected, but no reason to stop."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Could not be checked; the message states why."""


class Performance(BaseModel):
    """Performance of a version in the probes of a qualification."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(description="The version.")
    requests: int = Field(description="Number of timed requests.")
    p50_seconds: float = Field(description="Median latency, in seconds.")
    p99_seconds: float = Field(
        description="99th percentile of the latency, in seconds; with few requests, the slowest one."
    )
    process_bytes: int | None = Field(
        default=None, description="Resident memory of one of its backend processes; null if it cannot be measured."
    )


class ReportCheck(BaseModel):
    """One part of a report."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Name of the check: artifact, configuration, numbers or performance.")
    verdict: Verdict = Field(description="Result: passed, warning, failed or skipped.")
    message: str = Field(description="The result as one sentence.")
    details: dict[str, JsonValue] = Field(default_factory=dict, description="The measured values, by subject.")


class VersionReport(BaseModel):
    """Results of the qualification of a version on a server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The model's name.")
    version: int = Field(description="The version.")
    number: int = Field(default=0, description="The report's number, ascending from 1 for each version.")
    at: datetime = Field(description="When the report was made (UTC).")
    server: str = Field(description="The Triton server.")
    triton_version: str = Field(default="", description="Version of the Triton server.")
    config_digest: str = Field(description="Digest of the configuration with which it was loaded.")
    verdict: Verdict = Field(description="The worst result of the checks, without skipped ones.")
    checks: tuple[ReportCheck, ...] = Field(description="The checks.")


_WORST = (Verdict.FAILED, Verdict.WARNING)


def worst_of(checks: tuple[ReportCheck, ...]) -> Verdict:
    """Return the verdict over all checks."""
    found = {check.verdict for check in checks}
    return next((verdict for verdict in _WORST if verdict in found), Verdict.PASSED)


def regressions(
    ours: Performance, previous: Performance, max_latency_ratio: float | None, max_memory_ratio: float | None
) -> list[str]:
    """Return how a version is worse than the previous one by more than the limits; empty if it is not.

    The medians are compared: with the few requests of a qualification, the slowest one says more about the machine.
    """
    found = []
    if max_latency_ratio is not None and previous.p50_seconds > 0:
        ratio = ours.p50_seconds / previous.p50_seconds
        if ratio > max_latency_ratio:
            found.append(
                f"its latency is {ratio:.2f} times that of version {previous.version} (median "
                f"{ours.p50_seconds * 1000:.3g} ms instead of {previous.p50_seconds * 1000:.3g} ms); the limit is "
                f"{max_latency_ratio:g} times"
            )
    if max_memory_ratio is not None and ours.process_bytes and previous.process_bytes:
        ratio = ours.process_bytes / previous.process_bytes
        if ratio > max_memory_ratio:
            found.append(
                f"its process has {ratio:.2f} times the memory of version {previous.version}'s "
                f"({ours.process_bytes / 2**20:.0f} MiB instead of {previous.process_bytes / 2**20:.0f} MiB); the "
                f"limit is {max_memory_ratio:g} times"
            )
    return found
