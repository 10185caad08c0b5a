"""Triton servers and their cordons."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.domain.states import ServerStatus


class ServerList(BaseModel):
    """The Triton servers."""

    items: list[ServerStatus] = Field(description="The servers.")


class CordonRequest(BaseModel):
    """Let a server take no new replicas; with ``drain``, move those that it has."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"drain": True, "reason": "new driver"}]})

    drain: bool = Field(default=False, description="Whether the replicas on the server move to other servers.")
    force: bool = Field(
        default=False, description="Whether replicas that have no place on another server are unloaded; needs `drain`."
    )
    reason: str = Field(default="", max_length=500, description="Reason; recorded in the history.")

    @model_validator(mode="after")
    def _force_needs_drain(self) -> Self:
        if self.force and not self.drain:
            raise ValueError("force needs drain: a cordon without it moves no replica")
        return self
