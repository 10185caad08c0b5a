"""Deployments whose load runs a golden sample, on a real Triton that reads the sample from disk."""

import pytest

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.states import Phase
from tests.reconciler.conftest import Harness, nothing_half_staged, traffic
from tests.support.models import affine_samples

pytestmark = pytest.mark.triton

WARM = DeploymentSettings(warmup=True)


async def warm_ups(harness: Harness) -> list[str]:
    config = await harness.server.client.model_config(harness.model)
    return [request["name"] for request in config.get("model_warmup", [])]


async def test_warm_up_is_enabled_and_disabled_for_an_active_version(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    assert await warm_ups(harness) == []
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(version, settings=WARM)
        assert status.phase is Phase.READY, status
        assert await warm_ups(harness) == ["golden"]
        status = await harness.deploy(version, settings=DeploymentSettings())
        assert status.phase is Phase.READY, status
        assert await warm_ups(harness) == []
    assert seen.errors == []
    await nothing_half_staged(harness.server, harness.model)


async def test_deploy_and_rollback_with_warm_up(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0, golden=affine_samples(scale=2.0, count=1))
    third = harness.publish(3.0, golden=affine_samples(scale=3.0, count=3))
    status = await harness.deploy(first, settings=WARM)
    assert status.phase is Phase.READY, status
    for version in (second, third):
        status = await harness.deploy(version)
        assert status.phase is Phase.READY, status
        assert await warm_ups(harness) == ["golden"]
        assert await harness.answer() == (float(version), version)
    status = await harness.rollback()
    assert status.phase is Phase.READY, status
    assert await harness.answer() == (2.0, second)


async def test_lower_version_staged_without_warm_up_gets_it(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first)
    await harness.deploy(second)
    status = await harness.deploy(first, settings=WARM)
    assert status.phase is Phase.READY, status
    assert await harness.answer() == (1.0, first)
    assert await warm_ups(harness) == ["golden"]


async def test_warm_up_of_versions_with_different_golden_inputs(harness: Harness) -> None:
    first = harness.publish(1.0)
    second = harness.publish(2.0, golden=affine_samples(scale=2.0, count=3)[2:])
    await harness.deploy(first, settings=WARM)
    status = await harness.deploy(second)
    assert status.phase is Phase.READY, status
    assert await harness.answer() == (2.0, second)
    folder = harness.server.repository.root / harness.model / "warmup"
    assert len(list(folder.iterdir())) == 2
