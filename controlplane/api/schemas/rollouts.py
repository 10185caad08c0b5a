"""Rollouts by evidence."""

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.texts import Reason
from controlplane.services.rollout_view import RolloutView


class RolloutRequest(BaseModel):
    """A manual change of a rollout."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "looks good"}]})

    reason: Reason = Field(default="", description="Reason; recorded with the revision.")


class RolloutPage(BaseModel):
    """A page of rollouts, sorted by model."""

    items: list[RolloutView] = Field(description="The rollouts.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")
