"""The work of the loop is proportional to what changed, not to what exists. Counted, not timed."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Mode
from controlplane.domain.states import Phase
from controlplane.reconciler import controller, cycle
from controlplane.reconciler.controller import Reconciler
from controlplane.reconciler.loop_metrics import LoopMetrics
from controlplane.registry.registry import Registry
from tests.reconciler.conftest import forget, running
from tests.support.models import publish_affine
from tests.support.triton import RunningTriton

pytestmark = [pytest.mark.triton, pytest.mark.slow]

IDLE = 40
_AT_ONCE = 8
_TICKS = 4


@pytest.fixture
async def idle(registry: Registry, model: str, tmp_path: Path) -> list[str]:
    """Create on-demand deployments without requests."""
    names = [f"{model}-idle{number:03d}" for number in range(IDLE)]
    for name in names:
        publish_affine(registry, name, tmp_path, scale=2.0)
        settings = DeploymentSettings(mode=Mode.ON_DEMAND)
        spec = DeploymentSpec(model=name, reference=f"{name}:1", version=1, settings=settings)
        registry.deployments.put(spec, after=None, actor="test", reason="")
    return names


async def settled(reconciler: Reconciler, names: list[str]) -> None:
    async with asyncio.timeout(60):
        while True:
            found = [reconciler.status(name) for name in names]
            if all(one is not None and one.phase is Phase.UNLOADED for one in found):
                return
            await asyncio.sleep(0.05)


async def ticks(reconciler: Reconciler, count: int) -> None:
    """Wait for this number of cycle timers, with polls between them."""

    def had() -> tuple[int, int]:
        return tuple(sum(reconciler.loop_metrics.beats[kind].buckets) for kind in ("CycleTimer", "ReadTimer"))  # type: ignore[return-value]

    began = had()
    async with asyncio.timeout(60):
        while min(now - before for now, before in zip(had(), began, strict=True)) < count:
            await asyncio.sleep(0.05)


def work(reconciler: Reconciler) -> Counter[str]:
    return Counter(reconciler.loop_metrics.cycles) + Counter(statuses=reconciler.statuses_computed)


async def test_idle_deployments_cost_no_work_at_rest(
    triton: RunningTriton, registry: Registry, model: str, idle: list[str], tmp_path: Path
) -> None:
    async with running(triton, registry, model, tmp_path) as harness:
        await settled(harness.reconciler, idle)
        await ticks(harness.reconciler, 2)
        before = work(harness.reconciler)
        await ticks(harness.reconciler, _TICKS)
        done = work(harness.reconciler) - before
        done.pop("rounds")  # a cycle without marked models does nothing
        assert not done, done
        assert not harness.reconciler.newest_cycle.more


async def test_idle_deployments_share_what_is_equal_and_need_no_records(
    triton: RunningTriton, registry: Registry, model: str, idle: list[str], tmp_path: Path
) -> None:
    since = {name: registry.deployments.get(name).at for name in idle}
    for _ in range(2):  # the second process reads what the first one has written
        async with running(triton, registry, model, tmp_path) as harness:
            await settled(harness.reconciler, idle)
            await ticks(harness.reconciler, 2)
            statuses = {name: harness.reconciler.status(name) for name in idle}
            units = harness.reconciler._state.servers["test"].units
            for name, status in statuses.items():
                assert status is not None
                kept = zip(status.conditions, units[name].conditions, strict=True)
                assert all(shown is own for shown, own in kept), "each condition is kept once"
                assert {one.last_transition_time for one in status.conditions} == {since[name]}
            assert len({id(one.servers[0].health) for one in statuses.values() if one is not None}) == 1
            assert registry.condition_log.all() == {}, "a reader assumes the same without a record"
            await ticks(harness.reconciler, 2)
            assert list(registry.store.list("conditions/")) == []


async def test_condition_record_is_written_once_an_idle_model_is_loaded(
    triton: RunningTriton, registry: Registry, model: str, idle: list[str], tmp_path: Path
) -> None:
    async with running(triton, registry, model, tmp_path) as harness:
        await settled(harness.reconciler, idle)
        status = await harness.reconciler.wait_loaded(idle[0], 60)
        assert status.phase is Phase.READY, status
        async with asyncio.timeout(60):
            while list(registry.condition_log.all()) != [idle[0]]:
                await asyncio.sleep(0.05)
    await forget(triton, idle[0])


async def test_changed_deployment_is_planned_without_idle_ones(
    triton: RunningTriton, registry: Registry, model: str, idle: list[str], tmp_path: Path
) -> None:
    async with running(triton, registry, model, tmp_path) as harness:
        await settled(harness.reconciler, idle)
        version = harness.publish(3.0)
        await ticks(harness.reconciler, 2)
        before = work(harness.reconciler)
        status = await harness.deploy(version, settings=DeploymentSettings(mode=Mode.RESIDENT))
        assert status.phase is Phase.READY
        done = work(harness.reconciler) - before
        assert done["began"] >= 3, "it is staged, loaded and proved"
        assert done["planned"] < IDLE, done
        assert done["statuses"] < 10 * IDLE, done
    await forget(triton, model)


async def test_full_pass_finds_no_missed_change(
    triton: RunningTriton, registry: Registry, model: str, idle: list[str], tmp_path: Path
) -> None:
    async with running(triton, registry, model, tmp_path, interval_seconds=0.1) as harness:
        await settled(harness.reconciler, idle)
        await harness.deploy(harness.publish(3.0))
        await harness.deploy(harness.publish(4.0))
        await ticks(harness.reconciler, 8)
        assert not harness.reconciler.missed, dict(harness.reconciler.missed)
    await forget(triton, model)


async def test_many_changes_take_several_cycles_and_a_deploy_between_them_counts(
    triton: RunningTriton,
    registry: Registry,
    model: str,
    idle: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cycle, "AT_ONCE", _AT_ONCE)
    monkeypatch.setattr(controller, "_STATUSES_AT_ONCE", _AT_ONCE)
    reports: list[cycle.CycleReport] = []
    turns: list[int] = []
    count = LoopMetrics.cycle

    def note(metrics: LoopMetrics, report: cycle.CycleReport, seconds: float) -> None:
        reports.append(report)
        count(metrics, report, seconds)

    async def others_run() -> None:
        while True:
            turns.append(len(reports))
            await asyncio.sleep(0)

    monkeypatch.setattr(LoopMetrics, "cycle", note)
    async with running(triton, registry, model, tmp_path) as harness, asyncio.timeout(120):
        other = asyncio.create_task(others_run())
        while not any(report.more for report in reports):
            await asyncio.sleep(0)
        changed = registry.deployments.get(idle[-1])
        resident = changed.spec.with_changes(settings=DeploymentSettings(mode=Mode.RESIDENT))
        registry.deployments.put(resident, after=changed, actor="test", reason="")
        harness.reconciler.wake(idle[-1])
        status = await harness.reconciler.wait_settled(idle[-1], changed.number + 1, 60)
        assert status.phase is Phase.READY, status
        other.cancel()
        await settled(harness.reconciler, idle[:-1])
    left = [number for number, report in enumerate(reports) if report.more]
    assert len(left) >= 2 * (IDLE // _AT_ONCE - 1), "placement and planning each take several cycles"
    assert set(left) <= {*turns, *(turn - 1 for turn in turns)}, "other tasks run after each of them"
    for report in reports:
        assert report.placed <= report.rounds * _AT_ONCE
        assert report.planned <= report.rounds + _AT_ONCE
    await forget(triton, idle[-1])


async def test_unmarked_change_is_found_and_repaired(
    triton: RunningTriton, registry: Registry, model: str, idle: list[str], tmp_path: Path
) -> None:
    async with running(triton, registry, model, tmp_path) as harness:
        await settled(harness.reconciler, idle)
        state = harness.reconciler._state
        state.servers["test"].scheduler.model_state(idle[0]).demand.since = state.clock()
        async with asyncio.timeout(60):
            while harness.reconciler.missed != {"residency": 1}:
                await asyncio.sleep(0.05)
        status = await harness.reconciler.wait_loaded(idle[0], 60)
        assert status.phase is Phase.READY, status
        harness.reconciler.missed.clear()
    await forget(triton, idle[0])
