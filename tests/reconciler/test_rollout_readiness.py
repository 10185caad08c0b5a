"""The candidate of a rollout on a real Triton: loaded beside the old version, which serves until the rollout ends."""

import asyncio
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.names import Reference, candidate_name
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.decision import RolloutAction, RolloutDecision
from controlplane.domain.rollout.strategy import RolloutStrategy, StrategyKind
from controlplane.domain.states import Phase
from controlplane.reconciler.rollout_readiness import RolloutReadiness
from tests.reconciler.conftest import Room, answer, nothing_half_staged, open_registry, running, traffic
from tests.support.models import affine_samples
from tests.support.triton import RunningTriton

pytestmark = pytest.mark.triton

CANARY = DeploymentSettings(rollout=RolloutStrategy(kind=StrategyKind.CANARY))


async def begin(room: Room, version: int) -> None:
    before = room.registry.deployments.get(room.model, fresh=True)
    spec = rules.deploy(
        before.spec, Reference(room.model, version=version), version, CANARY, rollout_id=uuid.uuid4().hex, now=now()
    )
    await room.settled(room.registry.deployments.put(spec, after=before, actor="test", reason="canary"))


async def end(room: Room, action: RolloutAction) -> None:
    before = room.registry.deployments.get(room.model, fresh=True)
    rollout = rules.required(before.spec)
    spec = rules.apply(before.spec, RolloutDecision(action, "by hand"), rollout.evidence, now())
    await room.settled(room.registry.deployments.put(spec, after=before, actor="test", reason=action))


def now() -> datetime:
    return datetime.now(UTC)


async def trial(room: Room, *, ready: bool) -> RolloutReadiness:
    async with asyncio.timeout(30):
        while True:
            found = room.reconciler.trials().get(room.model)
            if found is not None and (found.readiness.ready if ready else found.readiness.failed):
                return found
            await asyncio.sleep(0.02)


async def test_old_version_serves_until_the_candidate_is_promoted(room: Room) -> None:
    first, second = room.publish(1.0), room.publish(2.0)
    await room.deploy(first)
    async with traffic(room.server.client, room.model) as seen:
        await begin(room, second)
        found = await trial(room, ready=True)
        assert found.servers == ("test",)
        assert await answer(room.server.client, candidate_name(room.model)) == (2.0, second)
        assert await room.answer() == (1.0, first)
        assert seen.order == [first]
        status = room.reconciler.status(room.model)
        assert status is not None
        assert "a rollout of version 2 is in progress" in status.message
        await end(room, RolloutAction.PROMOTE)
        assert await room.answer() == (2.0, second)
    assert seen.errors == []
    assert seen.order == [first, second]
    assert room.reconciler.trials() == {}
    status = room.reconciler.status(room.model)
    assert status is not None
    assert status.servers[0].loaded_versions == (first, second), "the old one stays for its bake window"


async def test_aborted_candidate_is_unloaded_without_failed_requests(room: Room) -> None:
    first, second = room.publish(1.0), room.publish(2.0)
    await room.deploy(first)
    async with traffic(room.server.client, room.model) as seen:
        await begin(room, second)
        await trial(room, ready=True)
        await end(room, RolloutAction.ABORT)
        await nothing_half_staged(room.server, room.model)
    assert seen.errors == []
    assert seen.order == [first]
    assert await room.answer() == (1.0, first)


async def test_candidate_with_failed_proof_is_reported_as_failed(room: Room) -> None:
    first = room.publish(1.0)
    wrong = room.publish(2.0, golden=affine_samples(scale=3.0))
    await room.deploy(first)
    await begin(room, wrong)
    found = await trial(room, ready=False)
    assert "answer differs from the recorded one" in found.readiness.failed
    status = room.reconciler.status(room.model)
    assert status is not None
    assert status.phase is Phase.READY
    assert await room.answer() == (1.0, first)
    # The same version again is a new attempt without the old failure.
    await end(room, RolloutAction.ABORT)
    await begin(room, wrong)
    assert (await trial(room, ready=False)).readiness.failed


async def test_externally_unloaded_candidate_is_loaded_again(room: Room) -> None:
    first, second = room.publish(1.0), room.publish(2.0)
    await room.deploy(first)
    await begin(room, second)
    await trial(room, ready=True)
    async with InferenceServerClient(room.server.client.grpc_url) as control:
        await control.unload_model(candidate_name(room.model))  # do not wait: the reconciler is faster
    async with asyncio.timeout(30):
        while room.reconciler.trials()[room.model].readiness.ready:
            await asyncio.sleep(0.02)
    await trial(room, ready=True)
    assert await answer(room.server.client, candidate_name(room.model)) == (2.0, second)


async def test_standby_knows_the_rollout_readiness(
    triton: RunningTriton, room: Room, model: str, tmp_path: Path
) -> None:
    """Every instance has its own gateway and splits the traffic there."""
    first, second = room.publish(1.0), room.publish(2.0)
    await room.deploy(first)
    async with running(triton, open_registry(tmp_path), model, tmp_path) as other:
        await begin(room, second)
        assert (await trial(room, ready=True)).servers == (await trial(other, ready=True)).servers == ("test",)
        assert [one.reconciler.leading for one in (room, other)] == [True, False]
        await end(room, RolloutAction.ABORT)
        async with asyncio.timeout(30):
            while other.reconciler.trials():
                await asyncio.sleep(0.02)
