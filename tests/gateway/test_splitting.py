"""Which version answers, and what is measured of it; the versions are functions here."""

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from controlplane.domain.comparison import compare
from controlplane.domain.deployment import DeploymentSettings, Rollout
from controlplane.domain.evidence import Signal
from controlplane.domain.rollout.strategy import RolloutStep, RolloutStrategy, StrategyKind
from controlplane.domain.tolerance import OutputComparison, Tolerance
from controlplane.gateway.rollout.comparison import Arm
from controlplane.gateway.rollout.split import MIRRORED_AT_ONCE, TrafficSplit, TrafficSplits, tolerances

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Said:
    """An answer."""

    value: float = 1.0
    failed: bool = False
    absent: bool = False


class Versions:
    """Two versions that count their requests."""

    def __init__(self, old: Said | None = None, new: Said | None = None) -> None:
        self.says = {Arm.OLD: old or Said(), Arm.NEW: new or Said()}
        self.asked: Counter[Arm] = Counter()

    async def ask(self, arm: Arm) -> Said:
        self.asked[arm] += 1
        await asyncio.sleep(0)
        return self.says[arm]


def same(old: Said, new: Said) -> tuple[OutputComparison, ...]:
    return compare({"y": np.array([new.value])}, {"y": np.array([old.value])}, {})


def ignored(reply: Said) -> None:
    """A copy's reply."""


def split(
    kind: StrategyKind, *, servers: tuple[str, ...] = ("a",), percent: float = 20, begun: bool = True
) -> TrafficSplit:
    strategy = RolloutStrategy(kind=kind, steps=(RolloutStep(weight_percent=percent),))
    rollout = Rollout(
        id="r",
        version=2,
        old_version=1,
        reference="m:2",
        settings=DeploymentSettings(rollout=strategy),
        began_at=NOW,
        step_since=NOW if begun else None,
    )
    made = TrafficSplit("m", rollout, chance=random.Random(7).random)
    made.servers = servers
    return made


async def test_canary_gets_its_share_and_both_versions_are_measured() -> None:
    versions, canary = Versions(new=Said(failed=True)), split(StrategyKind.CANARY)
    arms = Counter([(await canary.answer(None, 400_000, versions.ask, same, ignored)).arm for _ in range(2000)])
    assert 800 < arms[Arm.NEW] < 1200, "of the sample, which is twice its share"
    evidence = canary.meter.evidence()
    assert (evidence.new.requests, evidence.old.requests) == (arms[Arm.NEW], arms[Arm.OLD])
    (labels,) = evidence.labelled(Signal.FAILURES)
    assert (labels.weight, labels.new, labels.old) == (0.5, arms[Arm.NEW], 0)


async def test_old_version_answers_before_rollout_and_without_server() -> None:
    for canary in (split(StrategyKind.CANARY, begun=False), split(StrategyKind.CANARY, servers=())):
        versions = Versions()
        for _ in range(100):
            await canary.answer(None, 400_000, versions.ask, same, ignored)
        assert versions.asked == {Arm.OLD: 100}
        assert canary.meter.evidence().old.requests == 0


async def test_old_version_answers_if_new_one_is_absent() -> None:
    versions, canary = Versions(new=Said(failed=True, absent=True)), split(StrategyKind.CANARY)
    tried = [await canary.answer(None, 400_000, versions.ask, same, ignored) for _ in range(200)]
    assert {one.arm for one in tried} == {Arm.OLD}
    assert not any(one.reply.failed for one in tried)
    evidence = canary.meter.evidence()
    assert evidence.refused == versions.asked[Arm.NEW] > 0
    assert evidence.new.requests == 0
    assert versions.asked[Arm.OLD] == 200


async def test_request_cancelled_by_client_counts_against_version() -> None:
    canary = split(StrategyKind.CANARY, percent=99)

    async def ask(arm: Arm) -> Said:
        await asyncio.sleep(60 if arm is Arm.NEW else 0)
        return Said()

    for _ in range(20):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await canary.answer(None, 400_000, ask, same, ignored)
    evidence = canary.meter.evidence()
    assert evidence.new.failures == evidence.new.requests >= 15
    assert evidence.old.failures == 0


