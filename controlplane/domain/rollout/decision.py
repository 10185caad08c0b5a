"""Decides how a rollout begins, continues and ends, from its desired state, the measurements and the time. Pure.

The decision tree, whose numbers appear in the code:

1.  The new version cannot be loaded or answers its golden samples wrongly: abort.
2.  One of the tests shows that it is worse than the old one: abort, also while paused.
3.  One of the two is not loaded and proved: hold. Its requests go to the old version meanwhile.
4.  The step has not begun (both are ready now for the first time): begin it.
5.  The rollout is paused, or manual, which only a person ends: hold.
6.  The duration of the step is not over: hold.
7.  The new version has answered too few requests in this step: hold. Too little traffic is no evidence.
8.  The evidence makes it `DOUBT` times as likely that it is worse: too much to pass it and too little to abort: hold.
    More requests decide, or a person.
9.  It was the last step: promote.
10. Go to the next step.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from controlplane.domain.deployment import (
    RUN_THE_SAME_FIELDS,
    Applied,
    DeploymentSettings,
    DeploymentSpec,
    Rollout,
    RolloutPhase,
)
from controlplane.domain.evidence import ArmFigures, Evidence, Signal
from controlplane.domain.names import Reference
from controlplane.domain.rollout.statistics import label_evidence, share_evidence, threshold
from controlplane.domain.rollout.strategy import RolloutStrategy, StrategyKind
from controlplane.errors import ConflictError

DOUBT = 10.0
"""Odds at which a version is not advanced. A good version rarely reaches them, and mostly falls below them again."""

_WINDOW_REQUESTS = 20
"""A step's own metrics are shown once the new version has had this many requests in it."""


class RolloutAction(StrEnum):
    """The next action."""

    HOLD = "hold"
    BEGIN = "begin"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """The next action and its reason.

    Attributes:
        action: The action.
        reason: One sentence with figures.
    """

    action: RolloutAction
    reason: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the old and the new version can answer requests.

    Attributes:
        ready: Whether both are loaded and proved.
        message: What is missing if they are not.
        failed: Why the new version can never answer without a change; empty if there is no known reason.
    """

    ready: bool
    message: str = ""
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Test result of one signal.

    Attributes:
        signal: What was tested.
        log_evidence: Logarithm of the evidence that the new version is worse in it.
        log_threshold: The evidence needed to conclude that.
        figures: Old and new as text.
    """

    signal: Signal
    log_evidence: float
    log_threshold: float
    figures: str

    @property
    def worse(self) -> bool:
        """Whether the new version is worse."""
        return self.log_evidence >= self.log_threshold


def signals(kind: StrategyKind) -> tuple[Signal, ...]:
    """Return the signals that a strategy tests; all of them share the stated error."""
    tested = (Signal.FAILURES, Signal.MEDIAN, Signal.TAIL)
    return (*tested, Signal.DIFFERENCES) if kind is StrategyKind.SHADOW else tested


def findings(rollout: Rollout, evidence: Evidence) -> tuple[Finding, ...]:
    """Test every signal over the whole rollout; latencies are shown for the current step."""
    strategy = rollout.strategy
    tested = signals(strategy.kind)
    needed = threshold(strategy.error, len(tested))
    shown = of_step(rollout, evidence)
    return tuple(
        Finding(signal, _evidence_of(signal, strategy, evidence), needed, _figures(signal, strategy, evidence, shown))
        for signal in tested
    )


def of_step(rollout: Rollout, evidence: Evidence) -> tuple[ArmFigures, ArmFigures]:
    """Return old and new over the same window: the current step, or the whole rollout while the step is too young.

    Over several steps the two would have different shares of busy and quiet times.
    """
    before = rollout.step_evidence
    young = evidence.new.requests - before.new.requests < _WINDOW_REQUESTS
    old, new = evidence.old, evidence.new
    if young:
        return ArmFigures.of(old), ArmFigures.of(new)
    return ArmFigures.of(old.minus(before.old)), ArmFigures.of(new.minus(before.new))


