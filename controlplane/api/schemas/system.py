"""Servers, health, collection of garbage, and the control plane itself."""

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.states import ServerStatus


class ServerList(BaseModel):
    """The Triton servers."""

    items: list[ServerStatus] = Field(description="The servers.")


class GcRequest(BaseModel):
    """Remove what nothing refers to."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"dry_run": True}]})

    dry_run: bool = Field(default=True, description="Only say what would be removed.")
    grace_seconds: float | None = Field(
        default=None,
        ge=0,
        le=10 * 365 * 86_400,
        allow_inf_nan=False,
        description="Leave what is younger; null: as the settings say.",
    )
