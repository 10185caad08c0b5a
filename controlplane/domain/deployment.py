"""Desired state: which version of a model is to be active, and its settings."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

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

    preferred_batch_size: tuple[int, ...] = Field(default=(), description="Batch sizes the batcher aims for.")
    max_queue_delay_microseconds: int = Field(
        default=0, ge=0, le=60_000_000, description="How long a request may wait for others, in microseconds."
    )


class Objectives(BaseModel):
    """Service-level objectives of a model. A change does not reload anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p99_milliseconds: float | None = Field(
        default=None,
        gt=0,
        le=3_600_000,
        allow_inf_nan=False,
        description="99 in 100 requests take no longer inside Triton, in milliseconds; null promises nothing.",
    )
    failure_percent: float | None = Field(
        default=None,
        gt=0,
        lt=100,
        allow_inf_nan=False,
        description="No more than this percentage of the requests fail; null promises nothing.",
    )


class DeploymentSettings(BaseModel):
    """Settings of a deployment. All of them have a usable default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_count: int = Field(default=1, ge=1, le=64, description="Instances per device.")
    instance_kind: InstanceKind = Field(default=InstanceKind.AUTO, description="auto, cpu or gpu.")
    gpus: tuple[int, ...] = Field(
        default=(),
        max_length=64,
        description="Numbers of the GPUs to use, as Triton counts them; a server without all of them gets no copy. "
        "Empty leaves the choice to the placement.",
    )
    gpu_count: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="How many GPUs of a server each replica uses, with `instance_count` instances on each; the "
        "placement "
        "chooses which. Null: all that suit. With a number it runs on servers with GPUs alone.",
    )
    gpu_product: str = Field(
        default="",
        max_length=100,
        description="Part of the product's name that its GPUs must have, such as H100, whatever the case.",
    )
    gpu_min_memory_bytes: int = Field(
        default=0, ge=0, le=1 << 50, description="Least memory that each of its GPUs must have in all, in bytes."
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=0,
        le=65_536,
        description="Largest batch; 0 turns batching off; null means 8 for a batched signature and 0 for others.",
    )
    dynamic_batching: DynamicBatching | None = Field(default=None, description="Dynamic batching; null leaves it off.")
    warmup: bool = Field(
        default=False, description="Run a golden sample inside Triton's load, before the first request."
    )
    bake_seconds: float = Field(
        default=300.0,
        ge=0,
        le=7 * 86_400,
        description="How long the previous version stays loaded beside the new one, for a rollback in milliseconds.",
    )
    mode: Mode = Field(
        default=Mode.RESIDENT,
        description="When it is loaded: pinned (always, never evicted), resident (when there is room) or on-demand "
        "(at its first use).",
    )
    keep_alive_seconds: float | None = Field(
        default=300.0,
        ge=0,
        description="How long an on-demand model stays loaded without use; null means for ever.",
    )
    priority: int = Field(
        default=0, ge=-1000, le=1000, description="Higher goes first in the queue of loads and last in eviction."
    )
    update_strategy: Switch = Field(
        default=Switch.AUTO,
        description="How a new version gets its memory: auto (beside the old one where both fit, else after "
        "it), rolling (or not at all) or recreate (the model is unavailable in between).",
    )
    rollout: RolloutStrategy = Field(
        default=RolloutStrategy(),
        description="How a new version takes over from the one that answers: at once, or by evidence.",
    )
    objectives: Objectives | None = Field(
        default=None,
        description="What is promised to users: told about when it is not kept. Nothing is reloaded for it.",
    )
    min_replicas: int = Field(
        default=1, ge=1, le=1000, description="On how many servers it is placed at least, one replica on each."
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="On how many servers it is placed at most, while requests wait longer than "
        "`target_queue_milliseconds` and there is room; null: never on more than `min_replicas`.",
    )
    target_queue_milliseconds: float = Field(
        default=100.0,
        gt=0,
        le=3_600_000,
        description="How long requests may wait in Triton's queue, in the mean, before another replica is placed.",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, max_length=32, description="Labels that a server must have to be given a copy."
    )
    auto_rollback: bool = Field(
        default=False,
        description="Go back to the version before where this one fails and that one answers and is proved: the "
        "leader commits the rollback, with the evidence as its reason.",
    )
    max_latency_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="A version whose probes take more than this many times as long (median) as those of the version "
        "that answers is not given the traffic; null: it is measured and told.",
    )
    max_memory_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="The same for the resident memory of a backend process, where that can be seen.",
    )
    parameters: dict[str, str] = Field(
        default_factory=dict, description="Backend parameters, as in `parameters` of config.pbtxt."
    )
    config_overrides: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Further fields of Triton's model configuration, in its JSON form, merged over the generated one.",
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
            raise ValueError(f"gpu_count is {self.gpu_count}, and gpus names {len(self.gpus)}: give one of them")
        if len(set(self.gpus)) < len(self.gpus) or min(self.gpus, default=0) < 0:
            raise ValueError(f"gpus must be different numbers from 0, not {list(self.gpus)}")
        if self.dynamic_batching and self.max_batch_size == 0:
            raise ValueError("dynamic_batching needs a max_batch_size above 0")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        if self.update_strategy is Switch.RECREATE and self.rollout.kind is not StrategyKind.IMMEDIATE:
            raise ValueError(
                f"a {self.rollout.kind} rollout needs both versions at once: update_strategy cannot be recreate"
            )
        return self


def chooses_gpus(settings: DeploymentSettings) -> bool:
    """Return whether the settings restrict the GPUs other than by number, so that servers without GPUs are excluded."""
    return bool(settings.gpu_count or settings.gpu_product or settings.gpu_min_memory_bytes)


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

    id: str = Field(description="Unique; what instances measure is kept under it.")
    version: int = Field(ge=1, description="The new version.")
    old_version: int = Field(ge=1, description="The version it is compared with.")
    reference: str = Field(description="What was asked for; becomes the deployment's reference when it is promoted.")
    settings: DeploymentSettings = Field(description="How the new version is run; its `rollout` is the strategy.")
    began_at: datetime = Field(description="When it began (UTC).")
    phase: RolloutPhase = Field(default=RolloutPhase.RUNNING, description="running, paused, promoted or aborted.")
    step: int = Field(default=0, ge=0, description="The present step, from 0.")
    step_since: datetime | None = Field(
        default=None, description="When both versions were ready and this step began (UTC); null before."
    )
    step_evidence: Evidence = Field(default=Evidence(), description="What had been measured when the step began.")
    verdict: str = Field(default="", description="The newest decision, with its figures.")
    evidence: Evidence = Field(default=Evidence(), description="What had been measured at the newest decision.")

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


class DeploymentSpec(BaseModel):
    """The desired state of one model, as one revision of its deployment chain."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The model's name, which is also its name in Triton.")
    reference: str = Field(description="What was asked for: name:7, name@alias or name. An alias is followed.")
    version: int = Field(ge=1, description="The version it resolved to.")
    loaded: bool = Field(default=True, description="Whether it shall be loaded; false keeps the deployment, unloaded.")
    deleted: bool = Field(default=False, description="The deployment was removed; it can be deployed again.")
    settings: DeploymentSettings = Field(default_factory=DeploymentSettings, description="How it is run.")
    rollout: Rollout | None = Field(
        default=None, description="The newest rollout by evidence, under way or ended; null where there was none since."
    )

    @property
    def trial(self) -> Rollout | None:
        """The rollout in progress."""
        rollout = self.rollout
        return rollout if rollout and rollout.phase.active and self.loaded and not self.deleted else None

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return self.model_copy(update=changes)