def decide(rollout: Rollout, evidence: Evidence, readiness: Readiness, now: datetime) -> RolloutDecision:
    """Return the next action of a rollout in progress.

    Args:
        rollout: The rollout.
        evidence: The measurements since it began.
        readiness: Whether old and new can answer.
        now: The current time (UTC).
    """
    version, strategy = rollout.version, rollout.strategy
    if readiness.failed:  # 1
        return RolloutDecision(RolloutAction.ABORT, f"version {version} cannot answer: {readiness.failed}")
    found = findings(rollout, evidence)
    for finding in found:  # 2
        if finding.worse:
            return RolloutDecision(
                RolloutAction.ABORT,
                f"version {version} is worse in {finding.signal}: {finding.figures} (evidence of {_odds(finding)} "
                f"that it is worse; the threshold is {_odds_text(finding.log_threshold)})",
            )
    if not readiness.ready:  # 3
        return RolloutDecision(RolloutAction.HOLD, readiness.message or f"version {version} is not ready")
    if rollout.step_since is None:  # 4
        return RolloutDecision(RolloutAction.BEGIN, f"version {version} is ready: {describe_step(rollout)}")
    if rollout.phase is RolloutPhase.PAUSED:  # 5
        return RolloutDecision(RolloutAction.HOLD, f"paused: {describe_step(rollout)}")
    if strategy.kind is StrategyKind.MANUAL:
        return RolloutDecision(
            RolloutAction.HOLD,
            "the new version answers only requests that name it, until an operator promotes or aborts it",
        )
    left = step_seconds(rollout) - (now - rollout.step_since).total_seconds()
    if left > 0:  # 6
        return RolloutDecision(RolloutAction.HOLD, f"{describe_step(rollout)}, {left:.0f} s left")
    answered = evidence.new.requests - rollout.step_evidence.new.requests
    if answered < strategy.minimum_requests:  # 7
        return RolloutDecision(
            RolloutAction.HOLD,
            f"{describe_step(rollout)}: version {version} has answered {answered} of the "
            f"{strategy.minimum_requests} requests that the step requires",
        )
    doubts = [finding for finding in found if finding.log_evidence >= math.log(DOUBT)]
    if doubts:  # 8
        what = "; ".join(f"{finding.figures}, {_odds(finding)}" for finding in doubts)
        return RolloutDecision(
            RolloutAction.HOLD, f"{describe_step(rollout)}: it is uncertain whether version {version} is worse: {what}"
        )
    what = "; ".join(finding.figures for finding in found)
    if strategy.kind is StrategyKind.SHADOW or rollout.step + 1 >= len(strategy.compared_steps):  # 9
        return RolloutDecision(RolloutAction.PROMOTE, f"version {version} is no worse: {what}")
    following = rollout.with_changes(step=rollout.step + 1)
    return RolloutDecision(RolloutAction.ADVANCE, f"{describe_step(following)}; no worse so far: {what}")  # 10


def apply(spec: DeploymentSpec, decision: RolloutDecision, evidence: Evidence, now: datetime) -> DeploymentSpec:
    """Return the desired state after a decision on its rollout.

    Raises:
        ConflictError: No rollout is in progress.
    """
    rollout = required(spec)
    decided = rollout.with_changes(verdict=decision.reason, evidence=evidence)
    match decision.action:
        case RolloutAction.HOLD:
            return spec
        case RolloutAction.BEGIN:
            return spec.with_changes(rollout=decided.with_changes(step_since=now, step_evidence=evidence))
        case RolloutAction.ADVANCE:
            moved = decided.with_changes(step=rollout.step + 1, step_since=now, step_evidence=evidence)
            return spec.with_changes(rollout=moved)
        case RolloutAction.PROMOTE:
            return spec.with_changes(
                version=rollout.version,
                reference=rollout.reference,
                settings=rollout.settings,
                rollout=decided.with_changes(phase=RolloutPhase.PROMOTED),
            )
        case RolloutAction.ABORT:
            return spec.with_changes(rollout=decided.with_changes(phase=RolloutPhase.ABORTED))


def paused(spec: DeploymentSpec, *, pause: bool, why: str) -> DeploymentSpec:
    """Return the desired state with its rollout paused or resumed.

    Raises:
        ConflictError: No rollout is in progress.
    """
    phase = RolloutPhase.PAUSED if pause else RolloutPhase.RUNNING
    return spec.with_changes(rollout=required(spec).with_changes(phase=phase, verdict=why))


def required(spec: DeploymentSpec) -> Rollout:
    """Return the rollout in progress.

    Raises:
        ConflictError: No rollout is in progress.
    """
    if spec.trial is None:
        how = f"; the newest one was {spec.rollout.phase}: {spec.rollout.verdict}" if spec.rollout else ""
        raise ConflictError(f"no rollout of {spec.model} is in progress{how}", model=spec.model)
    return spec.trial


