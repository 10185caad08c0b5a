"""Somebody else gives orders to our real Triton: ours is put right, what is not ours is told and left alone."""

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
from tests.reconciler.memory_room import MIB, MemoryRoom, embedded_triton, memory_room, ready
from tests.support.api import onnx_scale
from tests.support.hooked_store import HookedStore

SEEN = ReplicaObservation(loaded=frozenset({1}), digest="d", fingerprint="f")
OURS = AppliedConfig(frozenset({1}), "d", "f", None)
CHANGED = ReplicaObservation(loaded=frozenset({1}), digest="d", fingerprint="g")
ASKED = {"name": "m", "backend": "onnxruntime", "max_batch_size": 4}


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
        (ReplicaObservation(), ReplicaObservation(loading=True), "a load was begun"),
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
def test_what_others_did_is_what_changed_without_us(
    before: ReplicaObservation | None, now: ReplicaObservation, said: str
) -> None:
    what = external_change(before, judged(now, {}, OURS, None)[0])
    assert what.startswith(said)
    assert bool(what) == bool(said)


def test_a_changed_copy_of_our_configuration_is_foreign_until_we_load_again() -> None:
    changed = {**ASKED, "max_batch_size": 7}
    for _ in range(2):
        seen, ours = judged(CHANGED, changed, OURS, changed)
        assert (seen.externally_modified, ours) == (True, OURS), "however often it is looked at"
    assert not judged(SEEN, ASKED, OURS, ASKED)[0].externally_modified


def test_what_no_load_of_ours_is_known_of_is_compared_with_what_was_asked_for() -> None:
    filled = {**ASKED, "optimization": {"input_pinned_memory": {"enable": True}}}
    assert judged(SEEN, filled, None, ASKED) == (SEEN, OURS)
    seen, ours = judged(SEEN, {**ASKED, "max_batch_size": 7}, None, ASKED)
    assert (seen.externally_modified, ours) == (True, None)
    assert judged(SEEN, filled, None, None) == (SEEN, None), "no target that is wanted"
    assert judged(ReplicaObservation(), {}, OURS, None) == (ReplicaObservation(), OURS), (
        "what is not loaded now is known when it is again"
    )
    said = {"instance_group": [{"kind": "KIND_GPU", "gpus": [1]}], "parameters": {"tcp_gpus": {"string_value": "1"}}}
    open_group = {**ASKED, "instance_group": [{"count": 1}]}
    there = {**ASKED, **said, "instance_group": [{"name": "m_0", "kind": "KIND_GPU", "gpus": [1], "count": 1}]}
    placed, ours = judged(SEEN, there, None, open_group)
    assert (placed.externally_modified, ours) == (False, AppliedConfig(frozenset({1}), "d", "f", (1,))), (
        "a load says its GPUs itself"
    )


def test_unknown_is_what_no_deployment_and_no_copy_of_one_is() -> None:
    index = [LoadedVersion(model=name, version=1, state="READY") for name in ("a", "a~candidate", "a~tune", "b")]
    index.append(LoadedVersion(model="c", version=1, state="UNAVAILABLE"))
    reading = ServerReading(counters={("d", 2): VersionCounters(0, None, 0.0)})
    assert unmanaged_models({"a"}, index, reading) == {("b", 1), ("d", 2)}


def test_what_was_unloaded_while_it_was_looked_at_is_seen_at_the_next_look() -> None:
    ready = [LoadedVersion(model="m", version=1, state="READY")]
    known: dict[str, Any] = {"digests": {"m": "d"}, "fingerprints": {"m": "f"}}
    there = ServerSnapshot(ServerState.READY, by_model={"m": ready}, configs={"m": ASKED}, **known)
    assert observed(there, "m") == SEEN
    assert observed(replace(there, configs={"m": {}}, digests={"m": None}, fingerprints={"m": ""}), "m") is None


async def by_hand(embedded: EmbeddedTriton, change: Callable[[InferenceServerClient], Awaitable[None]]) -> None:
    async with InferenceServerClient(embedded.grpc_url) as somebody:
        await change(somebody)


async def put_right(room: MemoryRoom, config: dict[str, Any], times: int) -> None:
    await room.until("it is told", lambda: len(room.events("ExternalChange")) == times, 60)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NotFoundError, InferenceError):
                if await room.client.model_config("ours") == config and await room.infer("ours") == 2.0:
                    break
            await asyncio.sleep(0.05)

    def good() -> bool:
        status = room.reconciler.status("ours")
        return status is not None and ready(status)

    await room.until("it is proved", good, 60)


