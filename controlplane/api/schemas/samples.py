"""Golden samples that were recorded after the publication."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.schemas.inference import RequestTensor
from controlplane.domain.recorded_samples import SampleRecord


class RecordedSampleList(BaseModel):
    """The recorded samples of a version."""

    version: int = Field(description="The version.")
    items: list[SampleRecord] = Field(description="The records, oldest first.")


class SampleInputs(BaseModel):
    """The inputs of one sample."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[list[RequestTensor], Field(min_length=1, max_length=256)] = Field(description="The inputs.")


class AddSamplesRequest(BaseModel):
    """Inputs, whose answers are recorded."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"samples": [{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.5]}]}]}
            ]
        },
    )

    samples: Annotated[list[SampleInputs], Field(min_length=1, max_length=64)] = Field(description="The samples.")


class RecordTrafficRequest(BaseModel):
    """How much traffic to record."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"count": 10, "seconds": 60}]})

    count: int = Field(default=10, ge=1, le=64, description="Maximum number of different requests.")
    seconds: float = Field(default=60.0, gt=0, le=600, description="Maximum time in seconds.")


class RecordedSamples(BaseModel):
    """What was recorded."""

    model: str = Field(description="The model.")
    version: int = Field(description="The version that answered.")
    record: SampleRecord = Field(description="The record.")
    skipped: list[str] = Field(description="Why inputs were left out, each reason once.")