def deploy(
    before: DeploymentSpec | None,
    reference: Reference,
    version: int,
    settings: DeploymentSettings,
    *,
    rollout_id: str,
    now: datetime,
    applied: Applied | None = None,
) -> DeploymentSpec:
    """Return the desired state when a version is deployed: an immediate switch, or the start of a rollout.

    If nothing is deployed and loaded, there is nothing to compare with, and the switch is immediate too.

    Args:
        before: The current desired state; None if there is none.
        reference: The requested reference.
        version: The version it resolved to.
        settings: The settings of the deployment.
        rollout_id: Identifies the rollout, if one begins.
        now: The current time (UTC).
        applied: The document that asks for it; None for a deployment by other means.
    """
    model = reference.model
    switched = DeploymentSpec(
        model=model, reference=str(reference), version=version, settings=settings, applied=applied
    )
    if before is None or before.deleted or not before.loaded or settings.rollout.kind is StrategyKind.IMMEDIATE:
        return switched
    if before.version == version and _run(before.settings) == _run(settings):
        return switched  # no change that affects the answers
    trial = before.trial
    if trial and (trial.version, trial.settings, trial.reference) == (version, settings, str(reference)):
        return before if before.applied == applied else before.with_changes(applied=applied)
    rollout = Rollout(
        id=rollout_id,
        version=version,
        old_version=before.version,
        reference=str(reference),
        settings=settings,
        began_at=now,
    )
    return before.with_changes(rollout=rollout, applied=applied)


def weight(rollout: Rollout) -> float:
    """Return the share of the requests, 0 to 1, that the new version answers while it is ready."""
    if rollout.step_since is None or rollout.strategy.kind is not StrategyKind.CANARY:
        return 0.0
    steps = rollout.strategy.compared_steps
    return steps[min(rollout.step, len(steps) - 1)].weight_percent / 100


def mirrors(rollout: Rollout) -> bool:
    """Return whether the new version gets copies of requests."""
    return rollout.step_since is not None and rollout.strategy.kind is StrategyKind.SHADOW


def step_seconds(rollout: Rollout) -> float:
    """Return the minimum duration of the current step, in seconds."""
    if rollout.strategy.kind is StrategyKind.SHADOW:
        return rollout.strategy.shadow_seconds
    steps = rollout.strategy.compared_steps
    return steps[min(rollout.step, len(steps) - 1)].seconds


def describe_step(rollout: Rollout) -> str:
    """Return the current step as text."""
    strategy = rollout.strategy
    match strategy.kind:
        case StrategyKind.SHADOW:
            return "it receives shadow requests"
        case StrategyKind.MANUAL:
            return "it answers only requests that name it"
        case _:
            steps = strategy.compared_steps
            step = steps[min(rollout.step, len(steps) - 1)]
            return f"step {rollout.step + 1} of {len(steps)}, {step.weight_percent:g} % of the requests"


def _run(settings: DeploymentSettings) -> str:
    """Return the part of the settings that affects how a version runs."""
    return settings.model_dump_json(exclude=set(RUN_THE_SAME_FIELDS))


def _evidence_of(signal: Signal, strategy: RolloutStrategy, evidence: Evidence) -> float:
    if signal is Signal.DIFFERENCES:
        return share_evidence(evidence.differing, evidence.compared, strategy.difference_share)
    return label_evidence(evidence.labelled(signal))


def _figures(
    signal: Signal, strategy: RolloutStrategy, evidence: Evidence, shown: tuple[ArmFigures, ArmFigures]
) -> str:
    old, new = evidence.old, evidence.new
    if signal is Signal.DIFFERENCES:
        return (
            f"{evidence.differing} of {evidence.compared} answers differ (largest difference "
            f"{evidence.largest_difference:.3g}; the limit is {strategy.difference_share:.2%} of the answers)"
        )
    if signal is Signal.FAILURES:
        return f"{new.failures} of {new.requests} requests failed, active version {old.failures} of {old.requests}"
    old_figures, new_figures = shown
    if signal is Signal.MEDIAN:
        return f"p50 {_span(new_figures.p50_seconds)}, active version {_span(old_figures.p50_seconds)}"
    return f"p99 {_span(new_figures.p99_seconds)}, active version {_span(old_figures.p99_seconds)}"


def _span(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.3g} ms"


def _odds(finding: Finding) -> str:
    return _odds_text(finding.log_evidence)


def _odds_text(log_evidence: float) -> str:
    if log_evidence > 20:
        return "more than 10^8 to 1"
    return f"{math.exp(log_evidence):.0f} to 1"
