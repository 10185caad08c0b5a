"""Options of conversions, recordings and validations: frozen, validated, and stored in the lineage."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from controlplane.domain.manifest import Format
from controlplane.domain.signature import TensorSpec
from controlplane.domain.tolerance import Tolerance

Precision = Literal["fp32", "fp16", "int8"]

_FACTORY = r"^[A-Za-z_][\w]*(\.[A-Za-z_][\w]*)*:[A-Za-z_][\w]*$"


class SamplingOptions(BaseModel):
    """How sample inputs are generated if none are given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the generated inputs.")
    sample_count: int = Field(default=3, ge=1, le=64, description="Number of samples to generate.")
    batch_size: int = Field(default=2, ge=1, le=1024, description="Size of a dynamic first dimension.")
    dynamic_size: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Size of every other dynamic dimension; null tries small sizes until the original accepts one.",
    )
    sample_shapes: dict[str, tuple[int, ...]] = Field(
        default_factory=dict,
        description="Full shape by input name, for inputs whose dynamic sizes depend on each other.",
    )
    integer_high: int | None = Field(
        default=None,
        ge=1,
        description="Upper limit (exclusive) of generated integers; null tries 10, then 2 (which masks accept).",
    )

    @field_validator("sample_shapes")
    @classmethod
    def _bounded(cls, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for name, shape in shapes.items():
            if any(size < 0 for size in shape):
                raise ValueError(f"sample_shapes[{name!r}] is {list(shape)}; every size must be 0 or more")
        return shapes


class ConversionOptions(SamplingOptions):
    """Parameters of a conversion."""

    target: Format = Field(description="The format to convert to: onnx or torchscript.")
    opset: int | None = Field(
        default=None, ge=7, le=30, description="ONNX opset of the result; null leaves it to the converter."
    )
    inputs: tuple[TensorSpec, ...] | None = Field(
        default=None,
        description="The inputs, if there is no signature; the outputs are then inferred by running the "
        "original model.",
    )
    output_names: tuple[str, ...] | None = Field(
        default=None, description="Names of the outputs, in order; null keeps the original names."
    )
    batched: bool | None = Field(
        default=None,
        description="Whether the first dimension of every tensor is the batch; null takes it from the signature.",
    )
    dynamic_axes: dict[str, list[int]] | None = Field(
        default=None,
        description="Dimensions that stay dynamic, by input name; null keeps those that are -1 in the signature.",
    )
    precision: Precision = Field(
        default="fp32",
        description="fp32 keeps the weights; fp16 halves their size (inputs and outputs keep their types); "
        "int8 quantises weights dynamically (ONNX only).",
    )
    method: Literal["trace", "script"] = Field(
        default="trace", description="How a PyTorch module is turned into TorchScript; script keeps control flow."
    )
    factory: str | None = Field(
        default=None,
        pattern=_FACTORY,
        description="package.module:factory that returns the PyTorch module; importing it runs code, so it "
        "needs trust.",
    )
    factory_arguments: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="Keyword arguments for the factory."
    )
    submodule: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*(\.\w+)*$",
        description="Convert only this submodule of a torch module, by its dotted name (for example the inner "
        "model of a stateful wrapper).",
    )
    tolerances: dict[str, Tolerance] = Field(
        default_factory=dict,
        description="Tolerance by output name; null uses the default of its type and precision.",
    )
    trust: bool = Field(
        default=False, description="Allow code embedded in the model to run: a factory, a pickle, unknown skops types."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.precision == "int8" and self.target is not Format.ONNX:
            raise ValueError(
                f"precision int8 uses onnxruntime's quantisation and needs the target onnx, not {self.target.value}"
            )
        if self.opset is not None and self.target is not Format.ONNX:
            raise ValueError(f"opset applies only to ONNX, but the target is {self.target.value}")
        return self
