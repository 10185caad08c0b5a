"""RFC 9457 problem details (https://www.rfc-editor.org/rfc/rfc9457)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """The reason why a request failed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:triton-control-plane:error:not-found",
                    "title": "Not found",
                    "status": 404,
                    "detail": "resnet has no version 9; its versions: 1, 2",
                    "instance": "/v1/models/resnet/versions/9",
                    "code": "not-found",
                    "details": {"model": "resnet", "version": 9},
                }
            ]
        }
    )

    type: str = Field(description="URI of the kind of problem: `urn:triton-control-plane:error:` and the code.")
    title: str = Field(description="The kind of problem, in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong, with which value, and what to do.")
    instance: str = Field(description="The path of the request.")
    code: str = Field(description="The kind of problem in kebab case, for programs; stable.")
    details: dict[str, Any] = Field(
        default_factory=dict, description="Machine-readable details: names, figures, limits."
    )