@pytest.mark.triton
async def test_ours_is_put_right_and_what_is_not_ours_is_told_and_left_alone(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with (
        memory_room(registry, embedded, tmp_path, 3000 * MIB) as room,
        InferenceServerClient(embedded.grpc_url) as somebody,
    ):
        assert ready(await room.deploy("ours", 2.0))
        config = await room.client.model_config("ours")
        looked = room.reconciler.servers()[0].observed_at
        await room.until("it was looked at", lambda: room.reconciler.servers()[0].observed_at != looked)

        # A changed copy of our own configuration, with our digest in it.
        await room.client.load("ours", {**config, "max_batch_size": config["max_batch_size"] + 3})
        await put_right(room, config, 1)
        # Whether a look falls into the load, nobody knows.
        assert any(what in room.events("ExternalChange")[0] for what in ("another configuration", "a load was begun"))
        assert "by somebody else; what differs from the deployment is put right" in room.events("ExternalChange")[0]

        await somebody.unload_model("ours")
        await put_right(room, config, 2)
        assert "version 1 was unloaded by somebody else" in room.events("ExternalChange")[1]

        # Ours, but the deployment says unloaded.
        head = registry.deployments.get("ours", fresh=True)
        registry.deployments.put(head.spec.with_changes(loaded=False), after=head, actor="test", reason="")
        room.reconciler.wake("ours")
        await room.until("it is unloaded", lambda: room.events("Unloaded") != [])
        (embedded.repository / "ours").mkdir(exist_ok=True)
        await room.until("its folder may stay", lambda: room.loaded() == [])
        await room.client.load("ours", {**config, "version_policy": {"specific": {"versions": [1]}}})
        await room.until("it is told", lambda: len(room.events("ExternalChange")) == 3, 60)
        await room.until(
            "it is unloaded again", lambda: str(room.events("Unloaded")).count("unloaded from own") == 2, 60
        )
        told = room.events("ExternalChange")
        assert len(told) == 3, told
        assert any(what in told[2] for what in ("version 1 was loaded", "a load was begun"))

        # Nobody's: from the repository, and with the files in the request, which Triton's index does not list.
        (embedded.repository / "mystery" / "1").mkdir(parents=True)
        (embedded.repository / "mystery" / "1" / "model.onnx").write_bytes(onnx_scale(3.0))
        plain = '{"backend": "onnxruntime", "max_batch_size": 4}'
        await somebody.load_model("mystery", config=plain)
        await somebody.load_model("brought", config=plain, files={"file:1/model.onnx": onnx_scale(4.0)})
        await room.until("both are told", lambda: len(room.events("UnmanagedModel")) == 2, 60)
        unknown = "\n".join(room.events("UnmanagedModel"))
        assert "own: mystery:1 is loaded and is no deployment: nobody accounts for its memory, " in unknown
        assert "own: brought:1 is loaded" in unknown
        assert unknown.count(" MiB now. It is left alone") == 2
        assert [await somebody.is_model_ready(name) for name in ("mystery", "brought")] == [True, True]
        for name in ("mystery", "brought"):
            await somebody.unload_model(name)
        await room.until("that they went is told", lambda: len(room.events("UnmanagedModelRemoved")) == 2, 60)


@pytest.mark.triton
async def test_a_changed_copy_is_seen_after_a_load_that_failed_and_by_who_has_just_started(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_room(registry, embedded, tmp_path, 3000 * MIB) as room:
        assert ready(await room.deploy("ours", 2.0))
        config = await room.client.model_config("ours")
        changed = json.dumps({**config, "max_batch_size": config["max_batch_size"] + 3})
        room.client.refusals["ours"] = 1
        await by_hand(embedded, lambda somebody: somebody.load_model("ours", config=changed))
        await put_right(room, config, 1)
        assert room.client.refusals["ours"] == 0, "the load that was to put it right was refused once"
    await by_hand(embedded, lambda somebody: somebody.load_model("ours", config=changed))
    async with memory_room(registry, embedded, tmp_path, 3000 * MIB) as room:
        await put_right(room, config, 1)
        (told,) = room.events("ExternalChange")
        assert "version 1 was loaded with another configuration by somebody else" in told


@pytest.mark.triton
async def test_an_unload_by_hand_is_told_whoever_finds_it_first(embedded: EmbeddedTriton, tmp_path: Path) -> None:
    free = threading.Event()
    free.set()
    stalled: list[str] = []

    def stall(operation: str, key: str) -> None:
        if operation == "create" and key.startswith(LEASE) and not free.is_set():
            stalled.append(key)
            free.wait(60)

    store = HookedStore(FilesystemStore(tmp_path / "store"), before=stall)
    registry = Registry(store, BlobCache(tmp_path / "cache", GIB), head_max_age_seconds=0.2, gc=GcSettings())
    # The counters are read long before the next look: the process that is gone is noticed, and the model is asked.
    seldom = {"interval_seconds": 600.0}
    async with memory_room(registry, embedded, tmp_path, 3000 * MIB, pace=seldom, poll_interval_seconds=0.1) as room:
        assert ready(await room.deploy("ours", 2.0))
        config = await room.client.model_config("ours")
        await by_hand(embedded, lambda somebody: somebody.unload_model("ours"))
        await put_right(room, config, 1)
        assert "version 1 was unloaded by somebody else" in room.events("ExternalChange")[0]

    # Found while the lease had run out; nobody else took it.
    async with memory_room(registry, embedded, tmp_path, 3000 * MIB, pace={"lease_seconds": 1.0}) as room:

        def good() -> bool:
            status = room.reconciler.status("ours")
            return status is not None and ready(status)

        await room.until("it is proved", good)
        try:
            free.clear()
            await room.until("the lease has run out", lambda: stalled and not room.reconciler.leading)
            await by_hand(embedded, lambda somebody: somebody.unload_model("ours"))
            looked = room.reconciler.servers()[0].observed_at
            await room.until("it was seen", lambda: room.reconciler.servers()[0].observed_at != looked)
            assert room.events("ExternalChange") == []
        finally:
            free.set()
        await put_right(room, config, 1)
        assert "version 1 was unloaded by somebody else" in room.events("ExternalChange")[0]
