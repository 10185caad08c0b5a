"""The observed states that the control plane reports."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.conditions import Condition
from controlplane.domain.health import HealthSummary
from controlplane.domain.tolerance import OutputComparison


class Phase(StrEnum):
    """Phase of a deployment on one server, or as a whole (the least advanced of its servers)."""

    PENDING = "Pending"
    FETCHING = "Fetching"
    STAGING = "Staging"
    LOADING = "Loading"
    PROVING = "Proving"
    READY = "Ready"
    DEGRADED = "Degraded"
    """A version is active, but the desired state failed or has no place; `message` states why."""
    FAILED = "Failed"
    """No version is active; `message` states why."""
    UNLOADING = "Unloading"
    UNLOADED = "Unloaded"

    @property
    def settled(self) -> bool:
        """Whether the phase is final until a change, a retry or a fault."""
        return self in {Phase.READY, Phase.DEGRADED, Phase.FAILED, Phase.UNLOADED}


class Proof(BaseModel):
    """Triton's answers to the golden samples, compared with the recorded outputs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(description="The version that was asked.")
    agrees: bool = Field(description="Whether every output of every sample agrees.")
    at: datetime = Field(description="When (UTC).")
    latency_seconds: float = Field(description="Mean time of one inference, in seconds.")
    samples: int = Field(description="Number of samples sent; 0 where the version carries none.")
    outputs: tuple[OutputComparison, ...] = Field(default=(), description="Per output, the largest errors.")
    message: str = Field(default="", description="What disagreed or failed; empty when it agrees.")


class ServerDeploymentStatus(BaseModel):
    """A deployment on one Triton server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str = Field(description="The server's name.")
    phase: Phase = Field(description="Where it stands.")
    message: str = Field(default="", description="One sentence: what is being done or why it failed.")
    serving_version: int | None = Field(default=None, description="The version that answers; null when none does.")
    loaded_versions: tuple[int, ...] = Field(default=(), description="Versions that Triton has loaded.")
    bake_until: datetime | None = Field(default=None, description="Until when the previous version stays loaded (UTC).")
    proof: Proof | None = Field(default=None, description="The newest proof of the wanted version.")
    retry_at: datetime | None = Field(default=None, description="When a failed step is tried again (UTC).")
    seconds: dict[str, float] = Field(
        default_factory=dict,
        description="Seconds the newest rollout spent by stage: fetch, stage, load, prove, switch.",
    )
    conditions: tuple[Condition, ...] = Field(
        default=(), description="Loaded, Proved, Ready, Progressing, Degraded, Healthy: whether, since when, and why."
    )
    health: HealthSummary | None = Field(default=None, description="What the probes of this server found.")


class DeploymentStatus(BaseModel):
    """A deployment over all its servers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: int = Field(description="The deployment revision this status is about.")
    phase: Phase = Field(description="The least advanced phase over all servers.")
    message: str = Field(default="", description="One sentence.")
    servers: tuple[ServerDeploymentStatus, ...] = Field(default=(), description="Per Triton server.")
    conditions: tuple[Condition, ...] = Field(
        default=(), description="Loaded, Proved, Ready, Progressing, Degraded, Healthy, over all servers."
    )


class ServerState(StrEnum):
    """Availability of a Triton server."""

    STARTING = "Starting"
    READY = "Ready"
    UNREACHABLE = "Unreachable"
    STOPPED = "Stopped"


class LoadedVersion(BaseModel):
    """One version in a server's repository index."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The name in Triton.")
    version: int = Field(description="The version number.")
    state: str = Field(description="Triton's own word: READY, LOADING, UNLOADING, UNAVAILABLE, UNKNOWN.")
    reason: str = Field(default="", description="Triton's reason, where it gives one.")


class ServerStatus(BaseModel):
    """A Triton server as last observed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="The server's name.")
    id: str = Field(
        default="",
        description="Its name among the servers of all instances on the store: of an embedded server the name and a "
        "token that stays with the data folder, of any other its name.",
    )
    grpc_url: str = Field(description="host:port of its gRPC service.")
    http_url: str = Field(description="URL of its HTTP service.")
    metrics_url: str = Field(description="URL of its Prometheus metrics.")
    embedded: bool = Field(default=False, description="Whether this process started and supervises it.")
    state: ServerState = Field(description="Whether it can be worked with.")
    message: str = Field(default="", description="Why it cannot, or why no instance drives it.")
    driven: bool = Field(
        default=True, description="Whether an instance drives it; a server that no instance drives takes no requests."
    )
    triton_version: str = Field(default="", description="Its version, once it answered.")
    models: tuple[LoadedVersion, ...] = Field(default=(), description="What its repository index lists as loaded.")
    advisories: tuple[str, ...] = Field(
        default=(), description="Published vulnerabilities of its version and what to do, one sentence each."
    )
    observed_at: datetime | None = Field(default=None, description="When it was last asked (UTC).")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="Live, Ready, MetricsAvailable, LoadsStuck, DiskPressure, SharedMemoryPressure: whether, since "
        "when, and why.",
    )


class Event(BaseModel):
    """A change, with its reason."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int = Field(description="Grows by one with each event of this process.")
    at: datetime = Field(description="When (UTC).")
    type: str = Field(description="Normal or Warning.")
    reason: str = Field(description="One CamelCase word, for programs: Loaded, ProofFailed, ServerUnreachable, …")
    subject: str = Field(description="What it is about: a model, a server.")
    message: str = Field(description="One sentence for a person.")
