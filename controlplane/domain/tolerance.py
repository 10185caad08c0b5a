"""Tolerances for numbers, and comparison results. Does not import numpy, which would slow down the CLI."""

from pydantic import BaseModel, ConfigDict, Field


class Tolerance(BaseModel):
    """Maximum distance of an element from the recorded one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    absolute: float = Field(ge=0, allow_inf_nan=False, description="Absolute tolerance, in the tensor's own unit.")
    relative: float = Field(
        ge=0, allow_inf_nan=False, description="Relative tolerance, as a share of the expected value."
    )


class OutputComparison(BaseModel):
    """Comparison of one output over all samples."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    output: str = Field(description="The output tensor's name.")
    tolerance: Tolerance = Field(description="The tolerance that was applied.")
    max_absolute_error: float = Field(description="Largest absolute error; for strings, the share that differs.")
    max_relative_error: float = Field(
        description="Largest relative error of values that are expected to be other than 0."
    )
    agrees: bool = Field(description="Whether every element is within the tolerance.")
    reason: str = Field(default="", description="Why the output does not agree; empty if it does.")
