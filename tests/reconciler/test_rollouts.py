"""Rollouts on a real Triton with a client that infers continuously."""

import asyncio

import pytest

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.names import candidate_name
from controlplane.domain.states import Phase
from tests.reconciler.conftest import Harness, nothing_half_staged, traffic
from tests.support.models import affine_samples

pytestmark = pytest.mark.triton


async def test_deploy_and_rollback_lose_no_request(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    status = await harness.deploy(first)
    assert status.phase is Phase.READY, status
    assert status.servers[0].proof is not None
    assert status.servers[0].proof.samples == 2
    assert {"fetch", "stage", "load", "prove"} <= set(status.servers[0].seconds)
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(second)
        assert status.phase is Phase.READY, status
        assert status.servers[0].loaded_versions == (first, second)
        assert status.servers[0].bake_until is not None
        status = await harness.rollback()
        assert status.phase is Phase.READY, status
        assert status.servers[0].serving_version == first
        assert "load" not in status.servers[0].seconds, "a rollback in the bake window is a change of policy"
        await asyncio.sleep(0.1)
    assert seen.errors == []
    assert seen.order == [first, second, first]
    assert seen.answers == {(first, 1.0), (second, 2.0)}


async def test_version_with_failed_proof_never_serves(harness: Harness) -> None:
    good = harness.publish(1.0)
    wrong = harness.publish(2.0, golden=affine_samples(scale=3.0))
    await harness.deploy(good)
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(wrong)
        assert status.phase is Phase.DEGRADED
        assert "'y'" in status.message
        assert "answer differs from the recorded one" in status.message
        assert status.servers[0].serving_version == good
        assert status.servers[0].proof is not None
        assert not status.servers[0].proof.agrees
        # A wrong answer is final: there is no retry.
        await asyncio.sleep(1.0)
        status = await harness.until(lambda status: status.phase.settled)
    assert status.phase is Phase.DEGRADED
    assert status.servers[0].retry_at is None
    assert len(harness.events("ProofFailed")) == 1
    assert seen.errors == []
    assert seen.order == [good]
    await nothing_half_staged(harness.server, harness.model)


async def test_first_version_with_failed_proof_is_unloaded(harness: Harness) -> None:
    wrong = harness.publish(2.0, golden=affine_samples(scale=3.0))
    status = await harness.deploy(wrong)
    status = await harness.until(lambda status: not status.servers[0].loaded_versions)
    assert status.phase is Phase.FAILED
    assert await index(harness) == {}


async def test_failed_load_is_retried_later(harness: Harness) -> None:
    good = harness.publish(1.0)
    broken = harness.publish(2.0, content=b"this is no model")
    await harness.deploy(good)
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(broken)
        assert status.phase is Phase.DEGRADED
        assert status.servers[0].retry_at is not None
        assert "refused to load" in status.message
        await asyncio.sleep(1.0)
        await harness.until(lambda _: len(harness.events("LoadFailed")) >= 2)
        status = await harness.deploy(good)
        assert status.phase is Phase.READY
    assert seen.errors == []
    assert seen.order == [good]
    await nothing_half_staged(harness.server, harness.model)


async def test_rollback_after_bake_window_reloads_without_failed_requests(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    settings = DeploymentSettings(bake_seconds=0.0)
    await harness.deploy(first, settings=settings)
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(second)
        await harness.until(lambda status: status.servers[0].loaded_versions == (second,))
        status = await harness.rollback()
        assert status.phase is Phase.READY
        assert status.servers[0].serving_version == first
        assert "load" in status.servers[0].seconds
        await asyncio.sleep(0.1)
    assert seen.errors == []
    assert seen.order == [first, second, first]


async def test_previous_version_is_unloaded_after_the_bake_window(harness: Harness) -> None:
    first, second = harness.publish(1.0), harness.publish(2.0)
    await harness.deploy(first, settings=DeploymentSettings(bake_seconds=1.0))
    status = await harness.deploy(second)
    assert status.servers[0].loaded_versions == (first, second)
    await harness.until(lambda status: status.servers[0].loaded_versions == (second,))
    async with asyncio.timeout(20):
        while harness.server.repository.staged()[harness.model] != {second}:
            await asyncio.sleep(0.05)
    assert await harness.answer() == (2.0, second)


async def test_changed_settings_are_applied_without_failed_requests(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(version, settings=DeploymentSettings(max_batch_size=3, instance_count=2))
        assert status.phase is Phase.READY
    assert seen.errors == []
    config = await harness.server.client.model_config(harness.model)
    assert config["max_batch_size"] == 3
    assert config["instance_group"][0]["count"] == 2
    await nothing_half_staged(harness.server, harness.model)


async def test_settings_rejected_by_triton_keep_the_old_configuration(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    refused = DeploymentSettings(config_overrides={"instance_group": [{"kind": "KIND_GPU", "gpus": [7]}]})
    async with traffic(harness.server.client, harness.model) as seen:
        status = await harness.deploy(version, settings=refused)
        assert status.phase is Phase.DEGRADED
    assert seen.errors == []
    assert (await harness.server.client.model_config(harness.model))["max_batch_size"] == 8


async def test_changed_signature_replaces_the_old_version_and_is_reported(harness: Harness) -> None:
    narrow, wide = harness.publish(1.0), harness.publish(2.0, width=6)
    await harness.deploy(narrow)
    status = await harness.deploy(wide)
    assert status.phase is Phase.READY
    assert status.servers[0].loaded_versions == (wide,)
    assert "was not kept loaded, because it needs another configuration" in status.message
    assert await harness.answer() == (2.0, wide)
    status = await harness.rollback()
    assert status.phase is Phase.READY
    assert await harness.answer() == (1.0, narrow)


async def test_first_answers_of_version_without_golden_samples_are_recorded(harness: Harness) -> None:
    status = await harness.deploy(harness.publish(1.0, golden=None))
    assert status.phase is Phase.READY
    proof = status.servers[0].proof
    assert proof is not None
    assert proof.samples == 3


async def test_undeploy_removes_everything_and_unload_keeps_the_deployment(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    status = await harness.deploy(version, loaded=False)
    assert status.phase is Phase.UNLOADED
    assert await index(harness) == {}
    assert harness.server.repository.staged()[harness.model] == {version}
    status = await harness.deploy(version)
    assert status.phase is Phase.READY
    status = await harness.deploy(version, deleted=True)
    assert status.phase is Phase.UNLOADED
    async with asyncio.timeout(20):
        while harness.model in harness.server.repository.staged():
            await asyncio.sleep(0.05)
    assert await index(harness) == {}
    assert harness.model not in harness.reconciler.statuses()
    assert (await harness.deploy(version)).phase is Phase.READY


async def test_alias_is_followed_and_rollback_pins_the_version(harness: Harness) -> None:
    first, second = harness.publish(1.0, aliases=["champion"]), harness.publish(2.0)
    status = await harness.settled(harness.put(f"{harness.model}@champion"))
    assert status.servers[0].serving_version == first
    harness.registry.set_alias(harness.model, "champion", second, actor="test")
    harness.reconciler.wake(harness.model)
    status = await harness.until(lambda status: status.revision == 2 and status.phase.settled)
    assert status.servers[0].serving_version == second
    newest = harness.registry.deployments.get(harness.model, fresh=True)
    assert (newest.actor, newest.reason) == ("reconciler", f"alias champion {first} -> {second}")
    await harness.rollback()
    await asyncio.sleep(0.7)  # two more cycles, in which the alias must not win
    assert await harness.answer() == (1.0, first)


async def index(harness: Harness) -> dict[str, set[int]]:
    """Return Triton's index entries of the model and its candidate, by name."""
    found: dict[str, set[int]] = {}
    for entry in await harness.server.client.index():
        if entry.model in (harness.model, candidate_name(harness.model)) and entry.state == "READY":
            found.setdefault(entry.model, set()).add(entry.version)
    return found
