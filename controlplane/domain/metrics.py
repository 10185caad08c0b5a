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
        description="summary (whole requests, as Triton sums up about the last minute), histogram (time to the first "
        "response) or none (the server tells neither, or there was no request)."
    )
    p50_seconds: float | None = Field(default=None, description="Half of the requests were no slower.")
    p90_seconds: float | None = Field(default=None, description="Nine in ten were no slower.")
    p99_seconds: float | None = Field(default=None, description="99 in 100 were no slower.")


class Figures(BaseModel):
    """Metrics of a model over a window of time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The name in Triton.")
    version: int | None = Field(description="The version; null: all of them.")
    server: str | None = Field(description="The Triton server; null: all of them.")
    window_seconds: float = Field(description="The window; it ends now.")
    covered_seconds: float = Field(description="How much of the window this instance has watched; rates are over that.")
    requests: float = Field(description="Requests that ended, failed ones included; this control plane's proofs too.")
    failures: dict[str, float] = Field(
        description="Failed requests by Triton's reason: REJECTED, CANCELED, BACKEND, OTHER; reasons without any are "
        "left out."
    )
    inferences: float = Field(description="Inferences: a batch of 8 counts as 8.")
    executions: float = Field(description="Times the model was run.")
    request_rate: float = Field(description="Requests per second.")
    inference_rate: float = Field(description="Inferences per second.")
    failure_rate: float = Field(description="Failed requests per second.")
    failure_share: float | None = Field(description="Failed requests of all, 0 to 1; null without requests.")
    request_seconds: float | None = Field(description="Mean time of a successful request inside Triton.")
    queue_seconds: float | None = Field(description="Of it, mean time in Triton's queue.")
    compute_seconds: float | None = Field(description="Of it, mean time in the model, inputs and outputs included.")
    latency: Latency = Field(description="Percentiles, and where they come from.")
    batch_size: float | None = Field(description="Mean batch achieved: inferences by executions; null without any.")
    pending: float = Field(description="Requests that wait or run now.")
    pending_max: float = Field(
        description="The most of them at any look in the window; of several versions or servers, their sum."
    )
    cpu_cores: float | None = Field(
        description="Processor cores that the processes of its instances kept busy; null on a server elsewhere."
    )


class Point(BaseModel):
    """One part of a window, for a chart."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ago_seconds: float = Field(description="How long ago the part ended.")
    request_rate: float = Field(description="Requests per second.")
    failure_rate: float = Field(description="Failed requests per second.")
    request_seconds: float | None = Field(description="Mean time of a successful request; null without one.")
    p99_seconds: float | None = Field(description="99th percentile; null where it is not known.")
    batch_size: float | None = Field(description="Mean batch achieved; null without executions.")
    pending_max: float = Field(description="The most requests that waited or ran.")


class ServerUse(BaseModel):
    """Utilisation of a server's processors, according to its own metrics."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The Triton server.")
    scraped_at: datetime | None = Field(description="When its metrics were last read (UTC); null: never.")
    error: str = Field(default="", description="Why they cannot be read now; empty when they can.")
    cpu_utilisation: float | None = Field(
        default=None, description="Share of the machine's processors in use, 0 to 1; null where it is not told."
    )
    gpu_utilisation: dict[str, float] = Field(
        default_factory=dict, description="Share of the time that each GPU works, 0 to 1, by UUID."
    )


class ObjectiveKind(StrEnum):
    """Subject of an objective."""

    LATENCY = "latency"
    FAILURES = "failures"


class WindowBurn(BaseModel):
    """Burn rates of the budget over one pair of windows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    long_seconds: float = Field(description="The long window: it is not a blip.")
    short_seconds: float = Field(description="The short window: it is still going on.")
    factor: float = Field(description="It burns when both rates reach this.")
    long_rate: float = Field(description="Burn rate over the long window; 1 uses the budget up exactly.")
    short_rate: float = Field(description="Burn rate over the short window.")
    burning: bool = Field(description="Whether both reach the factor.")


class ObjectiveState(BaseModel):
    """State of an objective."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ObjectiveKind = Field(description="latency or failures.")
    target: str = Field(description="The objective in words.")
    budget: float = Field(description="The share of requests that may miss it, 0 to 1.")
    burning: bool = Field(description="Whether the budget burns too fast by any pair of windows.")
    windows: tuple[WindowBurn, ...] = Field(description="By pair of windows, the fast one first.")
