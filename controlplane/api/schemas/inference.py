"""Inference through the control plane, in the JSON of the KServe v2 protocol.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.signature import DataType

Size = Annotated[int, Field(ge=0, le=2**31)]


class RequestTensor(BaseModel):
    """One input."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=256, description="The input's name.")
    datatype: DataType | None = Field(default=None, description="Its element type; null: from the signature.")
    shape: Annotated[list[Size], Field(max_length=32)] | None = Field(
        default=None, description="Its shape; null: the shape of nested `data`."
    )
    data: Any = Field(description="The elements, flat in row-major order or nested; strings for BYTES.")


class RequestedOutput(BaseModel):
    """One requested output."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=256, description="The output's name.")


class InferenceRequest(BaseModel):
    """Inputs, and the requested outputs."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.5]}],
                    "outputs": [{"name": "y"}],
                }
            ]
        },
    )

    id: str = Field(default="", max_length=256, description="Returned in the response.")
    inputs: Annotated[list[RequestTensor], Field(min_length=1, max_length=256)] = Field(description="The inputs.")
    outputs: Annotated[list[RequestedOutput], Field(max_length=256)] | None = Field(
        default=None, description="The requested outputs; null: all."
    )


class ResponseTensor(BaseModel):
    """One output."""

    name: str = Field(description="The output's name.")
    datatype: str = Field(description="Its element type.")
    shape: list[int] = Field(description="Its shape.")
    data: list[Any] = Field(
        description="The elements, flat in row-major order. NaN and infinities, which JSON lacks, are the strings "
        "NaN, Infinity and -Infinity; BYTES that are not UTF-8 are base64 with the prefix `base64:`."
    )


class InferenceResponse(BaseModel):
    """Triton's response."""

    model_name: str = Field(description="The model.")
    model_version: str = Field(description="The version that answered.")
    id: str = Field(description="The `id` of the request.")
    server: str = Field(description="The Triton server that answered.")
    seconds: float = Field(description="Time from the request to Triton to its response, in seconds.")
    outputs: list[ResponseTensor] = Field(description="The outputs.")
