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
from tests.reconciler.conftest import Harness, answer, nothing_half_staged, open_registry, running, traffic
from tests.support.models import affine_samples
from tests.support.triton import RunningTriton

pytestmark = pytest.mark.triton

CANARY = DeploymentSettings(rollout=RolloutStrategy(kind=StrategyKind.CANARY))


async def begin(harness: Harness, version: int) -> None:
    before = harness.registry.deployments.get(harness.model, fresh=True)
    spec = rules.deploy(
        before.spec, Reference(harness.model, version=version), version, CANARY, rollout_id=uuid.uuid4().hex, now=now()
    )
    await harness.settled(harness.registry.deployments.put(spec, after=before, actor="test", reason="canary"))


async def end(harness: Harness, action: RolloutAction) -> None:
    before = harness.registry.deployments.get(harness.model, fresh=True)
    rollout = rules.required(before.spec)
    spec = rules.apply(before.spec, RolloutDecision(action, "by hand"), rollout.evidence, now())
    await harness.settled(harness.registry.deployments.put(spec, after=before, actor="test", reason=action))


def now() -> datetime:
    return datetime.now(UTC)


async def trial(harness: Harness, *, ready: bool) -> RolloutReadiness:
    async with asyncio.timeout(30):
        while True:
            found = harness.reconciler.trials().get(harness.model)
            if found is not None and (found.readiness.ready if ready else found.readiness.failed):
                return found
            await asyncio.sleep(0.02)


async def test_old_version_serves_until_the_candidate_is_promoted(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first)
    async with traffic(harness.server.client, harness.model) as seen:
        await begin(harness, second)
        found = await trial(harness, ready=True)
        assert found.servers == ("test",)
        assert await answer(harness.server.client, candidate_name(harness.model)) == (2.0, second)
        assert await harness.answer() == (1.0, first)
        assert seen.order == [first]
        status = harness.reconciler.status(harness.model)
        assert status is not None
        assert "a rollout of version 2 is in progress" in status.message
        await end(harness, RolloutAction.PROMOTE)
        assert await harness.answer() == (2.0, second)
    assert seen.errors == []
    assert seen.order == [first, second]
    assert harness.reconciler.trials() == {}
    status = harness.reconciler.status(harness.model)
    assert status is not None
    assert status.servers[0].loaded_versions == (first, second), "the old version stays loaded for its bake window"


async def test_aborted_candidate_is_unloaded_without_failed_requests(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first)
    async with traffic(harness.server.client, harness.model) as seen:
        await begin(harness, second)
        await trial(harness, ready=True)
        await end(harness, RolloutAction.ABORT)
        await nothing_half_staged(harness.server, harness.model)
    assert seen.errors == []
    assert seen.order == [first]
    assert await harness.answer() == (1.0, first)


async def test_candidate_with_failed_proof_is_reported_as_failed(harness: Harness) -> None:
    first = harness.publish(1.0)
    wrong = harness.publish(2.0, golden=affine_samples(scale=3.0))
    await harness.deploy(first)
    await begin(harness, wrong)
    found = await trial(harness, ready=False)
    assert "answer differs from the recorded one" in found.readiness.failed
    status = harness.reconciler.status(harness.model)
    assert status is not None
    assert status.phase is Phase.READY
    assert await harness.answer() == (1.0, first)
    # The same version again is a new attempt without the old failure.
    await end(harness, RolloutAction.ABORT)
    await begin(harness, wrong)
    assert (await trial(harness, ready=False)).readiness.failed


async def test_externally_unloaded_candidate_is_loaded_again(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first)
    await begin(harness, second)
    await trial(harness, ready=True)
    async with InferenceServerClient(harness.server.client.grpc_url) as control:
        await control.unload_model(candidate_name(harness.model))  # do not wait: the reconciler is faster
    async with asyncio.timeout(30):
        while harness.reconciler.trials()[harness.model].readiness.ready:
            await asyncio.sleep(0.02)
    await trial(harness, ready=True)
    assert await answer(harness.server.client, candidate_name(harness.model)) == (2.0, second)


async def test_standby_knows_the_rollout_readiness(
    triton: RunningTriton, harness: Harness, model: str, tmp_path: Path
) -> None:
    """Every instance has its own gateway and splits the traffic there."""
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first)
    async with running(triton, open_registry(tmp_path), model, tmp_path) as other:
        await begin(harness, second)
        assert (await trial(harness, ready=True)).servers == (await trial(other, ready=True)).servers == ("test",)
        assert [one.reconciler.leading for one in (harness, other)] == [True, False]
        await end(harness, RolloutAction.ABORT)
        async with asyncio.timeout(30):
            while other.reconciler.trials():
                await asyncio.sleep(0.02)
