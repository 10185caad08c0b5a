"""Deployments."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.texts import Reason
from controlplane.services.deployments import Deployment


class DeployRequest(BaseModel):
    """The version to deploy under the model's name, and its settings."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "reference": "resnet@champion",
                    "settings": {"max_batch_size": 16, "bake_seconds": 600},
                    "reason": "v2",
                }
            ]
        },
    )

    reference: str = Field(
        max_length=256, description="name:7, name@alias (followed when the alias moves) or name (its newest version)."
    )
    settings: DeploymentSettings | None = Field(
        default=None,
        description="Settings of the deployment; null keeps those of the previous revision, or the defaults.",
    )
    reason: Reason = Field(default="", description="Reason; recorded with the revision.")


class RollbackRequest(BaseModel):
    """Roll back to an earlier revision."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "too slow"}, {"revision": 3}]})

    revision: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="The revision to roll back to; null: the newest one with another version or other settings.",
    )
    reason: Reason = Field(default="", description="Reason; recorded with the revision.")


class StateRequest(BaseModel):
    """Load or unload a deployed model without changing the deployment's settings."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "memory is needed"}]})

    reason: Reason = Field(default="", description="Reason; recorded with the revision.")


class DeploymentRevision(BaseModel):
    """One revision of a deployment."""

    model_config = ConfigDict(extra="ignore")

    number: int = Field(description="The revision's number, ascending from 1.")
    at: datetime = Field(description="When the revision was created (UTC).")
    actor: str = Field(description="Who.")
    reason: str = Field(description="Why.")
    spec: DeploymentSpec = Field(description="The desired state.")


class RevisionPage(BaseModel):
    """A page of revisions, newest first."""

    items: list[DeploymentRevision] = Field(description="The revisions.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")


class DeploymentPage(BaseModel):
    """A page of deployments, sorted by model."""

    items: list[Deployment] = Field(description="The deployments.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")
