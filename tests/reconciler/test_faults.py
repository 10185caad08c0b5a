"""Faults around a deployment: the loop corrects each difference."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.states import Phase, ServerState
from controlplane.errors import StoreUnavailableError, TritonUnavailableError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import GcSettings, TritonSettings
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.repository import ModelRepository
from tests.reconciler.conftest import Harness, answer, forget, nothing_half_staged, running, settings, traffic
from tests.support.hooked_store import HookedStore
from tests.support.models import affine_samples
from tests.support.triton import RunningTriton

pytestmark = pytest.mark.triton


async def test_externally_unloaded_model_is_loaded_again(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    async with InferenceServerClient(harness.server.client.grpc_url) as other_client:
        await other_client.unload_model(harness.model)
    await harness.until(lambda _: len(harness.events("VersionActivated")) == 2)
    await harness.until(lambda status: status.phase is Phase.READY)
    assert await harness.answer() == (1.0, version)


async def test_externally_changed_configuration_is_reverted(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    config = await harness.server.client.model_config(harness.model)
    config["max_batch_size"] = 2
    config["parameters"]["tcp_config_digest"]["string_value"] = "another"
    await harness.server.client.load(harness.model, config)
    async with asyncio.timeout(30):
        while (await harness.server.client.model_config(harness.model))["max_batch_size"] != 8:
            await asyncio.sleep(0.05)
    await harness.until(lambda status: status.phase is Phase.READY)


async def test_probe_finds_dead_backend_process_and_reloads_model(harness: Harness, triton: RunningTriton) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    (process,) = triton.server.processes_of(harness.model)
    os.kill(process, signal.SIGKILL)
    assert await harness.server.client.ready(harness.model, version), "Triton still reports READY"
    await harness.until(lambda _: len(harness.events("Unhealthy")) == 1)
    await harness.until(lambda status: status.phase is Phase.READY)
    assert await harness.answer() == (1.0, version)
    assert triton.server.processes_of(harness.model) != [process]


async def test_unmanaged_model_is_left_alone(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    config = await harness.server.client.model_config(harness.model)
    name = f"{harness.model}-foreign"
    source = harness.server.repository.root / harness.model / str(version) / "model.onnx"
    ModelRepository(harness.server.repository.root).stage(name, 1, {"model.onnx": source}, None)
    policy = {"specific": {"versions": [1]}}
    await harness.server.client.load(name, {**config, "name": name, "version_policy": policy})
    try:
        await harness.deploy(version, deleted=True)
        await asyncio.sleep(1.0)
        assert await answer(harness.server.client, name) == (1.0, 1)
    finally:
        await harness.server.client.unload(name)
        harness.server.repository.remove_model(name)


async def test_new_control_plane_adopts_models_of_external_triton(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    async with running(triton, registry, model, tmp_path) as harness:
        first, second = harness.publish(1.0), harness.publish(2.0)
        await harness.deploy(first)
        await harness.deploy(second)
        processes = triton.server.processes_of(model)
    async with running(triton, registry, model, tmp_path) as harness, traffic(harness.server.client, model) as seen:
        status = await harness.until(lambda status: status.phase is Phase.READY)
        assert status.servers[0].loaded_versions == (first, second), "the bake window continues"
        assert triton.server.processes_of(model) == processes, "nothing was loaded again"
        assert harness.events("VersionActivated") == []
        await harness.rollback()
        assert harness.events("VersionActivated") != []
    assert seen.errors == []
    assert seen.order == [second, first]
    await forget(triton, model)


async def test_new_control_plane_falls_back_when_desired_version_is_wrong(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    """After a restart of everything the previous version serves, because the desired one never passed its proof."""
    async with running(triton, registry, model, tmp_path) as harness:
        good, wrong = harness.publish(1.0), harness.publish(2.0, golden=affine_samples(scale=3.0))
        await harness.deploy(good)
    await forget(triton, model)
    async with running(triton, registry, model, tmp_path) as harness:
        harness.put(f"{model}:{wrong}")
        harness.reconciler.wake(model)
        status = await harness.until(lambda status: status.phase is Phase.DEGRADED)
        assert status.servers[0].serving_version == good
        assert await harness.answer() == (1.0, good)
    await forget(triton, model)


@pytest.mark.long
async def test_killed_triton_restarts_with_deployed_models(registry: Registry, model: str, tmp_path: Path) -> None:
    embedded = EmbeddedTriton(tmp_path / "models", tmp_path / "triton", TritonSettings())
    await embedded.start()
    client = TritonClient("own", embedded.grpc_url, timeouts=TritonTimeouts(load_seconds=60))
    server = ManagedServer("own", client, ModelRepository(embedded.repository), embedded)
    reconciler = Reconciler(registry, [server], settings())
    await reconciler.start()
    try:
        harness = Harness(registry, server, reconciler, model, tmp_path)
        first, second = harness.publish(1.0), harness.publish(2.0)
        await harness.deploy(first)
        await harness.deploy(second, settings=DeploymentSettings(max_batch_size=4))
        assert embedded.pid is not None
        os.kill(embedded.pid, signal.SIGKILL)
        await harness.until(lambda status: status.phase is Phase.PENDING)
        await harness.until(lambda status: status.phase is Phase.READY)
        assert await harness.answer() == (2.0, second)
        assert (await client.model_config(model))["max_batch_size"] == 4
        assert reconciler.servers()[0].state is ServerState.READY
        await nothing_half_staged(server, model)
    finally:
        await reconciler.stop()
        await client.close()
        await embedded.stop()


async def test_deployment_waits_for_unreachable_server(registry: Registry, model: str, tmp_path: Path) -> None:
    client = TritonClient("away", "127.0.0.1:9", timeouts=TritonTimeouts(request_seconds=1.0))
    server = ManagedServer("away", client, ModelRepository(tmp_path / "models"))
    reconciler = Reconciler(registry, [server], settings())
    await reconciler.start()
    try:
        harness = Harness(registry, server, reconciler, model, tmp_path)
        harness.put(f"{model}:{harness.publish(1.0)}")
        reconciler.wake(model)
        status = await harness.until(lambda status: "unreachable" in status.message)
        assert status.phase is Phase.PENDING
        assert reconciler.servers()[0].state is ServerState.UNREACHABLE
        with pytest.raises(TritonUnavailableError):
            await harness.answer()
    finally:
        await reconciler.stop()
        await client.close()


async def test_unreachable_server_does_not_block_other_servers(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    away = TritonClient("away", "127.0.0.1:9", timeouts=TritonTimeouts(request_seconds=1.0))
    servers = [
        ManagedServer("here", triton.client(), triton.repository),
        ManagedServer("away", away, ModelRepository(tmp_path / "models")),
    ]
    reconciler = Reconciler(registry, servers, settings())
    await reconciler.start()
    try:
        harness = Harness(registry, servers[0], reconciler, model, tmp_path)
        harness.put(f"{model}:{harness.publish(1.0)}")
        reconciler.wake(model)
        await harness.until(lambda status: status.phase is Phase.READY)
        assert await harness.answer() == (1.0, 1)
        harness.put(f"{model}:1", settings=DeploymentSettings(min_replicas=2))
        reconciler.wake(model)
        status = await harness.until(lambda status: "2 replicas need different servers" in status.message)
        assert status.phase is Phase.READY
        assert [server.server for server in status.servers] == ["here"]
        async with asyncio.timeout(10):
            while not reconciler.cycle_report.startswith("leading; 1 Ready; away is unreachable"):
                await asyncio.sleep(0.05)
    finally:
        await reconciler.stop()
        for server in servers:
            await server.client.close()
    await forget(triton, model)


async def test_invalid_settings_are_reported_and_active_version_stays(harness: Harness) -> None:
    version = harness.publish(1.0)
    await harness.deploy(version)
    contradiction = DeploymentSettings(config_overrides={"no_such_field": 1})
    status = await harness.deploy(version, settings=contradiction)
    assert status.phase is Phase.DEGRADED
    assert "no_such_field" in status.message
    assert status.servers[0].retry_at is None
    assert await harness.answer() == (1.0, version)
    assert (await harness.deploy(version, settings=DeploymentSettings())).phase is Phase.READY


async def test_unreadable_store_is_reported_with_its_cause(
    triton: RunningTriton, registry: Registry, model: str, tmp_path: Path
) -> None:
    trouble = ""

    def fail(operation: str, key: str) -> None:
        if trouble and (trouble == "all" or trouble in key):
            raise StoreUnavailableError(f"{key} is unavailable")

    hooked = Registry(
        HookedStore(registry.store, before=fail), registry.cache, head_max_age_seconds=0.0, gc=GcSettings()
    )
    async with running(triton, hooked, model, tmp_path) as harness:
        first, second = harness.publish(1.0), harness.publish(2.0)
        await harness.deploy(first)
        trouble = "all"
        await wait_event(harness, "store", "StoreUnavailable", "is unavailable")
        trouble = ""
        await wait_event(harness, "store", "StoreRecovered", "")
        revision = harness.put(f"{model}:{second}")
        trouble = "blobs/"  # the manifest of the desired version
        await wait_event(harness, model, "DeploymentUnreadable", f"failed to read revision {revision.number}")
        assert await harness.answer() == (1.0, first)
        trouble = ""
        await wait_event(harness, model, "DeploymentReadable", "")
        await harness.until(lambda status: status.revision == revision.number and status.phase is Phase.READY)
    await forget(triton, model)


async def wait_event(harness: Harness, subject: str, reason: str, words: str) -> None:
    """Wait for an event."""
    async with asyncio.timeout(20):
        while not any(
            (event.subject, event.reason) == (subject, reason) and words in event.message
            for event in harness.reconciler.events()
        ):
            await asyncio.sleep(0.02)
