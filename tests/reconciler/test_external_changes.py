"""Other clients change models on a real Triton: managed models are restored, others are only reported."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from controlplane.domain.states import LoadedVersion, ServerState
from controlplane.errors import InferenceError, NotFoundError
from controlplane.lifecycle.observation import AppliedConfig, ReplicaObservation, observed
from controlplane.reconciler.external_changes import external_change, judged, unmanaged_models
from controlplane.reconciler.leader_election import PREFIX as LEASE
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.servers.readings import ServerReading
from controlplane.servers.snapshot import ServerSnapshot
from controlplane.settings import GcSettings
from controlplane.storage.filesystem import FilesystemStore
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.statistics import VersionCounters
from tests.reconciler.conftest import GIB
from tests.reconciler.memory_harness import MIB, MemoryHarness, embedded_triton, memory_harness, ready
from tests.support.api import onnx_scale
from tests.support.hooked_store import HookedStore

SEEN = ReplicaObservation(loaded=frozenset({1}), digest="d", fingerprint="f")
APPLIED = AppliedConfig(frozenset({1}), "d", "f", None)
CHANGED = ReplicaObservation(loaded=frozenset({1}), digest="d", fingerprint="g")
REQUESTED = {"name": "m", "backend": "onnxruntime", "max_batch_size": 4}


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedTriton]:
    async with embedded_triton(tmp_path) as server:
        yield server


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (SEEN, SEEN, ""),
        (SEEN, ReplicaObservation(), "version 1 was unloaded"),
        (SEEN, ReplicaObservation(leaving=frozenset({1})), "version 1 was unloaded"),
        (ReplicaObservation(), ReplicaObservation(), ""),
        (ReplicaObservation(), SEEN, "version 1 was loaded"),
        (ReplicaObservation(), ReplicaObservation(loading=True), "a load was started"),
        (ReplicaObservation(loading=True), SEEN, ""),
        (
            SEEN,
            ReplicaObservation(loaded=frozenset({1, 2}), digest="d"),
            "version 1, 2 was loaded in place of version 1",
        ),
        (
            SEEN,
            ReplicaObservation(loaded=frozenset({1}), digest="e"),
            "version 1 was loaded again with another configuration",
        ),
        (SEEN, CHANGED, "version 1 was loaded again with another"),
        (None, SEEN, ""),
        (None, CHANGED, "version 1 was loaded with another configuration"),
    ],
)
def test_external_change_is_a_change_without_our_action(
    before: ReplicaObservation | None, now: ReplicaObservation, said: str
) -> None:
    what = external_change(before, judged(now, {}, APPLIED, None)[0])
    assert what.startswith(said)
    assert bool(what) == bool(said)


def test_modified_configuration_is_external_until_reloaded() -> None:
    changed = {**REQUESTED, "max_batch_size": 7}
    for _ in range(2):
        seen, applied = judged(CHANGED, changed, APPLIED, changed)
        assert (seen.externally_modified, applied) == (True, APPLIED), "in every snapshot"
    assert not judged(SEEN, REQUESTED, APPLIED, REQUESTED)[0].externally_modified


def test_adopted_model_is_compared_with_requested_configuration() -> None:
    filled = {**REQUESTED, "optimization": {"input_pinned_memory": {"enable": True}}}
    assert judged(SEEN, filled, None, REQUESTED) == (SEEN, APPLIED)
    seen, applied = judged(SEEN, {**REQUESTED, "max_batch_size": 7}, None, REQUESTED)
    assert (seen.externally_modified, applied) == (True, None)
    assert judged(SEEN, filled, None, None) == (SEEN, None), "no desired target"
    assert judged(ReplicaObservation(), {}, APPLIED, None) == (ReplicaObservation(), APPLIED), (
        "the applied configuration is kept while the model is not loaded"
    )
    said = {"instance_group": [{"kind": "KIND_GPU", "gpus": [1]}], "parameters": {"tcp_gpus": {"string_value": "1"}}}
    open_group = {**REQUESTED, "instance_group": [{"count": 1}]}
    there = {**REQUESTED, **said, "instance_group": [{"name": "m_0", "kind": "KIND_GPU", "gpus": [1], "count": 1}]}
    placed, applied = judged(SEEN, there, None, open_group)
    assert (placed.externally_modified, applied) == (False, AppliedConfig(frozenset({1}), "d", "f", (1,))), (
        "a load names its GPUs"
    )


def test_unmanaged_models_exclude_deployments_and_their_candidates() -> None:
    index = [LoadedVersion(model=name, version=1, state="READY") for name in ("a", "a~candidate", "a~tune", "b")]
    index.append(LoadedVersion(model="c", version=1, state="UNAVAILABLE"))
    reading = ServerReading(counters={("d", 2): VersionCounters(0, None, 0.0)})
    assert unmanaged_models({"a"}, index, reading) == {("b", 1), ("d", 2)}


def test_unload_during_snapshot_is_seen_in_the_next_snapshot() -> None:
    ready = [LoadedVersion(model="m", version=1, state="READY")]
    known: dict[str, Any] = {"digests": {"m": "d"}, "fingerprints": {"m": "f"}}
    there = ServerSnapshot(ServerState.READY, by_model={"m": ready}, configs={"m": REQUESTED}, **known)
    assert observed(there, "m") == SEEN
    assert observed(replace(there, configs={"m": {}}, digests={"m": None}, fingerprints={"m": ""}), "m") is None


async def by_hand(embedded: EmbeddedTriton, change: Callable[[InferenceServerClient], Awaitable[None]]) -> None:
    async with InferenceServerClient(embedded.grpc_url) as other_client:
        await change(other_client)


async def wait_restored(harness: MemoryHarness, config: dict[str, Any], times: int) -> None:
    await harness.until("the event was recorded", lambda: len(harness.events("ExternalChange")) == times, 60)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NotFoundError, InferenceError):
                if await harness.client.model_config("managed") == config and await harness.infer("managed") == 2.0:
                    break
            await asyncio.sleep(0.05)

    def good() -> bool:
        status = harness.reconciler.status("managed")
        return status is not None and ready(status)

    await harness.until("the proof passed", good, 60)


@pytest.mark.triton
async def test_managed_model_is_restored_and_unmanaged_model_only_reported(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with (
        memory_harness(registry, embedded, tmp_path, 3000 * MIB) as harness,
        InferenceServerClient(embedded.grpc_url) as other_client,
    ):
        assert ready(await harness.deploy("managed", 2.0))
        config = await harness.client.model_config("managed")
        looked = harness.reconciler.servers()[0].observed_at
        await harness.until("a snapshot was taken", lambda: harness.reconciler.servers()[0].observed_at != looked)

        # A modified copy of the deployed configuration that still contains its digest.
        await harness.client.load("managed", {**config, "max_batch_size": config["max_batch_size"] + 3})
        await wait_restored(harness, config, 1)
        # The snapshot may or may not be taken during the load.
        assert any(
            what in harness.events("ExternalChange")[0] for what in ("another configuration", "a load was started")
        )
        assert "by another client; differences from the deployment are corrected" in harness.events("ExternalChange")[0]

        await other_client.unload_model("managed")
        await wait_restored(harness, config, 2)
        assert "version 1 was unloaded by another client" in harness.events("ExternalChange")[1]

        # A managed model whose deployment asks for it to be unloaded.
        head = registry.deployments.get("managed", fresh=True)
        registry.deployments.put(head.spec.with_changes(loaded=False), after=head, actor="test", reason="")
        harness.reconciler.wake("managed")
        await harness.until("it is unloaded", lambda: harness.events("Unloaded") != [])
        (embedded.repository / "managed").mkdir(exist_ok=True)
        await harness.until("its folder may stay", lambda: harness.loaded() == [])
        await harness.client.load("managed", {**config, "version_policy": {"specific": {"versions": [1]}}})
        await harness.until("the event was recorded", lambda: len(harness.events("ExternalChange")) == 3, 60)
        await harness.until(
            "it is unloaded again", lambda: str(harness.events("Unloaded")).count("unloaded from own") == 2, 60
        )
        changes = harness.events("ExternalChange")
        assert len(changes) == 3, changes
        assert any(what in changes[2] for what in ("version 1 was loaded", "a load was started"))

        # Unmanaged models: one from the repository, one with its files in the request, which Triton's index omits.
        (embedded.repository / "mystery" / "1").mkdir(parents=True)
        (embedded.repository / "mystery" / "1" / "model.onnx").write_bytes(onnx_scale(3.0))
        plain = '{"backend": "onnxruntime", "max_batch_size": 4}'
        await other_client.load_model("mystery", config=plain)
        await other_client.load_model("brought", config=plain, files={"file:1/model.onnx": onnx_scale(4.0)})
        await harness.until("both were reported", lambda: len(harness.events("UnmanagedModel")) == 2, 60)
        unknown = "\n".join(harness.events("UnmanagedModel"))
        assert "own: unmanaged model mystery:1 is loaded (" in unknown
        assert "own: unmanaged model brought:1 is loaded (" in unknown
        assert unknown.count(" MiB, not in the ledger); adopt it (`tritonctl adopt`) or unload it") == 2
        assert [await other_client.is_model_ready(name) for name in ("mystery", "brought")] == [True, True]
        for name in ("mystery", "brought"):
            await other_client.unload_model(name)
        await harness.until("their removal was reported", lambda: len(harness.events("UnmanagedModelRemoved")) == 2, 60)


@pytest.mark.triton
async def test_modified_copy_is_found_after_failed_load_and_after_restart(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_harness(registry, embedded, tmp_path, 3000 * MIB) as harness:
        assert ready(await harness.deploy("managed", 2.0))
        config = await harness.client.model_config("managed")
        changed = json.dumps({**config, "max_batch_size": config["max_batch_size"] + 3})
        harness.client.refusals["managed"] = 1
        await by_hand(embedded, lambda other_client: other_client.load_model("managed", config=changed))
        await wait_restored(harness, config, 1)
        assert harness.client.refusals["managed"] == 0, "the load that restores it was refused once"
    await by_hand(embedded, lambda other_client: other_client.load_model("managed", config=changed))
    async with memory_harness(registry, embedded, tmp_path, 3000 * MIB) as harness:
        await wait_restored(harness, config, 1)
        (change,) = harness.events("ExternalChange")
        assert "version 1 was loaded with another configuration by another client" in change


@pytest.mark.triton
async def test_manual_unload_is_reported_by_probe_and_by_snapshot(embedded: EmbeddedTriton, tmp_path: Path) -> None:
    free = threading.Event()
    free.set()
    stalled: list[str] = []

    def stall(operation: str, key: str) -> None:
        if operation == "create" and key.startswith(LEASE) and not free.is_set():
            stalled.append(key)
            free.wait(60)

    store = HookedStore(FilesystemStore(tmp_path / "store"), before=stall)
    registry = Registry(store, BlobCache(tmp_path / "cache", GIB), head_max_age_seconds=0.2, gc=GcSettings())
    # Counters are read long before the next snapshot: the missing process is noticed and the model is probed.
    rarely = {"interval_seconds": 600.0}
    async with memory_harness(
        registry, embedded, tmp_path, 3000 * MIB, pace=rarely, poll_interval_seconds=0.1
    ) as harness:
        assert ready(await harness.deploy("managed", 2.0))
        config = await harness.client.model_config("managed")
        await by_hand(embedded, lambda other_client: other_client.unload_model("managed"))
        await wait_restored(harness, config, 1)
        assert "version 1 was unloaded by another client" in harness.events("ExternalChange")[0]

    # The unload is found while the lease is expired and no other instance has taken it.
    async with memory_harness(registry, embedded, tmp_path, 3000 * MIB, pace={"lease_seconds": 1.0}) as harness:

        def good() -> bool:
            status = harness.reconciler.status("managed")
            return status is not None and ready(status)

        await harness.until("the proof passed", good)
        try:
            free.clear()
            await harness.until("the lease has run out", lambda: stalled and not harness.reconciler.leading)
            await by_hand(embedded, lambda other_client: other_client.unload_model("managed"))
            looked = harness.reconciler.servers()[0].observed_at
            await harness.until("a snapshot was taken", lambda: harness.reconciler.servers()[0].observed_at != looked)
            assert harness.events("ExternalChange") == []
        finally:
            free.set()
        await wait_restored(harness, config, 1)
        assert "version 1 was unloaded by another client" in harness.events("ExternalChange")[0]
