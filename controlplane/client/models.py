"""The API's documents, as this client reads them. Fields of a newer server are kept, so that ``-o json`` shows them."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.conditions import Condition
from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.health import ServerHealth
from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.recorded_samples import SampleRecord
from controlplane.domain.states import DeploymentStatus
from controlplane.gateway.views import GatewayAddress as GatewayAddress
from controlplane.gateway.views import GatewayView as GatewayView


class Record(BaseModel):
    """A document of the API."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ErrorInfo(Record):
    """The reason why an operation failed."""

    code: str = ""
    title: str = ""
    detail: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class Progress(Record):
    """The progress of an operation."""

    stage: str = ""
    message: str = ""
    fraction: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    details: dict[str, Any] | None = None


class Operation(Record):
    """Work that takes longer than a request."""

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
        """Return whether the state is final."""
        return self.state in {"succeeded", "failed", "cancelled"}


class Version(Record):
    """One version as shown in a list."""

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
    """One version with all of its immutable data."""

    model: str
    entry: Version
    manifest: Manifest
    aliases: tuple[str, ...] = ()
    recorded_samples: tuple[SampleRecord, ...] = ()
    conditions: tuple[Condition, ...] = ()


class RecordedSampleList(Record):
    """The samples of a version that were recorded after its publication."""

    version: int
    items: tuple[SampleRecord, ...]


class RecordedSamples(Record):
    """What was recorded, and why inputs were left out."""

    model: str
    version: int
    record: SampleRecord
    skipped: tuple[str, ...] = ()


class VersionFootprint(Record):
    """The measured memory of a version, for one way of running it."""

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
    """Files that are being uploaded."""

    id: str
    files: tuple[UploadFile, ...] = ()


class Footprint(Record):
    """The memory that a version needs on one device."""

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
        """Return the bytes that the ledger counts for it, over all devices."""
        return sum(one.held_bytes for one in self.footprint)


class Deployment(Record):
    """The desired and the actual state of one model."""

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
    """Results of the probes of a deployment."""

    model: str
    conditions: tuple[Condition, ...] = ()
    servers: tuple[ServerHealth, ...] = ()


class ExportedFile(FileEntry):
    """A file of a model's folder in a model repository."""

    source: str | None = None
    content: str | None = None


class RepositoryEntry(Record):
    """A deployment as the folder of a model in a plain Triton model repository."""

    model: str
    version: int
    revision: int = 0
    files: tuple[ExportedFile, ...]
    notes: tuple[str, ...] = ()
