"""Tunings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.texts import Reason
from controlplane.domain.tuning import Goal

_Count = Annotated[int, Field(ge=1, le=64)]
_Clients = Annotated[int, Field(ge=1, le=256)]
_Batch = Annotated[int, Field(ge=1, le=65_536)]
_Delay = Annotated[int, Field(ge=0, le=60_000_000)]


class TuningSpace(BaseModel):
    """Values to try instead of the default ones."""

    model_config = ConfigDict(extra="forbid")

    instances: list[_Count] | None = Field(
        default=None, min_length=1, max_length=16, description="Instances per device."
    )
    max_batch_sizes: list[_Batch] | None = Field(
        default=None, min_length=1, max_length=16, description="Maximum batch sizes to try with dynamic batching."
    )
    queue_delays_microseconds: list[_Delay | None] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Queue delays of the dynamic batcher; null in the list means no dynamic batching.",
    )
    preferred_batch_sizes: list[_Batch] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Preferred batch sizes, tried one at a time and compared with none.",
    )
    threads: list[_Count | None] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Threads within an operator; null in the list means the backend's default.",
    )


class TuningRequest(BaseModel):
    """Try settings on a copy of a deployment, with its golden samples, and find the best."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"model": "resnet", "objective": "throughput", "max_p99_seconds": 0.05, "apply": True}]
        },
    )

    model: str = Field(max_length=256, description="A deployed model.")
    objective: Goal = Field(default=Goal.THROUGHPUT, description="Metric to optimise: throughput or p99.")
    max_p99_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="Maximum p99 latency.")
    min_throughput: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Minimum responses per second."
    )
    clients: list[_Clients] = Field(
        default=[1, 4, 16],
        min_length=1,
        max_length=6,
        description="Numbers of concurrent clients; each setting is measured with one after another.",
    )
    rows: int | None = Field(
        default=None, ge=1, le=65_536, description="Rows of each request; null: unchanged golden samples."
    )
    # Not the text of the class: pydantic omits a field's description that equals that of its type.
    space: TuningSpace = Field(
        default_factory=TuningSpace, description="The values to try; null for a field means its default."
    )
    max_settings: int = Field(default=16, ge=1, le=200, description="Maximum number of settings to try.")
    window_seconds: float = Field(
        default=1.0,
        ge=0.05,
        le=60,
        description="Duration of each measurement in the first round; later rounds are longer.",
    )
    time_limit_seconds: float = Field(default=300.0, ge=1, le=86_400, description="Time limit for all measurements.")
    memory_limit_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Maximum resident memory of the copy's processes; null: half of the free memory. "
        "Only enforced if the server's processes are visible.",
    )
    server: str | None = Field(
        default=None, max_length=256, description="The server to tune on; null: the first server."
    )
    apply: bool = Field(default=False, description="Apply the best settings as a new revision of the deployment.")
    reason: Reason = Field(default="", description="Reason; recorded in the deployment's history.")
