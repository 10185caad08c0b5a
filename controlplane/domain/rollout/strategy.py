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

    weight_percent: float = Field(gt=0, le=100, description="Share of the requests that go to the new version, in %.")
    seconds: float = Field(default=0.0, ge=0, le=_YEAR_SECONDS, description="Least time at this share, in seconds.")


class RolloutStrategy(BaseModel):
    """How a new version of a deployment replaces the active one, and the evidence that it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: StrategyKind = Field(default=StrategyKind.IMMEDIATE, description="immediate, canary, shadow or manual.")
    steps: tuple[RolloutStep, ...] = Field(
        default=(
            RolloutStep(weight_percent=5, seconds=600),
            RolloutStep(weight_percent=25, seconds=600),
            RolloutStep(weight_percent=50, seconds=600),
        ),
        min_length=1,
        max_length=20,
        description="Canary: the shares, ascending. After the last one the version is promoted; a last step of 100 "
        "says the same.",
    )
    control_ratio: float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Canary: how many requests of the old version are measured for each of the new one, where not all "
        "are. More of them find a worse version sooner, and send more requests through the control plane.",
    )
    shadow_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Shadow: share of the requests of which the new version gets a copy, where not all are copied.",
    )
    shadow_seconds: float = Field(
        default=600.0, ge=0, le=_YEAR_SECONDS, description="Shadow: least time with copies of the requests, in seconds."
    )
    minimum_requests: int = Field(
        default=100,
        ge=1,
        le=10**9,
        description="Requests that the new version must have answered in a step before it is passed; fewer mean wait.",
    )
    error: float = Field(
        default=0.01,
        gt=0,
        le=0.5,
        description="Largest chance, over a whole rollout and however often it is looked at, to withdraw a version "
        "that is no worse than the old one.",
    )
    latency_tolerance: float = Field(
        default=0.25, ge=0, le=100, description="By which share the new version may be slower; 0.25 means a quarter."
    )
    difference_share: float = Field(
        default=0.01, ge=0, lt=1, description="Shadow: share of the answers that may differ from the old version's."
    )
    difference: Tolerance | None = Field(
        default=None, description="Shadow: what counts as no difference; null takes the default of each output's type."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        weights = [step.weight_percent for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise ValueError(f"the steps' weights must ascend: {', '.join(f'{weight:g}' for weight in weights)}")
        if weights == [100.0] and self.kind is StrategyKind.CANARY:
            raise ValueError(
                "a canary needs a step below 100 %; to give it everything at once, use the immediate strategy"
            )
        return self

    @property
    def compared_steps(self) -> tuple[RolloutStep, ...]:
        """The steps in which old and new run side by side; a step with all traffic is the promotion."""
        return tuple(step for step in self.steps if step.weight_percent < 100)
