"""Memory, holds and plans."""

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from controlplane.api.problems import Documented
from controlplane.domain.texts import OneLine
from controlplane.memory.views import ServerMemory
from controlplane.registry.holds import MAX_SECONDS
from controlplane.services.holds import Hold

_GIB = 1024**3

DryRun = Annotated[
    bool,
    Query(description="Change nothing, and return 200 with the plan: what would be done, or why it is impossible."),
]
TtlSeconds = Annotated[
    float,
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False, description="Duration of the hold from now, in seconds."),
]

_PLAN_EXAMPLE = {
    "model": "resnet",
    "version": 2,
    "servers": [
        {
            "server": "embedded",
            "decision": "evict",
            "why": "on host 1.2 GiB are needed and 0.4 GiB are free: bert makes room",
            "needed": {"host": int(1.2 * _GIB)},
            "free": {"host": int(0.4 * _GIB)},
            "could_be_freed": {"host": 2 * _GIB},
            "evictions": [{"model": "bert", "bytes": {"host": _GIB}, "why": "not used for 12 min"}],
            "holders": [],
            "fetch_bytes": 98_000_000,
            "seconds": 2.3,
            "seconds_why": "0.9 s to fetch 93.5 MiB, 1.4 s to load and prove (measured)",
            "beside": True,
            "gap_seconds": 0.0,
        }
    ],
}
_PLAN = {"schema": {"$ref": "#/components/schemas/LoadPlanView"}, "example": _PLAN_EXAMPLE}
PLANNED: Documented = {
    200: {
        "description": "With `dry_run`: the plan by server. Nothing was changed.",
        "content": {"application/json": _PLAN},
    }
}
LOADED_OR_PLANNED: Documented = {
    200: {
        "description": "With `wait`: the model is loaded and active. With `dry_run`: the plan of the load by server.",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/Deployment"},
                        {"$ref": "#/components/schemas/LoadPlanView"},
                    ]
                },
                "example": _PLAN_EXAMPLE,
            }
        },
    }
}


class MemoryList(BaseModel):
    """The ledgers by server."""

    items: list[ServerMemory] = Field(description="One entry for each Triton server.")


class HoldRequest(BaseModel):
    """Hold a model."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"ttl_seconds": 300, "holder": "nightly-batch"}]}
    )

    ttl_seconds: TtlSeconds = 300.0
    holder: Annotated[
        Annotated[str, StringConstraints(max_length=128), OneLine] | None,
        Field(description="Who holds it, as a label for people; default: the actor."),
    ] = None


class HoldRenewal(BaseModel):
    """Extend a hold."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"ttl_seconds": 300}]})

    ttl_seconds: TtlSeconds = 300.0


class HoldList(BaseModel):
    """The holds of a model."""

    items: list[Hold] = Field(description="The current holds, sorted by expiry time.")
