"""Models, aliases and their history."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.model import ModelHead
from controlplane.domain.texts import Description, Labels, Reason


class ModelPage(BaseModel):
    """A page of models, sorted by name."""

    items: list[ModelHead] = Field(description="The models.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")


class ModelChange(BaseModel):
    """Changes of a model; omitted fields are unchanged."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"description": "Voice activity detection", "labels": {"team": "speech"}}]},
    )

    description: Description | None = Field(default=None, description="What the model is for.")
    labels: Labels | None = Field(default=None, description="The model's labels; they replace all its current labels.")
    reason: Reason = Field(default="", description="Reason; recorded in the history.")


class Change(BaseModel):
    """One revision of a chain: who changed what, when and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "number": 3,
                    "at": "2026-11-23T10:00:00Z",
                    "actor": "ada",
                    "reason": "alias champion -> 2",
                    "commit_id": "9f0c2c2e4f5c4f0e8f6f2a3b4c5d6e7f",
                    "body": {"name": "resnet", "aliases": {"champion": 2}},
                }
            ]
        }
    )

    number: int = Field(description="The revision's number, ascending from 1.")
    at: datetime = Field(description="When the revision was created (UTC).")
    actor: str = Field(description="Who.")
    reason: str = Field(description="The reason, as one sentence.")
    commit_id: str = Field(description="Identifies the commit.")
    body: dict[str, Any] = Field(description="The whole document as of this revision.")


class ChangePage(BaseModel):
    """A page of revisions, newest first."""

    items: list[Change] = Field(description="The revisions.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")


class AliasTarget(BaseModel):
    """The version to which an alias must point."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": 2}]})

    version: int = Field(ge=1, le=999_999_999, description="The version number.")
    reason: Reason = Field(default="", description="Reason; recorded in the history.")


class Alias(BaseModel):
    """An alias."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "resnet", "alias": "champion", "version": 2}]})

    model: str = Field(description="The model's name.")
    alias: str = Field(description="The alias.")
    version: int = Field(description="The version it points to.")


class AliasList(BaseModel):
    """All aliases of a model."""

    items: list[Alias] = Field(description="The aliases, by name.")
