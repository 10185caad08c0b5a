"""A rollout's decisions, one branch of the tree after the other, and how a rollout begins and ends."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Rollout, RolloutPhase
from controlplane.domain.evidence import ArmCounts, Evidence, LabelCounts, Signal
from controlplane.domain.latencies import Latencies, bucket_of, quantile
from controlplane.domain.names import Reference
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.decision import Readiness, RolloutAction, decide
from controlplane.domain.rollout.strategy import RolloutStep, RolloutStrategy, StrategyKind
from controlplane.errors import ConflictError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
READY = Readiness(ready=True)
STEPS = (RolloutStep(weight_percent=5, seconds=60), RolloutStep(weight_percent=25, seconds=60))


def strategy(kind: StrategyKind = StrategyKind.CANARY, **more: Any) -> RolloutStrategy:
    return RolloutStrategy(kind=kind, steps=STEPS, shadow_seconds=60, minimum_requests=10, **more)


def rollout(kind: StrategyKind = StrategyKind.CANARY, **more: Any) -> Rollout:
    settings = DeploymentSettings(rollout=strategy(kind))
    fields = {
        "id": "r",
        "version": 2,
        "old_version": 1,
        "reference": "m:2",
        "settings": settings,
        "began_at": NOW,
        "step_since": NOW,
    }
    return Rollout(**(fields | more))


def fine(new: int, old: int = 1000) -> Evidence:
    return Evidence(old=ArmCounts(requests=old), new=ArmCounts(requests=new))


def failing(**more: Any) -> Evidence:
    labels = (LabelCounts(signal=Signal.FAILURES, weight=0.05, old=0, new=5),)
    return Evidence(old=ArmCounts(requests=1000), new=ArmCounts(requests=50, failures=5), labels=labels).model_copy(
        update=more
    )


def test_version_that_cannot_be_loaded_is_aborted() -> None:
    decision = decide(rollout(step_since=None), Evidence(), Readiness(ready=False, failed="out of memory"), NOW)
    assert decision.action is RolloutAction.ABORT
    assert "out of memory" in decision.reason


@pytest.mark.parametrize("phase", [RolloutPhase.RUNNING, RolloutPhase.PAUSED])
def test_worse_version_is_aborted_at_any_time_with_measurements(phase: RolloutPhase) -> None:
    decision = decide(rollout(phase=phase), failing(), READY, NOW)
    assert decision.action is RolloutAction.ABORT
    assert "5 of 50 requests failed, active version 0 of 1000" in decision.reason


def test_the_first_step_begins_when_both_are_ready() -> None:
    waiting = rollout(step_since=None)
    assert decide(waiting, Evidence(), Readiness(ready=False, message="it is being loaded"), NOW) == (
        rules.RolloutDecision(RolloutAction.HOLD, "it is being loaded")
    )
    assert decide(waiting, Evidence(), READY, NOW).action is RolloutAction.BEGIN


@pytest.mark.parametrize(
    ("seconds", "requests", "action"),
    [
        (59, 1000, RolloutAction.HOLD),
        (60, 9, RolloutAction.HOLD),
        (60, 0, RolloutAction.HOLD),
        (86_400, 9, RolloutAction.HOLD),
        (60, 10, RolloutAction.ADVANCE),
    ],
)
def test_step_needs_its_minimum_time_and_requests(seconds: int, requests: int, action: RolloutAction) -> None:
    assert decide(rollout(), fine(requests), READY, NOW + timedelta(seconds=seconds)).action is action


def test_requests_of_an_earlier_step_do_not_count_for_the_next_one() -> None:
    second = rollout(step=1, step_evidence=fine(100))
    later = NOW + timedelta(seconds=60)
    assert decide(second, fine(109), READY, later).action is RolloutAction.HOLD
    assert decide(second, fine(110), READY, later).action is RolloutAction.PROMOTE


def test_doubtful_version_is_neither_promoted_nor_aborted() -> None:
    def seen(failures: int) -> Evidence:
        labels = (LabelCounts(signal=Signal.FAILURES, weight=0.05, new=failures),)
        new = ArmCounts(requests=100, failures=failures)
        return Evidence(old=ArmCounts(requests=1900), new=new, labels=labels)

    later = NOW + timedelta(seconds=60)
    ends = [decide(rollout(), seen(failures), READY, later) for failures in range(4)]
    assert [one.action for one in ends] == [
        RolloutAction.ADVANCE,
        RolloutAction.ADVANCE,
        RolloutAction.HOLD,
        RolloutAction.ABORT,
    ]
    assert "it is uncertain whether version 2 is worse: 2 of 100 requests failed" in ends[2].reason


def test_paused_and_manual_rollouts_never_advance_automatically() -> None:
    later = NOW + timedelta(days=300)
    for held in (rollout(phase=RolloutPhase.PAUSED), rollout(StrategyKind.MANUAL)):
        assert decide(held, fine(10**6), READY, later).action is RolloutAction.HOLD


def test_rollout_holds_while_a_version_is_not_ready() -> None:
    decision = decide(rollout(), fine(1000), Readiness(ready=False, message="it is reloaded"), NOW + timedelta(days=1))
    assert (decision.action, decision.reason) == (RolloutAction.HOLD, "it is reloaded")


def test_shadow_rollout_detects_differing_answers() -> None:
    shadowed = rollout(StrategyKind.SHADOW)
    later = NOW + timedelta(seconds=60)
    same = fine(200).model_copy(update={"compared": 200, "differing": 1})
    other = fine(200).model_copy(update={"compared": 200, "differing": 30, "largest_difference": 0.5})
    assert decide(shadowed, same, READY, later).action is RolloutAction.PROMOTE
    decision = decide(shadowed, other, READY, later)
    assert decision.action is RolloutAction.ABORT
    assert "30 of 200 answers differ (largest difference 0.5; the limit is 1.00% of the answers)" in decision.reason


@given(
    failures=st.integers(0, 200),
    old_failures=st.integers(0, 200),
    seconds=st.floats(0, 1e6),
    requests=st.integers(0, 10_000),
    phase=st.sampled_from([RolloutPhase.RUNNING, RolloutPhase.PAUSED]),
    kind=st.sampled_from([StrategyKind.CANARY, StrategyKind.SHADOW, StrategyKind.MANUAL]),
    ready=st.booleans(),
)
def test_worse_or_untested_version_is_never_promoted(
    failures: int,
    old_failures: int,
    seconds: float,
    requests: int,
    phase: RolloutPhase,
    kind: StrategyKind,
    ready: bool,
) -> None:
    labels = (LabelCounts(signal=Signal.FAILURES, weight=0.25, old=old_failures, new=failures),)
    evidence = Evidence(
        old=ArmCounts(requests=10_000, failures=old_failures),
        new=ArmCounts(requests=requests, failures=min(failures, requests)),
        labels=labels,
    )
    one = rollout(kind, phase=phase)
    decision = decide(one, evidence, Readiness(ready=ready), NOW + timedelta(seconds=seconds))
    worse = any(finding.worse for finding in rules.findings(one, evidence))
    assert (decision.action is RolloutAction.ABORT) == worse
    if decision.action in {RolloutAction.ADVANCE, RolloutAction.PROMOTE}:
        assert ready
        assert phase is RolloutPhase.RUNNING
        assert kind is not StrategyKind.MANUAL
        assert seconds >= 60
        assert requests >= 10
        odds = [finding.log_evidence for finding in rules.findings(one, evidence)]
        assert max(odds) < math.log(rules.DOUBT)
    assert decision == decide(one, evidence, Readiness(ready=ready), NOW + timedelta(seconds=seconds))


SPEC = DeploymentSpec(model="m", reference="m:1", version=1)
CANARY = DeploymentSettings(instance_count=2, rollout=strategy())


def begin(before: DeploymentSpec | None, settings: DeploymentSettings = CANARY, version: int = 2) -> DeploymentSpec:
    return rules.deploy(before, Reference("m", version=version), version, settings, rollout_id="r", now=NOW)


def test_rollout_keeps_the_active_version_unchanged() -> None:
    begun = begin(SPEC)
    assert (begun.version, begun.reference, begun.settings) == (1, "m:1", SPEC.settings)
    assert begun.trial is not None
    assert (begun.trial.version, begun.trial.settings) == (2, CANARY)
    assert begin(begun) is begun


@pytest.mark.parametrize(
    "before", [None, SPEC.with_changes(deleted=True, loaded=False), SPEC.with_changes(loaded=False)]
)
def test_no_rollout_without_an_active_version(before: DeploymentSpec | None) -> None:
    begun = begin(before)
    assert (begun.version, begun.rollout) == (2, None)


def test_immediate_switch_ends_a_rollout() -> None:
    assert begin(begin(SPEC), DeploymentSettings(), 3).rollout is None
    changed = begin(SPEC, DeploymentSettings(rollout=strategy()), 1)
    assert (changed.rollout, changed.settings.rollout) == (None, strategy())


def test_settings_unknown_to_triton_need_no_rollout() -> None:
    """Where it runs, how long it stays: there is nothing to compare."""
    settings = DeploymentSettings(rollout=strategy(), priority=7, max_replicas=2)
    changed = begin(SPEC, settings, 1)
    assert (changed.rollout, changed.settings) == (None, settings)
    assert begin(SPEC, DeploymentSettings(rollout=strategy(), instance_count=2), 1).trial is not None


def test_from_the_first_step_to_the_promotion() -> None:
    spec, now = begin(SPEC), NOW
    weights, requests = [rules.weight(rules.required(spec))], 0
    while spec.trial is not None:
        requests += 10
        now += timedelta(seconds=60)
        spec = rules.apply(spec, decide(spec.trial, fine(requests), READY, now), fine(requests), now)
        if spec.trial:
            weights.append(rules.weight(spec.trial))
    assert weights == [0.0, 0.05, 0.25]
    assert (spec.version, spec.reference, spec.settings) == (2, "m:2", CANARY)
    assert spec.rollout is not None
    assert spec.rollout.phase is RolloutPhase.PROMOTED
    assert "no worse" in spec.rollout.verdict


def test_an_abort_leaves_the_old_version_and_says_why() -> None:
    begun = begin(SPEC)
    spec = rules.apply(begun, decide(rollout(), failing(), READY, NOW), failing(), NOW)
    assert (spec.version, spec.settings) == (1, SPEC.settings)
    assert spec.trial is None
    assert spec.rollout is not None
    assert spec.rollout.phase is RolloutPhase.ABORTED
    with pytest.raises(ConflictError, match="the newest one was aborted: version 2 is worse in failures"):
        rules.required(spec)


def test_rollout_can_be_paused_and_resumed() -> None:
    spec = rules.paused(begin(SPEC), pause=True, why="lunch")
    assert spec.trial is not None
    assert (spec.trial.phase, spec.trial.verdict) == (RolloutPhase.PAUSED, "lunch")
    assert rules.required(rules.paused(spec, pause=False, why="back")).phase is RolloutPhase.RUNNING


def test_steps_must_ascend_and_leave_something_to_compare_with() -> None:
    with pytest.raises(ValidationError, match="must be ascending"):
        RolloutStrategy(steps=(RolloutStep(weight_percent=25), RolloutStep(weight_percent=5)))
    with pytest.raises(ValidationError, match="below 100 %"):
        RolloutStrategy(kind=StrategyKind.CANARY, steps=(RolloutStep(weight_percent=100),))
    whole = RolloutStrategy(steps=(*STEPS, RolloutStep(weight_percent=100)))
    assert whole.compared_steps == STEPS


def test_latencies_of_both_versions_refer_to_the_same_window() -> None:
    """The old version had its quiet time when the new one had no requests yet."""

    def counts(quiet: int, busy: int) -> ArmCounts:
        latencies = Latencies(counts={bucket_of(0.001): quiet, bucket_of(0.1): busy})
        return ArmCounts(requests=quiet + busy, latencies=latencies)

    quiet = Evidence(old=counts(1000, 0), new=counts(20, 0))
    later = Evidence(old=counts(1000, 300), new=counts(20, 300))
    old, new = rules.of_step(rollout(step=1, step_evidence=quiet), later)
    assert old == new
    assert old.p50_seconds == pytest.approx(0.1, rel=0.05)
    old, new = rules.of_step(rollout(step=1, step_evidence=quiet), quiet)
    assert old.p50_seconds == pytest.approx(0.001, rel=0.05)


@given(st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_is_at_most_five_percent_too_high(seconds: list[float], share: float) -> None:
    counts: dict[int, int] = {}
    for one in seconds:
        counts[bucket_of(one)] = counts.get(bucket_of(one), 0) + 1
    exact = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
    found = quantile(counts, share)
    assert found is not None
    assert exact * (1 - 1e-9) <= found <= exact * 1.05 * (1 + 1e-9)


@given(st.integers(0, 100), st.integers(0, 100), st.sampled_from([0.05, 0.5]))
def test_measurements_of_instances_add_up(one: int, other: int, weight: float) -> None:
    def evidence(count: int) -> Evidence:
        return Evidence(
            new=ArmCounts(requests=count, latencies=Latencies(counts={count: count})),
            labels=(LabelCounts(signal=Signal.TAIL, weight=weight, new=count),),
            compared=count,
        )

    total = evidence(one).plus(evidence(other))
    assert total.new.requests == total.compared == one + other
    assert sum(total.new.latencies.counts.values()) == one + other
    assert [label.new for label in total.labelled(Signal.TAIL)] == [one + other]
    assert Evidence.model_validate_json(total.model_dump_json()) == total
