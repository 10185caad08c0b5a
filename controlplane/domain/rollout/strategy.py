"""Rollout strategies: how a new version becomes active."""

from enum import StrEnum
from itertools import pairwise
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.domain.tolerance import Tolerance

_YEAR_SECONDS = 366 * 86_400.0


class StrategyKind(StrEnum):
    """How a new version replaces the active one."""

    IMMEDIATE = "immediate"
    """The new version becomes active as soon as it is proved. The default."""
    CANARY = "canary"
    """The new version gets a growing share of the requests, and is compared with the old version after each step."""
    SHADOW = "shadow"
    """The new version gets copies of a share of the requests; its answers are compared and discarded."""
    MANUAL = "manual"
    """The new version answers only requests that name it; a person promotes or aborts it."""


class RolloutStep(BaseModel):
    """A share of the traffic, for a minimum time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_percent: float = Field(gt=0, le=100, description="Percentage of requests that go to the new version.")
    seconds: float = Field(
        default=0.0, ge=0, le=_YEAR_SECONDS, description="Minimum time at this percentage, in seconds."
    )


class RolloutStrategy(BaseModel):
    """How a new version of a deployment replaces the active one, and the evidence that it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: StrategyKind = Field(
        default=StrategyKind.IMMEDIATE, description="Kind of rollout: immediate, canary, shadow or manual."
    )
    steps: tuple[RolloutStep, ...] = Field(
        default=(
            RolloutStep(weight_percent=5, seconds=600),
            RolloutStep(weight_percent=25, seconds=600),
            RolloutStep(weight_percent=50, seconds=600),
        ),
        min_length=1,
        max_length=20,
        description="Canary: the steps, ascending by percentage. The version is promoted after the last one; a "
        "last step of 100 means the same.",
    )
    control_ratio: float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Canary: number of measured requests of the old version for each of the new one, if not all are "
        "measured. A higher number detects a worse version sooner and sends more requests through the control "
        "plane.",
    )
    shadow_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Shadow: share of requests that are also sent to the new version, if not all are.",
    )
    shadow_seconds: float = Field(
        default=600.0, ge=0, le=_YEAR_SECONDS, description="Shadow: minimum time with shadow requests, in seconds."
    )
    minimum_requests: int = Field(
        default=100,
        ge=1,
        le=10**9,
        description="Number of requests that the new version must have answered before a step ends.",
    )
    error: float = Field(
        default=0.01,
        gt=0,
        le=0.5,
        description="Maximum probability, over a whole rollout with any number of evaluations, of rejecting a version "
        "that is no worse than the old one.",
    )
    latency_tolerance: float = Field(
        default=0.25,
        ge=0,
        le=100,
        description="Share by which the new version is allowed to be slower; 0.25 means 25 %.",
    )
    difference_share: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Shadow: share of answers that are allowed to differ from the old version's.",
    )
    difference: Tolerance | None = Field(
        default=None,
        description="Shadow: tolerance within which answers are equal; null uses the default of each output's type.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        weights = [step.weight_percent for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise ValueError(
                f"the weights of the steps must be ascending: {', '.join(f'{weight:g}' for weight in weights)}"
            )
        if weights == [100.0] and self.kind is StrategyKind.CANARY:
            raise ValueError(
                "a canary needs a step below 100 %; to switch all requests at once, use the immediate strategy"
            )
        return self

    @property
    def compared_steps(self) -> tuple[RolloutStep, ...]:
        """The steps in which old and new run side by side; a step with all traffic is the promotion."""
        return tuple(step for step in self.steps if step.weight_percent < 100)
