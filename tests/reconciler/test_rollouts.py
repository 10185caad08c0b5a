"""Rollouts on a real Triton, with a client that infers all the while."""

import asyncio

import pytest

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.names import candidate_name
from controlplane.domain.states import Phase
from tests.reconciler.conftest import Room, traffic
from tests.support.models import affine_samples

pytestmark = pytest.mark.triton


async def test_deploy_forward_and_back_lose_no_request(room: Room) -> None:
    first, second = room.publish(1.0), room.publish(2.0)
    status = await room.deploy(first)
    assert status.phase is Phase.READY, status
    assert status.servers[0].proof is not None
    assert status.servers[0].proof.samples == 2
    assert {"fetch", "stage", "load", "prove"} <= set(status.servers[0].seconds)
    async with traffic(room.server.client, room.model) as seen:
        status = await room.deploy(second)
        assert status.phase is Phase.READY, status
        assert status.servers[0].loaded_versions == (first, second)
        assert status.servers[0].bake_until is not None
        status = await room.rollback()
        assert status.phase is Phase.READY, status
        assert status.servers[0].serving_version == first
        assert "load" not in status.servers[0].seconds, "a rollback in the bake window is a change of policy"
        await asyncio.sleep(0.1)
    assert seen.errors == []
    assert seen.order == [first, second, first]
    assert seen.answers == {(first, 1.0), (second, 2.0)}
