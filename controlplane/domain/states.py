"""The observed states that the control plane reports."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from controlplane.domain.conditions import Condition
from controlplane.domain.cordons import CordonStatus
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

    version: int = Field(description="The version that was tested.")
    agrees: bool = Field(description="Whether every output of every sample agrees with the recorded one.")
    at: datetime = Field(description="When the proof ran (UTC).")
    latency_seconds: float = Field(description="Mean time of one inference, in seconds.")
    samples: int = Field(description="Number of samples sent; 0 if the version has none.")
    outputs: tuple[OutputComparison, ...] = Field(default=(), description="Largest errors of each output.")
    message: str = Field(default="", description="What disagreed or failed; empty for a passed proof.")


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore"))
class ServerDeploymentStatus:
    """A deployment on one Triton server."""

    server: str = Field(description="The server's name.")
    phase: Phase = Field(description="The phase of the deployment on this server.")
    message: str = Field(default="", description="What is in progress or why it failed, as one sentence.")
    serving_version: int | None = Field(default=None, description="The active version; null if no version answers.")
    loaded_versions: tuple[int, ...] = Field(default=(), description="Versions loaded in Triton.")
    bake_until: datetime | None = Field(default=None, description="Until when the previous version stays loaded (UTC).")
    proof: Proof | None = Field(default=None, description="The newest proof of the desired version.")
    retry_at: datetime | None = Field(default=None, description="When a failed step is retried (UTC).")
    seconds: dict[str, float] = Field(
        default_factory=dict,
        description="Seconds that each stage of the newest rollout took: fetch, stage, load, prove, switch.",
    )
    conditions: tuple[Condition, ...] = Field(
        default=(), description="The conditions: Loaded, Proved, Ready, Progressing, Degraded, Healthy."
    )
    health: HealthSummary | None = Field(default=None, description="Results of the probes of this server.")


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore"))
class DeploymentStatus:
    """A deployment over all its servers."""

    revision: int = Field(description="The deployment revision that this status describes.")
    phase: Phase = Field(description="The least advanced phase over all servers.")
    message: str = Field(default="", description="The status as one sentence.")
    servers: tuple[ServerDeploymentStatus, ...] = Field(default=(), description="Status on each Triton server.")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="The conditions over all servers: Loaded, Proved, Ready, Progressing, Degraded, Healthy.",
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
    state: str = Field(description="Triton's state: READY, LOADING, UNLOADING, UNAVAILABLE, UNKNOWN.")
    reason: str = Field(default="", description="Triton's reason; empty if it gives none.")


class ServerStatus(BaseModel):
    """A Triton server as last observed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="The server's name.")
    id: str = Field(
        default="",
        description="Unique name among the servers of all instances on the store: for an embedded server its name "
        "and a token that stays with the data folder, for any other its name.",
    )
    grpc_url: str = Field(description="host:port of its gRPC service.")
    http_url: str = Field(description="URL of its HTTP service.")
    metrics_url: str = Field(description="URL of its Prometheus metrics.")
    embedded: bool = Field(default=False, description="Whether this process started and supervises the server.")
    state: ServerState = Field(description="Whether the server can be used.")
    message: str = Field(default="", description="Why it cannot be used, or why no instance manages it.")
    driven: bool = Field(
        default=True, description="Whether an instance manages the server; a server without one gets no requests."
    )
    triton_version: str = Field(default="", description="Triton's version; empty until the server has answered.")
    cordon: CordonStatus | None = Field(
        default=None, description="Set if the server takes no new replicas; null if it takes them."
    )
    models: tuple[LoadedVersion, ...] = Field(
        default=(), description="The loaded models according to its repository index."
    )
    advisories: tuple[str, ...] = Field(
        default=(), description="Published vulnerabilities of its version and how to fix them, one sentence each."
    )
    observed_at: datetime | None = Field(default=None, description="When its state was last read (UTC).")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="The conditions: Live, Ready, MetricsAvailable, LoadsStuck, DiskPressure, SharedMemoryPressure, "
        "and AgentAvailable with an agent.",
    )


class Event(BaseModel):
    """A change, with its reason."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int = Field(description="Sequence number of the event in this process, ascending by one.")
    at: datetime = Field(description="When the event happened (UTC).")
    type: str = Field(description="Kind of event: Normal or Warning.")
    reason: str = Field(description="One CamelCase word, for programs: Loaded, ProofFailed, ServerUnreachable, …")
    subject: str = Field(description="The model or server that the event concerns.")
    message: str = Field(description="The event as one sentence for people.")
