"""Tunings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.schemas.models import Reason
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
        default=None, min_length=1, max_length=16, description="Largest batches of settings that batch dynamically."
    )
    queue_delays_microseconds: list[_Delay | None] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Delays of the dynamic batcher; null in the list stands for no dynamic batching.",
    )
    preferred_batch_sizes: list[_Batch] | None = Field(
        default=None, min_length=1, max_length=16, description="Preferred batch sizes, tried one by one beside none."
    )
    threads: list[_Count | None] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Threads within an operator; null in the list leaves it to the backend.",
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
    objective: Goal = Field(default=Goal.THROUGHPUT, description="What shall be best: throughput or p99.")
    max_p99_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="The latency that 99 of 100 answers must keep to."
    )
    min_throughput: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="The answers per second that are needed."
    )
    clients: list[_Clients] = Field(
        default=[1, 4, 16],
        min_length=1,
        max_length=6,
        description="Loads: each setting is measured with so many clients at once, one load after the other.",
    )
    rows: int | None = Field(
        default=None, ge=1, le=65_536, description="Rows of each request; null: the golden samples as they are."
    )
    # Not the text of the class: pydantic omits a field's description that equals that of its type.
    space: TuningSpace = Field(default_factory=TuningSpace, description="What to try; the default where it says null.")
    max_settings: int = Field(default=16, ge=1, le=200, description="How many settings are tried at most.")
    window_seconds: float = Field(
        default=1.0,
        ge=0.05,
        le=60,
        description="How long each load lasts in the first round; later rounds last longer.",
    )
    time_limit_seconds: float = Field(default=300.0, ge=1, le=86_400, description="When the measuring ends.")
    memory_limit_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Resident memory that the copy's processes may have; null: half of what is free. Only where the "
        "server's processes can be seen.",
    )
    server: str | None = Field(default=None, max_length=256, description="Where; null: the first server.")
    apply: bool = Field(default=False, description="Write the best setting as a new revision of the deployment.")
    reason: Reason = Field(default="", description="Why; kept in the deployment's history.")
