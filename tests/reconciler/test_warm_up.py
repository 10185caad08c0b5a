"""Deployments whose load runs a golden sample, on a real Triton that reads the sample from disk."""

import pytest

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.states import Phase
from tests.reconciler.conftest import Room, nothing_half_staged, traffic
from tests.support.models import affine_samples

pytestmark = pytest.mark.triton

WARM = DeploymentSettings(warmup=True)


async def warm_ups(room: Room) -> list[str]:
    config = await room.server.client.model_config(room.model)
    return [request["name"] for request in config.get("model_warmup", [])]


async def test_warm_up_is_enabled_and_disabled_for_an_active_version(room: Room) -> None:
    version = room.publish(1.0)
    await room.deploy(version)
    assert await warm_ups(room) == []
    async with traffic(room.server.client, room.model) as seen:
        status = await room.deploy(version, settings=WARM)
        assert status.phase is Phase.READY, status
        assert await warm_ups(room) == ["golden"]
        status = await room.deploy(version, settings=DeploymentSettings())
        assert status.phase is Phase.READY, status
        assert await warm_ups(room) == []
    assert seen.errors == []
    await nothing_half_staged(room.server, room.model)


async def test_deploy_and_rollback_with_warm_up(room: Room) -> None:
    first, second = room.publish(1.0), room.publish(2.0, golden=affine_samples(scale=2.0, count=1))
    third = room.publish(3.0, golden=affine_samples(scale=3.0, count=3))
    status = await room.deploy(first, settings=WARM)
    assert status.phase is Phase.READY, status
    for version in (second, third):
        status = await room.deploy(version)
        assert status.phase is Phase.READY, status
        assert await warm_ups(room) == ["golden"]
        assert await room.answer() == (float(version), version)
    status = await room.rollback()
    assert status.phase is Phase.READY, status
    assert await room.answer() == (2.0, second)


async def test_lower_version_staged_without_warm_up_gets_it(room: Room) -> None:
    first, second = room.publish(1.0), room.publish(2.0)
    await room.deploy(first)
    await room.deploy(second)
    status = await room.deploy(first, settings=WARM)
    assert status.phase is Phase.READY, status
    assert await room.answer() == (1.0, first)
    assert await warm_ups(room) == ["golden"]


async def test_warm_up_of_versions_with_different_golden_inputs(room: Room) -> None:
    first = room.publish(1.0)
    second = room.publish(2.0, golden=affine_samples(scale=2.0, count=3)[2:])
    await room.deploy(first, settings=WARM)
    status = await room.deploy(second)
    assert status.phase is Phase.READY, status
    assert await room.answer() == (2.0, second)
    folder = room.server.repository.root / room.model / "warmup"
    assert len(list(folder.iterdir())) == 2
