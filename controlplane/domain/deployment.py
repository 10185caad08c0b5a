"""Desired state: which version of a model is to be active, and its settings."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self
from weakref import WeakValueDictionary

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from controlplane.domain.evidence import Evidence
from controlplane.domain.rollout.strategy import RolloutStrategy, StrategyKind


class InstanceKind(StrEnum):
    """Where Triton runs the instances (`instance_group.kind` of Triton's model configuration)."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class Mode(StrEnum):
    """When a deployment is loaded."""

    PINNED = "pinned"
    """Always loaded; never evicted."""
    RESIDENT = "resident"
    """Loaded while there is room; may be evicted for a model with a higher claim."""
    ON_DEMAND = "on-demand"
    """Loaded at its first use; unloaded after `keep_alive_seconds` without use, or when memory is needed."""


class Switch(StrEnum):
    """How a new version gets memory while the old one is loaded."""

    AUTO = "auto"
    """Rolling if both fit, else recreate."""
    ROLLING = "rolling"
    """Loads the new version beside the old one, without a gap; if both can never fit, the old one stays."""
    RECREATE = "recreate"
    """Unloads the old version first: no version is active for a while, and the memory need is that of one version."""


class DynamicBatching(BaseModel):
    """Triton's dynamic batcher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preferred_batch_size: tuple[int, ...] = Field(default=(), description="Batch sizes that the batcher prefers.")
    max_queue_delay_microseconds: int = Field(
        default=0,
        ge=0,
        le=60_000_000,
        description="How long a request can wait to be batched with others, in microseconds.",
    )


class Objectives(BaseModel):
    """Service-level objectives of a model. A change does not reload anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p99_milliseconds: float | None = Field(
        default=None,
        gt=0,
        le=3_600_000,
        allow_inf_nan=False,
        description="p99 latency inside Triton, in milliseconds; null sets no objective.",
    )
    failure_percent: float | None = Field(
        default=None,
        gt=0,
        lt=100,
        allow_inf_nan=False,
        description="Maximum percentage of failed requests; null sets no objective.",
    )


class DeploymentSettings(BaseModel):
    """Settings of a deployment. All of them have a usable default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_count: int = Field(default=1, ge=1, le=64, description="Number of model instances per device.")
    instance_kind: InstanceKind = Field(
        default=InstanceKind.AUTO, description="Where the instances run: auto, cpu or gpu."
    )
    gpus: tuple[int, ...] = Field(
        default=(),
        max_length=64,
        description="Numbers of the GPUs to use, as Triton counts them; a server without all of them gets no "
        "replica. If empty, the placement chooses.",
    )
    gpu_count: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Number of GPUs per replica, with `instance_count` instances on each; the placement selects "
        "the GPUs. null uses all suitable GPUs. With a number, the model runs only on servers with GPUs.",
    )
    gpu_product: str = Field(
        default="",
        max_length=100,
        description="Part of the product name that its GPUs must have, for example H100; case is ignored.",
    )
    gpu_min_memory_bytes: int = Field(
        default=0, ge=0, le=1 << 50, description="Minimum total memory of each of its GPUs, in bytes."
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=0,
        le=65_536,
        description="Maximum batch size; 0 turns batching off; null means 8 for a batched signature and 0 for others.",
    )
    dynamic_batching: DynamicBatching | None = Field(default=None, description="Dynamic batching; null leaves it off.")
    warmup: bool = Field(
        default=False, description="Run a golden sample while Triton loads the model, before the first request."
    )
    bake_seconds: float = Field(
        default=300.0,
        ge=0,
        le=7 * 86_400,
        description="How long the previous version stays loaded beside the new one, so that a rollback takes "
        "milliseconds.",
    )
    mode: Mode = Field(
        default=Mode.RESIDENT,
        description="When the model is loaded: pinned (always, never evicted), resident (while there is room) or "
        "on-demand (when it is first used).",
    )
    keep_alive_seconds: float | None = Field(
        default=300.0,
        ge=0,
        description="How long an unused on-demand model stays loaded; null keeps it loaded without limit.",
    )
    priority: int = Field(
        default=0, ge=-1000, le=1000, description="Models with a higher priority are loaded first and evicted last."
    )
    update_strategy: Switch = Field(
        default=Switch.AUTO,
        description="How a new version replaces the old one in memory: auto (rolling if both fit, otherwise recreate), "
        "rolling (loads the new version beside the old one, and waits if both do not fit) or recreate "
        "(unloads the old version first; the model is unavailable in between).",
    )
    rollout: RolloutStrategy = Field(
        default=RolloutStrategy(),
        description="How a new version replaces the active one: at once, or step by step based on measurements.",
    )
    objectives: Objectives | None = Field(
        default=None,
        description="Service-level objectives; a breach is reported. A change does not reload the model.",
    )
    min_replicas: int = Field(
        default=1, ge=1, le=1000, description="Minimum number of servers with a replica; each server has at most one."
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Maximum number of servers with a replica, used while requests wait longer than "
        "`target_queue_milliseconds` and there is room; null: never more than `min_replicas`.",
    )
    target_queue_milliseconds: float = Field(
        default=100.0,
        gt=0,
        le=3_600_000,
        description="Mean time that requests can wait in Triton's queue before another replica is added.",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, max_length=32, description="Labels that a server must have to receive a replica."
    )
    auto_rollback: bool = Field(
        default=False,
        description="Roll back automatically if this version fails while the previous one answers and has a passed "
        "proof. The leader commits the rollback with the reason.",
    )
    max_latency_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="Reject a new version if the median latency of its probes exceeds this multiple of the active "
        "version's; null only measures and reports it.",
    )
    max_memory_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="Reject a new version if the resident memory of its backend process exceeds this multiple of the "
        "active version's; only where it can be measured.",
    )
    members: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        max_length=64,
        description="For a pipeline: the version of each member that it runs with. A deploy pins the active version of "
        "the member's deployment for each member that is left out.",
    )
    parameters: dict[str, str] = Field(
        default_factory=dict, description="Backend parameters, as in `parameters` of config.pbtxt."
    )
    config_overrides: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Additional fields of Triton's model configuration, in its JSON form, merged over the "
        "generated ones.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus and self.instance_kind is InstanceKind.CPU:
            raise ValueError("gpus cannot be given together with instance_kind 'cpu'")
        if chooses_gpus(self) and self.instance_kind is InstanceKind.CPU:
            raise ValueError(
                "gpu_count, gpu_product and gpu_min_memory_bytes cannot be given together with instance_kind 'cpu'"
            )
        if self.gpus and self.gpu_count not in (None, len(self.gpus)):
            raise ValueError(
                f"gpu_count is {self.gpu_count}, but gpus names {len(self.gpus)} GPUs; give only one of the two fields"
            )
        if len(set(self.gpus)) < len(self.gpus) or min(self.gpus, default=0) < 0:
            raise ValueError(f"gpus must be distinct numbers of 0 or more, not {list(self.gpus)}")
        if self.dynamic_batching and self.max_batch_size == 0:
            raise ValueError("dynamic_batching needs a max_batch_size above 0")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        if self.update_strategy is Switch.RECREATE and self.rollout.kind is not StrategyKind.IMMEDIATE:
            raise ValueError(
                f"a {self.rollout.kind} rollout needs both versions loaded at the same time; update_strategy "
                "cannot be recreate"
            )
        return self


def chooses_gpus(settings: DeploymentSettings) -> bool:
    """Return whether the settings restrict the GPUs other than by number, so that servers without GPUs are excluded."""
    return bool(settings.gpu_count or settings.gpu_product or settings.gpu_min_memory_bytes)


_SHARED_SETTINGS: WeakValueDictionary[str, DeploymentSettings] = WeakValueDictionary()


def shared(settings: DeploymentSettings) -> DeploymentSettings:
    """Return the instance that all deployments with these settings share; most deployments have the same few."""
    return _SHARED_SETTINGS.setdefault(settings.model_dump_json(), settings)


class RolloutPhase(StrEnum):
    """State of a rollout."""

    RUNNING = "running"
    PAUSED = "paused"
    """The share stays until a person resumes the rollout; a version that is found to be worse is still aborted."""
    PROMOTED = "promoted"
    ABORTED = "aborted"

    @property
    def active(self) -> bool:
        """Whether both versions are to be loaded."""
        return self in {RolloutPhase.RUNNING, RolloutPhase.PAUSED}


class Rollout(BaseModel):
    """A rollout in progress, or its result."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Unique id; measurements of all instances are stored under it.")
    version: int = Field(ge=1, description="The new version.")
    old_version: int = Field(ge=1, description="The active version, with which the new one is compared.")
    reference: str = Field(
        description="The requested reference; becomes the deployment's reference when the version is promoted."
    )
    settings: DeploymentSettings = Field(description="Settings of the new version; their `rollout` is the strategy.")
    began_at: datetime = Field(description="When the rollout began (UTC).")
    phase: RolloutPhase = Field(
        default=RolloutPhase.RUNNING, description="State: running, paused, promoted or aborted."
    )
    step: int = Field(default=0, ge=0, description="The current step, counted from 0.")
    step_since: datetime | None = Field(
        default=None, description="When both versions were ready and this step began (UTC); null before."
    )
    step_evidence: Evidence = Field(default=Evidence(), description="Measurements until the step began.")
    verdict: str = Field(default="", description="The newest decision, with the measurements that led to it.")
    evidence: Evidence = Field(default=Evidence(), description="Measurements until the newest decision.")

    @property
    def strategy(self) -> RolloutStrategy:
        """The rollout strategy."""
        return self.settings.rollout

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return self.model_copy(update=changes)


