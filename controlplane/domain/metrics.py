"""Model metrics: values over a window of time, objectives, and the burn rate of an objective's budget."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class LatencySource(StrEnum):
    """Source of latency percentiles."""

    SUMMARY = "summary"
    """Triton's latency summaries: whole requests.

    Each scrape gives quantiles of about the last minute; over a window they are averaged, weighted by requests.
    """
    HISTOGRAM = "histogram"
    """Triton's first-response histogram, which newer servers have for decoupled models: time to the first response."""
    NONE = "none"
    """The server reports neither: start it with ``--metrics-config=summary_latencies=true``."""


class Latency(BaseModel):
    """Percentiles of successful requests."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: LatencySource = Field(
        description="Source of the percentiles: summary (whole requests, in Triton's window of about one minute), "
        "histogram (time to the first response) or none (the server reports neither, or there was no request)."
    )
    p50_seconds: float | None = Field(default=None, description="Median latency.")
    p90_seconds: float | None = Field(default=None, description="90th percentile of the latency.")
    p99_seconds: float | None = Field(default=None, description="99th percentile of the latency.")


class TrafficStats(BaseModel):
    """Metrics of a model over a window of time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The name in Triton.")
    version: int | None = Field(description="The version; null: all versions.")
    server: str | None = Field(description="The Triton server; null: all servers.")
    window_seconds: float = Field(description="Length of the window, which ends now.")
    covered_seconds: float = Field(description="Part of the window that this instance has observed; rates refer to it.")
    requests: float = Field(
        description="Number of finished requests, including failed ones and proofs by the control plane."
    )
    failures: dict[str, float] = Field(
        description="Failed requests by Triton's reason: REJECTED, CANCELED, BACKEND, OTHER; reasons without "
        "failures are omitted."
    )
    inferences: float = Field(description="Number of inferences; a batch of 8 counts as 8.")
    executions: float = Field(description="Number of model executions.")
    request_rate: float = Field(description="Requests per second.")
    inference_rate: float = Field(description="Inferences per second.")
    failure_rate: float = Field(description="Failed requests per second.")
    failure_share: float | None = Field(description="Share of requests that failed, 0 to 1; null without requests.")
    request_seconds: float | None = Field(description="Mean time of a successful request inside Triton.")
    queue_seconds: float | None = Field(description="Mean time of a successful request in Triton's queue.")
    compute_seconds: float | None = Field(
        description="Mean time of a successful request in the model, including inputs and outputs."
    )
    latency: Latency = Field(description="Latency percentiles and their source.")
    batch_size: float | None = Field(description="Mean batch size: inferences per execution; null without executions.")
    pending: float = Field(description="Requests that wait or run now.")
    pending_max: float = Field(
        description="Largest number of waiting and running requests at any reading in the window; for several "
        "versions or servers, the sum."
    )
    cpu_cores: float | None = Field(
        description="Processor cores used by the processes of its instances; null for a server on another machine."
    )


class Point(BaseModel):
    """One part of a window, for a chart."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ago_seconds: float = Field(description="How long ago this part of the window ended.")
    request_rate: float = Field(description="Requests per second.")
    failure_rate: float = Field(description="Failed requests per second.")
    request_seconds: float | None = Field(description="Mean time of a successful request; null without one.")
    p99_seconds: float | None = Field(description="99th percentile of the latency; null if unknown.")
    batch_size: float | None = Field(description="Mean batch size; null without executions.")
    pending_max: float = Field(description="Largest number of waiting and running requests.")


class ServerUse(BaseModel):
    """Utilisation of a server's processors, according to its own metrics."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The Triton server.")
    scraped_at: datetime | None = Field(description="When its metrics were last read (UTC); null: never.")
    error: str = Field(default="", description="Why they cannot be read now; empty if they can.")
    cpu_utilisation: float | None = Field(
        default=None, description="Share of the machine's processors in use, 0 to 1; null if not reported."
    )
    gpu_utilisation: dict[str, float] = Field(
        default_factory=dict, description="Share of time in which each GPU was busy, 0 to 1, by UUID."
    )


class ObjectiveKind(StrEnum):
    """Subject of an objective."""

    LATENCY = "latency"
    FAILURES = "failures"


class WindowBurn(BaseModel):
    """Burn rates of the budget over one pair of windows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    long_seconds: float = Field(description="Length of the long window, which excludes short spikes.")
    short_seconds: float = Field(description="Length of the short window, which shows that the problem persists.")
    factor: float = Field(description="Threshold of the burn rate; the objective is breached if both rates reach it.")
    long_rate: float = Field(description="Burn rate over the long window; 1 uses the budget exactly.")
    short_rate: float = Field(description="Burn rate over the short window.")
    burning: bool = Field(description="Whether both rates reach the threshold.")


class ObjectiveState(BaseModel):
    """State of an objective."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ObjectiveKind = Field(description="Kind of objective: latency or failures.")
    target: str = Field(description="The objective as text.")
    budget: float = Field(description="Share of requests that are allowed to miss the objective, 0 to 1.")
    burning: bool = Field(description="Whether the budget burns too fast in any pair of windows.")
    windows: tuple[WindowBurn, ...] = Field(description="State by pair of windows, the fastest pair first.")
