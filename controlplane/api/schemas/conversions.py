"""Conversions."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.api.schemas.versions import AliasName
from controlplane.domain.manifest import FilePath, Format
from controlplane.domain.signature import Signature
from controlplane.domain.texts import Labels, Reason
from converters.options import ConversionOptions


class ConversionRequest(BaseModel):
    """Convert a version into another format, compare both, and publish the result."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"source": "resnet:1", "target": "onnx", "options": {"opset": 17}, "aliases": ["staging"]}]
        },
    )

    source: str = Field(max_length=256, description="The version to convert: name:7, name@alias or name.")
    target: Format | None = Field(
        default=None, description="The target format, onnx or torchscript; here or in `options`."
    )
    model: str | None = Field(
        default=None, max_length=256, description="The model that receives the result; null: the source's model."
    )
    options: ConversionOptions | None = Field(
        default=None,
        description="The converter's options; `target` in them is optional if it is given in the request itself.",
    )
    signature: Signature | None = Field(
        default=None, description="Inputs and outputs of the source, if its manifest has none."
    )
    upload_id: str | None = Field(default=None, max_length=64, description="An upload that contains sample inputs.")
    samples: FilePath | None = Field(default=None, description="The file of that upload (.npz) with sample inputs.")
    labels: Labels = Field(default_factory=dict, description="Labels of the new version.")
    metrics: Annotated[dict[str, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=256)] = Field(
        default_factory=dict, description="Metrics of the new version."
    )
    aliases: list[AliasName] = Field(
        default_factory=list, max_length=16, description="Aliases to point to the new version, in the same commit."
    )
    reason: Reason = Field(default="", description="Reason; recorded in the history.")

    @model_validator(mode="before")
    @classmethod
    def _one_target(cls, body: Any) -> Any:
        """Add the target, which is given beside the options, to the options."""
        if not isinstance(body, dict) or body.get("target") is None:
            return body
        options = body.get("options")
        if options is None:
            return {**body, "options": {"target": body["target"]}}
        if isinstance(options, dict) and options.get("target") is None:
            return {**body, "options": {**options, "target": body["target"]}}
        return body

    @model_validator(mode="after")
    def _target_is_given(self) -> Self:
        if self.options is None:
            raise ValueError("target is missing; set it to onnx or torchscript")
        if self.target is not None and self.target is not self.options.target:
            raise ValueError(
                f"target is {self.target.value!r}, but options.target is {self.options.target.value!r}; set only one"
            )
        if (self.samples is None) != (self.upload_id is None):
            raise ValueError("upload_id and samples must be given together: samples names a file of the upload")
        return self
