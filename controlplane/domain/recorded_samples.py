"""Golden samples that were recorded after a version was published, from the answers of a deployed version."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class SampleSource(StrEnum):
    """Where the inputs of recorded samples come from."""

    FIRST_DEPLOY = "first-deploy"
    """Generated inputs, recorded at the first proof of a version without golden samples (trust on first use)."""
    GIVEN = "given"
    """Inputs that a person gave."""
    TRAFFIC = "traffic"
    """Requests of clients."""


class SampleRecord(BaseModel):
    """Samples that were recorded together."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="The record's id within the version.")
    source: SampleSource = Field(description="Where the inputs come from.")
    count: int = Field(ge=1, description="Number of samples.")
    content: str = Field(description="Digest of the version's content, of which the answers are.")
    server: str = Field(description="The server that answered.")
    triton_version: str = Field(description="The version of Triton that answered; empty if unknown.")
    at: datetime = Field(description="When they were recorded (UTC).")
    actor: str = Field(description="Who recorded them; `reconciler` for those of the first deploy.")