async def test_request_that_names_version_is_not_compared() -> None:
    versions, pinned = Versions(old=Said(1.0), new=Said(2.0, failed=True)), split(StrategyKind.MANUAL)
    assert pinned.named("2") is Arm.NEW
    assert pinned.named("1") is Arm.OLD
    assert pinned.named("3") is pinned.named("") is None
    assert (await pinned.answer(Arm.NEW, None, versions.ask, same, ignored)).reply.value == 2.0
    assert (await pinned.answer(Arm.OLD, None, versions.ask, same, ignored)).reply.value == 1.0
    assert (await pinned.answer(None, 400_000, versions.ask, same, ignored)).reply.value == 1.0
    evidence = pinned.meter.evidence()
    assert (evidence.new.requests, evidence.new.failures, evidence.labels) == (1, 1, ())


async def test_shadow_compares_answers_without_delaying_client() -> None:
    shadow = split(StrategyKind.SHADOW)
    release = asyncio.Event()

    async def ask(arm: Arm) -> Said:
        if arm is Arm.NEW:
            await release.wait()
        return Said(1.0 if arm is Arm.OLD else 1.5)

    tried = [await shadow.answer(None, 400_000, ask, same, ignored) for _ in range(MIRRORED_AT_ONCE + 3)]
    assert {one.reply.value for one in tried} == {1.0}
    assert shadow.meter.evidence().skipped == 3
    release.set()
    async with asyncio.timeout(10):
        while shadow.meter.evidence().compared < MIRRORED_AT_ONCE:
            await asyncio.sleep(0.01)
    evidence = shadow.meter.evidence()
    assert (evidence.differing, evidence.largest_difference) == (MIRRORED_AT_ONCE, 0.5)
    assert evidence.new.requests == evidence.old.requests == MIRRORED_AT_ONCE


async def test_failed_shadow_request_affects_nothing_else() -> None:
    shadow = split(StrategyKind.SHADOW)

    async def ask(arm: Arm) -> Said:
        if arm is Arm.NEW:
            raise RuntimeError("a surprise")
        return Said()

    assert not (await shadow.answer(None, 400_000, ask, same, ignored)).reply.failed
    await shadow.close()


async def test_split_keeps_measurements_during_same_rollout() -> None:
    splits, rollout = TrafficSplits(), split(StrategyKind.CANARY).rollout
    first = await splits.keep("m", rollout, ("a",))
    assert await splits.keep("m", rollout.with_changes(step=1), ("a", "b")) is first
    assert first.servers == ("a", "b")
    assert {first.server() for _ in range(50)} == {"a", "b"}
    assert await splits.keep("m", rollout.with_changes(id="other"), ("a",)) is not first
    assert splits.models == {"m"}
    await splits.drop("m")
    assert splits.get("m") is None
    assert splits.models == frozenset()
    await splits.close()


async def test_request_not_drawn_by_haproxy_is_drawn_by_split() -> None:
    """HAProxy drew none of them, so of these, too, the new version gets its share, and is copied its share."""
    versions, canary = Versions(), split(StrategyKind.CANARY)
    arms = Counter([(await canary.answer(None, None, versions.ask, same, ignored)).arm for _ in range(2000)])
    assert 300 < arms[Arm.NEW] < 500
    assert [labels.weight for labels in canary.meter.evidence().labelled(Signal.FAILURES)] == []
    shadow = split(StrategyKind.SHADOW)
    ways = Counter([(await shadow.answer(None, None, versions.ask, same, ignored)).way for _ in range(2000)])
    assert 400 < ways["shadow"] < 600
    assert ways["activator"] == 2000 - ways["shadow"]
    await shadow.close()


async def test_only_models_with_active_rollout_are_drawn() -> None:
    splits, rollout = TrafficSplits(), split(StrategyKind.CANARY).rollout
    await splits.keep("ready", rollout, ("a",))
    await splits.keep("away", rollout, ())
    await splits.keep("not-begun", rollout.with_changes(step_since=None), ("a",))
    assert splits.models == {"ready", "away", "not-begun"}
    assert splits.parts() == {"ready": 400_000}
    changed = splits.changed
    await splits.keep("ready", rollout, ("a", "b"))
    assert not changed.is_set(), "nothing that HAProxy has to know"
    await splits.drop("ready")
    assert changed.is_set()


def test_strategy_sets_tolerances() -> None:
    rollout = split(StrategyKind.SHADOW).rollout
    assert tolerances(rollout, ["y"]) == {}
    wide = Tolerance(absolute=1.0, relative=0.0)
    strategy = rollout.strategy.model_copy(update={"difference": wide})
    wider = rollout.with_changes(settings=DeploymentSettings(rollout=strategy))
    assert tolerances(wider, ["y", "z"]) == {"y": wide, "z": wide}
