"""A rollout in the form of the API: its state, the metrics of both versions, and the results of the tests."""

import math
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.deployment import Rollout, RolloutPhase
from controlplane.domain.evidence import ArmCounts, ArmFigures, Evidence, Signal
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.strategy import StrategyKind
from controlplane.registry.deployments import DeploymentRevision

_LARGEST_LOG = 700.0
"""The exponential of a larger value overflows a float."""


class RolloutArm(ArmFigures):
    """One of the two versions: requests and failures of the whole rollout, latencies of its present step."""

    version: int = Field(description="The version.")


class RolloutTest(BaseModel):
    """The present result of one of the sequential tests."""

    model_config = ConfigDict(frozen=True)

    signal: Signal = Field(description="What is compared: failures, p50, p99 or differences.")
    odds: float = Field(description="Odds that the new version is worse, from the measurements.")
    needed_odds: float = Field(description="Odds at which the version is withdrawn.")
    worse: bool = Field(description="Whether the new version is worse.")
    figures: str = Field(description="The measurements, in words.")


class RolloutView(BaseModel):
    """The state of a rollout."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="The model.")
    revision: int = Field(description="The deployment's newest revision.")
    phase: RolloutPhase = Field(description="running, paused, promoted or aborted.")
    strategy: StrategyKind = Field(description="canary, shadow or pinned.")
    step: int = Field(description="Current step, from 1; 0 until both versions are ready.")
    steps: int = Field(description="Number of steps.")
    weight: float = Field(description="Current fraction of requests that the new version answers, 0 to 1.")
    ready: bool = Field(description="Whether both versions are loaded and proved.")
    message: str = Field(description="What it waits for, or how it ended, with figures.")
    began_at: datetime = Field(description="When it began (UTC).")
    step_ends_at: datetime | None = Field(description="Earliest end of the current step (UTC).")
    old: RolloutArm = Field(description="The old version.")
    new: RolloutArm = Field(description="The new version.")
    tests: tuple[RolloutTest, ...] = Field(description="Results of the statistical tests so far.")
    compared: int = Field(description="Shadow: number of compared responses to the same request.")
    differing: int = Field(description="Shadow: number of compared responses that differ by more than the tolerance.")
    refused: int = Field(description="Requests that the old version answered because the new one was not loaded.")
    skipped: int = Field(description="Shadow: requests that were not copied because too many copies were in flight.")


def rollout_view(
    revision: DeploymentRevision, rollout: Rollout, evidence: Evidence, *, ready: bool, message: str
) -> RolloutView:
    """Return the API's view of a rollout.

    Args:
        revision: The deployment's newest revision.
        rollout: Its rollout.
        evidence: The measurements.
        ready: Whether both versions are loaded and proved.
        message: What the rollout waits for.
    """
    active, strategy = rollout.phase.active, rollout.strategy
    begun = rollout.step_since is not None
    canary = strategy.kind is StrategyKind.CANARY
    ends = None
    if active and rollout.step_since is not None and strategy.kind is not StrategyKind.MANUAL:
        ends = rollout.step_since + timedelta(seconds=rules.step_seconds(rollout))
    old, new = rules.of_step(rollout, evidence)
    return RolloutView(
        model=revision.spec.model,
        revision=revision.number,
        phase=rollout.phase,
        strategy=strategy.kind,
        step=rollout.step + 1 if begun else 0,
        steps=len(strategy.compared_steps) if canary else 1,
        weight=rules.weight(rollout) if active and ready else 0.0,
        ready=ready,
        message=message or rollout.verdict,
        began_at=rollout.began_at,
        step_ends_at=ends,
        old=_arm(rollout.old_version, evidence.old, old),
        new=_arm(rollout.version, evidence.new, new),
        tests=tuple(_test(finding) for finding in rules.findings(rollout, evidence)),
        compared=evidence.compared,
        differing=evidence.differing,
        refused=evidence.refused,
        skipped=evidence.skipped,
    )


def _arm(version: int, counts: ArmCounts, shown: ArmFigures) -> RolloutArm:
    return RolloutArm(
        version=version,
        requests=counts.requests,
        failures=counts.failures,
        p50_seconds=shown.p50_seconds,
        p99_seconds=shown.p99_seconds,
    )


def _test(finding: rules.Finding) -> RolloutTest:
    return RolloutTest(
        signal=finding.signal,
        odds=math.exp(min(finding.log_evidence, _LARGEST_LOG)),
        needed_odds=math.exp(finding.log_threshold),
        worse=finding.worse,
        figures=finding.figures,
    )