PLACEMENT_FIELDS = frozenset(
    {
        "min_replicas",
        "max_replicas",
        "target_queue_milliseconds",
        "node_selector",
        "gpu_count",
        "gpu_product",
        "gpu_min_memory_bytes",
    }
)
"""Settings of where and how often a deployment runs; the configuration for all servers has none of them."""

RUN_THE_SAME_FIELDS = PLACEMENT_FIELDS | {
    "bake_seconds",
    "mode",
    "keep_alive_seconds",
    "priority",
    "update_strategy",
    "rollout",
    "objectives",
    "auto_rollback",
    "max_latency_ratio",
    "max_memory_ratio",
}
"""All settings that Triton does not receive: they do not affect a version's answers."""


SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Applied(BaseModel):
    """The document that a deployment was last applied from.

    A deployment by other means removes it. A rollout and a rollback keep it, so that a repeated apply of the same
    document does not undo what they decided.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    set: SetName = Field(description="Set of documents that it belongs to; `--prune` removes within one set.")
    digest: str = Field(description="SHA-256 of the document's reference and settings.")


class DeploymentSpec(BaseModel):
    """The desired state of one model, as one revision of its deployment chain."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The model's name, which is also its name in Triton.")
    reference: str = Field(
        description="The requested reference: name:7, name@alias or name. An alias is followed when it moves."
    )
    version: int = Field(ge=1, description="The version that the reference resolved to.")
    loaded: bool = Field(
        default=True, description="Whether the model is to be loaded; false keeps the deployment without loading it."
    )
    deleted: bool = Field(default=False, description="Whether the deployment was removed; it can be deployed again.")
    settings: Annotated[DeploymentSettings, AfterValidator(shared)] = Field(
        default_factory=DeploymentSettings, description="Settings of the deployment."
    )
    rollout: Rollout | None = Field(
        default=None, description="The newest rollout, in progress or finished; null if there is none."
    )
    applied: Applied | None = Field(
        default=None, description="The document that it was applied from; null if it was deployed by other means."
    )

    @property
    def trial(self) -> Rollout | None:
        """The rollout in progress."""
        rollout = self.rollout
        return rollout if rollout and rollout.phase.active and self.loaded and not self.deleted else None

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return self.model_copy(update=changes)
