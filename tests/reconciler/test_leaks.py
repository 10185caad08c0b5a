"""A real Triton that keeps the memory of large tensors is drained, restarted and restored under its clients.

The leak is real: tensors go to a Python-based backend through shared memory and through gRPC's buffers, and
Triton 2.51 keeps both.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.domain.states import DeploymentStatus, ServerState
from controlplane.errors import TritonError
from controlplane.registry.registry import Registry
from controlplane.triton.embedded.server import EmbeddedTriton
from tests.reconciler.memory_room import MIB, MemoryRoom, embedded_triton, memory_room, ready, small
from tests.support.models import publish_affine

pytestmark = pytest.mark.triton

WIDE = 1 << 18
"""A row of 1 MiB."""
ROWS = 40
BUDGET = 3000 * MIB
LEAK: dict[str, Any] = {
    "leak_restart_threshold_bytes": 120 * MIB,
    "leak_confirm_seconds": 0.5,
    "leak_drain_seconds": 20.0,
    "leak_restart_interval_seconds": 3600.0,
}

# It grows until the restart, to at most 6 GiB, so that memory which other tests free meanwhile cannot hide it.
GROWING = """
import time
kept = []
for _ in range(15):
    kept.append(bytearray(b"x") * (400 << 20))
    time.sleep(2)
