"""Rollouts in simulation: how often a fine version is withdrawn, and how soon a bad one."""

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, RolloutPhase
from controlplane.domain.names import Reference
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.decision import Readiness
from controlplane.domain.rollout.sampling import PARTS, sample, weight
from controlplane.domain.rollout.strategy import RolloutStep, RolloutStrategy, StrategyKind
from controlplane.gateway.rollout.comparison import Answer, Arm, SplitMeter

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOOK_EVERY = 20
"""Requests between two looks. One request is 20 ms."""
REQUEST_SECONDS = 0.02

Behaviour = Callable[[random.Random, float], Answer]


def fine(chance: random.Random, load: float) -> Answer:
    """Latencies with a long tail, and more failures and slower answers while the load is high."""
    return Answer(chance.random() < 0.01 * load, 0.004 * load * chance.lognormvariate(0, 0.5))


def slower(chance: random.Random, load: float) -> Answer:
    answer = fine(chance, load)
    return Answer(answer.failed, answer.seconds * 2)


def slow_tail(chance: random.Random, load: float) -> Answer:
    answer = fine(chance, load)
    return Answer(answer.failed, answer.seconds * (20 if chance.random() < 0.1 else 1))


def failing(chance: random.Random, load: float) -> Answer:
    return Answer(chance.random() < 0.1, fine(chance, load).seconds)


def tenth_slower(chance: random.Random, load: float) -> Answer:
    """Slower, but by less than what the strategy says is no fault."""
    answer = fine(chance, load)
    return Answer(answer.failed, answer.seconds * 1.1)


def roll_out(
    new: Behaviour, seed: int, kind: StrategyKind = StrategyKind.CANARY, *, busy: bool
) -> tuple[RolloutPhase, int]:
    """Run one rollout to its end; return how it ended and how many requests the new version had by then.

    Args:
        new: What the new version does.
        seed: Makes the chance.
        kind: The strategy.
        busy: Whether a sample is measured, as of a model with many requests; else all.
    """
    steps = tuple(RolloutStep(weight_percent=weight, seconds=8) for weight in (5, 25, 50, 80))
    strategy = RolloutStrategy(kind=kind, steps=steps, shadow_seconds=32 if busy else 8, minimum_requests=50)
    settings = DeploymentSettings(rollout=strategy)
    spec = DeploymentSpec(model="m", reference="m:1", version=1)
    spec = rules.deploy(spec, Reference("m", version=2), 2, settings, rollout_id="r", now=NOW)
    meter, chance, served = SplitMeter(strategy.latency_tolerance), random.Random(seed), 0
    while (rollout := spec.trial) is not None:
        now = NOW + timedelta(seconds=served * REQUEST_SECONDS)
        evidence = meter.evidence()
        spec = rules.apply(spec, rules.decide(rollout, evidence, Readiness(ready=True), now), evidence, now)
        if spec.trial is None:
            break
        parts = sample(spec.trial) if busy else PARTS
        share = weight(spec.trial, parts)
        for _ in range(LOOK_EVERY):
            served += 1
            load = 2.0 if served % 1000 < 200 else 1.0
            if chance.random() * PARTS >= parts:
                continue  # HAProxy sends it past the control plane
            if kind is StrategyKind.SHADOW:
                meter.mirrored(fine(chance, load), new(chance, load))
            elif chance.random() < share:
                meter.split(Arm.NEW, new(chance, load), share)
            else:
                meter.split(Arm.OLD, fine(chance, load), share)
    assert spec.rollout is not None
    return spec.rollout.phase, spec.rollout.evidence.new.requests


@pytest.mark.parametrize(
    ("behaviour", "rollouts", "busy"),
    [
        (fine, 50, True),
        (fine, 50, False),
        (tenth_slower, 50, True),
        pytest.param(fine, 200, True, marks=pytest.mark.long),
        pytest.param(fine, 200, False, marks=pytest.mark.long),
    ],
)
def test_good_rollouts_are_withdrawn_no_more_often_than_documented(
    behaviour: Behaviour, rollouts: int, busy: bool
) -> None:
    ends = Counter(roll_out(behaviour, seed, busy=busy)[0] for seed in range(rollouts))
    print(ends)
    assert ends[RolloutPhase.ABORTED] <= rollouts * RolloutStrategy().error
    assert ends[RolloutPhase.PROMOTED] == rollouts - ends[RolloutPhase.ABORTED]


@pytest.mark.parametrize("behaviour", [slower, slow_tail, failing])
@pytest.mark.parametrize("kind", [StrategyKind.CANARY, StrategyKind.SHADOW])
@pytest.mark.parametrize("busy", [True, False], ids=["sample", "all"])
def test_bad_rollouts_are_withdrawn(behaviour: Behaviour, kind: StrategyKind, busy: bool) -> None:
    # A quarter of the requests are copied: the simulated shadow takes four times as long for as many.
    ends = [roll_out(behaviour, seed, kind, busy=busy) for seed in range(20)]
    requests = sorted(count for _, count in ends)
    print(behaviour.__name__, kind, Counter(phase for phase, _ in ends), requests)
    assert {phase for phase, _ in ends} == {RolloutPhase.ABORTED}
