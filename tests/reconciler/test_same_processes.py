"""A change of the version policy keeps the processes of the versions that stay, counted on a real Triton."""

import asyncio
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching
from controlplane.domain.rollout.decision import RolloutAction
from controlplane.domain.states import Phase
from controlplane.registry.registry import Registry
from tests.reconciler.conftest import Harness, forget, running
from tests.reconciler.test_rollout_readiness import begin, end, trial
from tests.support.model_processes import processes_of
from tests.support.triton import RunningTriton

pytestmark = pytest.mark.triton
BAKE = 600.0


def processes(harness: Harness, triton: RunningTriton, version: int, *, count: int = 1) -> set[tuple[int, float]]:
    """Return the processes of a version that is loaded."""
    found = processes_of(triton.server, harness.model, version)
    assert len(found) == count, f"version {version} has the processes {found}"
    return found


async def two_snapshots(harness: Harness) -> None:
    """Wait for two more snapshots, so that Triton's report has replaced the result of the load."""
    for _ in range(2):  # the first may have started before the load ended
        (before,) = [server.observed_at for server in harness.reconciler.servers()]
        async with asyncio.timeout(30):
            while harness.reconciler.servers()[0].observed_at == before:
                await asyncio.sleep(0.02)


async def ready(harness: Harness, version: int, settings: DeploymentSettings) -> None:
    status = await harness.deploy(version, settings=settings)
    assert status.phase is Phase.READY, status
    await two_snapshots(harness)


async def rolled_back(harness: Harness) -> None:
    status = await harness.rollback()
    assert status.phase is Phase.READY, status
    await two_snapshots(harness)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        pytest.param({}, 1, id="defaults"),
        pytest.param(
            {
                "warmup": True,
                "dynamic_batching": DynamicBatching(),
                "config_overrides": {"instance_group": [{"count": 1}, {"kind": "KIND_CPU", "count": 1}]},
            },
            2,
            id="warm-up-batching-and-two-instances",
        ),
    ],
)
async def test_rollback_and_redeploy_in_bake_window_keep_processes(
    harness: Harness, triton: RunningTriton, settings: dict[str, object], count: int
) -> None:
    wanted = DeploymentSettings.model_validate({"bake_seconds": BAKE, **settings})
    first, second = harness.publish(1.0), harness.publish(2.0)
    await ready(harness, first, wanted)
    before = processes(harness, triton, first, count=count)
    await ready(harness, second, wanted)
    newer = processes(harness, triton, second, count=count)
    await rolled_back(harness)
    assert await harness.answer() == (1.0, first)
    assert processes(harness, triton, first, count=count) == before
    await ready(harness, second, wanted)
    assert await harness.answer() == (2.0, second)
    assert processes(harness, triton, second, count=count).isdisjoint(newer), "version 2 was unloaded by the rollback"
    await rolled_back(harness)
    assert processes(harness, triton, first, count=count) == before


async def test_aborted_and_promoted_rollouts_keep_processes(harness: Harness, triton: RunningTriton) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    await ready(harness, first, DeploymentSettings(bake_seconds=BAKE))
    before = processes(harness, triton, first)
    for action in (RolloutAction.ABORT, RolloutAction.PROMOTE):
        await begin(harness, second)
        await trial(harness, ready=True)
        await end(harness, action)
        await two_snapshots(harness)
        assert processes(harness, triton, first) == before
    await rolled_back(harness)
    assert processes(harness, triton, first) == before


async def test_alias_moved_forth_and_back_keeps_processes(harness: Harness, triton: RunningTriton) -> None:
    first, second = harness.publish(1.0, aliases=["champion"]), harness.publish(2.0)
    await harness.settled(harness.put(f"{harness.model}@champion", settings=DeploymentSettings(bake_seconds=BAKE)))
    before = processes(harness, triton, first)
    for version in (second, first):
        harness.registry.set_alias(harness.model, "champion", version, actor="test")
        await harness.until(lambda status, version=version: status.servers[0].serving_version == version)  # type: ignore[misc]
        await harness.until(lambda status: status.phase is Phase.READY)
        await two_snapshots(harness)
        assert processes(harness, triton, first) == before


async def test_restart_of_the_control_plane_keeps_processes(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    settings = DeploymentSettings(bake_seconds=BAKE)
    async with running(triton, registry, model, tmp_path) as harness:
        first, second = harness.publish(1.0), harness.publish(2.0)
        await ready(harness, first, settings)
        before = processes(harness, triton, first)
    async with running(triton, registry, model, tmp_path) as harness:
        await ready(harness, second, settings)
        newer = processes(harness, triton, second)
    async with running(triton, registry, model, tmp_path) as harness:
        await harness.until(lambda status: status.phase is Phase.READY)
        assert processes(harness, triton, second) == newer
        await rolled_back(harness)
        assert processes(harness, triton, first) == before
    await forget(triton, model)


async def test_version_without_cached_revision_keeps_its_processes(harness: Harness, triton: RunningTriton) -> None:
    """After five deployments of a broken file, the older of two versions is unloaded to make room."""
    first, second, broken = (
        harness.publish(1.0),
        harness.publish(2.0),
        harness.publish(3.0, content=b"this is no model"),
    )
    settings = DeploymentSettings(bake_seconds=BAKE)
    await ready(harness, first, settings)
    await ready(harness, second, settings)
    before = processes(harness, triton, second)
    for number in range(1, 6):
        parameters = {"intra_op_thread_count": str(number)}
        revision = harness.put(f"{harness.model}:{broken}", settings=DeploymentSettings(parameters=parameters))
    status = await harness.settled(revision)
    assert status.phase is Phase.DEGRADED
    assert status.servers[0].loaded_versions == (second,)
    assert processes(harness, triton, second) == before