time.sleep(600)
"""


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedTriton]:
    async with embedded_triton(tmp_path) as server:
        yield server


async def deploy_wide(room: MemoryRoom) -> DeploymentStatus:
    version = await asyncio.to_thread(publish_affine, room.registry, "wide", room.work, scale=5.0, width=WIDE)
    revision = room.want("wide", version, max_batch_size=64)
    return await room.reconciler.wait_settled("wide", revision, 60)


async def leak(room: MemoryRoom) -> None:
    """Send tensors whose memory the server keeps."""
    outputs, _ = await room.client.infer("wide", {"x": np.ones((ROWS, WIDE), np.float32)})
    assert outputs["y"][ROWS - 1, WIDE - 1] == 5.0


def excess(room: MemoryRoom) -> int:
    leaks = room.memory.leak
    assert leaks is not None
    return leaks.excess_bytes["host"]


async def client(room: MemoryRoom, name: str, stop: asyncio.Event, answers: list[int], failures: list[str]) -> None:
    """Hold, load, infer and release in a loop. No step may fail."""
    while not stop.is_set():
        async with room.held(name):
            try:
                status = await room.load(name, 60)
                if not ready(status):
                    failures.append(f"{name}: {status.phase} {status.message}")
                    return
                for _ in range(3):
                    assert await room.infer(name) == room.scales[name]
                    answers.append(room.embedded.generation)
            except TritonError as error:
                failures.append(f"{name}: {error}")
        await asyncio.sleep(0.02)


async def test_leaking_server_is_drained_restarted_and_restored_under_load(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_room(registry, embedded, tmp_path, BUDGET, **LEAK) as room:
        assert ready(await deploy_wide(room))
        await room.deploy("p", 1.0, mode="pinned")
        for number, name in enumerate("abc", 2):
            await room.deploy(name, float(number), **small(name, keep_alive_seconds=None))
            if name != "c":
                await room.load(name)
        first, stop = embedded.generation, asyncio.Event()
        answers: list[Any] = []
        failures: list[Any] = []
        clients = [asyncio.create_task(client(room, name, stop, answers, failures)) for name in ("a", "b", "p", "a")]
        await room.until("the clients are at work", lambda: len(answers) > 20)
        await leak(room)
        await room.until("it is seen", lambda: room.events("MemoryLeak") != [], 60)
        await room.until("it is restarted", lambda: embedded.generation == first + 1, 60)
        await room.until("all is back", lambda: room.loaded() == ["a", "b", "p", "wide"], 60)
        since = len(answers)
        await room.until("the clients go on", lambda: len(answers) > since + 20, 60)
        stop.set()
        await asyncio.gather(*clients)

        assert failures == []
        assert set(answers) == {first, first + 1}
        assert room.view("c").state == "unloaded", "what was not loaded is not loaded now"
        (told,) = room.events("MemoryLeak")
        assert "the bound is 120 MiB; the server is drained and then restarted" in told
        assert "of the ledger" in told
        (restarted,) = room.events("ServerRestarted")
        assert re.search(r"freed unaccounted memory: .*MiB on host; the models are loaded again", restarted)
        leaks = room.memory.leak
        assert leaks is not None
        assert (leaks.state, leaks.restarts) == ("watching", 1)
        assert leaks.excess_bytes["host"] < 120 * MIB

        # A second restart at once is refused, and the condition says until when.
        await leak(room)
        await room.until("the leak is reported", lambda: len(room.events("MemoryLeak")) > 1, 60)
        assert "is not restarted again before" in room.events("MemoryLeak")[1]
        assert embedded.generation == first + 1
        assert (await room.infer("p")) == 1.0


async def test_peak_and_retained_memory_are_stored_with_the_version(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_room(registry, embedded, tmp_path, BUDGET) as room:
        assert ready(await deploy_wide(room))
        await room.until("it was measured", lambda: registry.footprints.of("wide", 1) != [])
        ((key, first),) = registry.footprints.of("wide", 1)
        assert (key.backend, key.kind, key.max_batch_size) == ("onnxruntime", "cpu", 64)
        assert 0 < first.bytes <= first.most_bytes
        assert first.left_bytes is None, "it is loaded"
        await leak(room)

        def measured() -> int:
            return registry.footprints.of("wide", 1)[0][1].inference_peak_bytes

        await room.until("what it had at most is kept", lambda: measured() > first.bytes + ROWS * MIB)
        head = registry.deployments.get("wide", fresh=True)
        registry.deployments.put(head.spec.with_changes(loaded=False), after=head, actor="test", reason="")
        room.reconciler.wake("wide")
        await room.until("it is kept", lambda: registry.footprints.of("wide", 1)[0][1].left_bytes is not None)
        left = registry.footprints.of("wide", 1)[0][1].left_bytes
        assert left is not None
        assert left > ROWS * MIB, "the server keeps the buffers of the largest tensors"
        assert left < 40 * ROWS * MIB
        # A reading that began before the unload may be ingested after it; the next one is correct.
        await room.until("that is what is there", lambda: 0 < excess(room) < 1.3 * left)

        def shown() -> tuple[int | None, int]:
            (footprint,) = room.view("wide").footprint
            return footprint.left_bytes, footprint.inference_peak_bytes

        await room.until("that is what is shown", lambda: shown() == (left, measured()))


async def test_request_during_drain_waits_for_restart_and_is_served(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_room(registry, embedded, tmp_path, BUDGET, **LEAK) as room:
        assert ready(await deploy_wide(room))
        await room.deploy("a", 2.0, **small("a", keep_alive_seconds=None))
        await room.deploy("b", 3.0, **small("b", keep_alive_seconds=None))
        await room.load("a")
        first = embedded.generation
        async with room.held("a"):
            await leak(room)
            await room.until("it is drained", lambda: room.memory.leak and room.memory.leak.state == "draining", 60)
            loads = [asyncio.create_task(room.load(name, 60)) for name in ("a", "b")]
            await asyncio.sleep(1.0)
            assert not any(load.done() for load in loads), "nothing begins on a server that is drained"
            assert await room.infer("a") == 2.0, "who holds it is served"
            assert embedded.generation == first
            assert room.view("b").state == "pending"
            assert "is out of service: it is being drained to free its memory" in room.view("b").why
            await room.until(
                "it says for whom it waits", lambda: "a" in (room.memory.leak.why if room.memory.leak else "")
            )
        assert all(ready(status) for status in await asyncio.gather(*loads))
        assert embedded.generation == first + 1
        assert [await room.infer(name) for name in "ab"] == [2.0, 3.0]


async def test_unmanaged_model_prevents_the_restart(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_room(registry, embedded, tmp_path, BUDGET, **LEAK) as room:
        assert ready(await deploy_wide(room))
        config = await room.client.model_config("wide")
        policy = {"specific": {"versions": [1]}}
        (embedded.repository / "foreign").symlink_to(embedded.repository / "wide")
        await room.client.load("foreign", {**config, "name": "foreign", "version_policy": policy})
        await leak(room)
        await room.until("the leak is reported", lambda: room.events("MemoryLeak") != [], 60)
        assert all("foreign" in event for event in room.events("MemoryLeak"))  # one for each size on a slow machine
        assert embedded.state is ServerState.READY
        await room.client.unload("foreign")
        await room.until("then it is restarted", lambda: room.events("ServerRestarted") != [], 60)


async def test_leaking_external_server_is_reported_and_not_restarted(
    registry: Registry, embedded: EmbeddedTriton, tmp_path: Path
) -> None:
    async with memory_room(registry, embedded, tmp_path, BUDGET, supervised=False, **LEAK) as room:
        await room.deploy("a", 2.0)
        hog = await asyncio.create_subprocess_exec(sys.executable, "-c", GROWING)
        try:
            await room.until("the leak is reported", lambda: room.events("MemoryLeak") != [], 60)
        finally:
            hog.kill()
            await hog.wait()
        assert "restart this external server" in room.events("MemoryLeak")[0]
        assert await room.infer("a") == 2.0
        leaks = room.memory.leak
        assert leaks is not None
        assert leaks.restarts == 0
