"""What the API answers, as this client reads it. What a newer server adds is kept, so ``-o json`` shows it too."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.conditions import Condition
from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.health import ServerHealth
from controlplane.domain.manifest import Manifest
from controlplane.domain.states import DeploymentStatus


class Record(BaseModel):
    """A document of the API."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ErrorInfo(Record):
    """Why an operation failed."""

    code: str = ""
    title: str = ""
    detail: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class Progress(Record):
    """How far an operation is."""

    stage: str = ""
    message: str = ""
    fraction: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    details: dict[str, Any] | None = None


class Operation(Record):
    """Something that takes longer than a request."""

    id: str
    kind: str = ""
    subject: str = ""
    state: str
    progress: Progress = Field(default_factory=Progress)
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None
    log: str = ""

    @property
    def finished(self) -> bool:
        """Whether it will not change any more."""
        return self.state in {"succeeded", "failed", "cancelled"}


class Version(Record):
    """One version as a list shows it."""

    number: int
    format: str
    size_bytes: int
    servable: bool = True
    published_at: datetime
    published_by: str = ""
    deleted: bool = False


class Model(Record):
    """A model with its versions and aliases."""

    name: str
    description: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    versions: tuple[Version, ...] = ()
    aliases: dict[str, int] = Field(default_factory=dict)


class VersionDetail(Record):
    """One version with all that is fixed about it."""

    model: str
    entry: Version
    manifest: Manifest
    aliases: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()


class VersionFootprint(Record):
    """What a version was measured to need, run in one way."""

    backend: str
    kind: str
    max_batch_size: int
    instances: int
    resident_bytes: int
    load_peak_bytes: int
    inference_peak_bytes: int = 0
    left_bytes: int | None = None
    estimate_bytes: int = 0
    load_seconds: float = 0.0
    by: str = ""
    at: datetime | None = None


class UploadFile(Record):
    """One file of an upload, and how much of it the server has."""

    path: str
    sha256: str
    size_bytes: int
    state: str = "missing"
    received_bytes: int = 0


class Upload(Record):
    """Files on their way to the server."""

    id: str
    files: tuple[UploadFile, ...] = ()


class Footprint(Record):
    """What a version needs on one device."""

    device: str
    bytes: int
    error_bytes: int = 0
    peak_bytes: int = 0
    load_peak_bytes: int = 0
    inference_peak_bytes: int = 0
    left_bytes: int | None = None
    source: str = ""
    held_bytes: int = 0


class ModelMemory(Record):
    """One deployed model on one server."""

    model: str
    version: int
    mode: str
    state: str
    server: str = ""
    priority: int = 0
    why: str = ""
    footprint: tuple[Footprint, ...] = ()
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None
    rate_per_second: float = 0.0
    pending: int = 0
    expires_at: datetime | None = None
    held_until: datetime | None = None
    load_seconds: float | None = None
    loads: int = 0
    evictions: int = 0

    @property
    def held_bytes(self) -> int:
        """What the ledger counts for it, over all devices."""
        return sum(one.held_bytes for one in self.footprint)


class Deployment(Record):
    """What shall answer under a model's name, and what does."""

    model: str
    revision: int
    at: datetime
    actor: str = ""
    reason: str = ""
    spec: DeploymentSpec
    status: DeploymentStatus | None = None
    operation_id: str | None = None
    changed: bool = True
    memory: tuple[ModelMemory, ...] = ()


class DeploymentHealth(Record):
    """What the probes of a deployment found."""

    model: str
    conditions: tuple[Condition, ...] = ()
    servers: tuple[ServerHealth, ...] = ()
