"""Forty models where eight fit, several clients, a Triton that is killed: for a minute or more."""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from controlplane.domain.states import ServerState
from controlplane.errors import InferenceError, TritonError
from controlplane.registry.registry import Registry
from controlplane.triton.embedded.server import EmbeddedTriton
from tests.reconciler.memory_room import MIB, MemoryRoom, embedded_triton, memory_room, ready

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

MODELS = 40
FIT = 8
CLIENTS = 5
SECONDS = 75.0


@dataclass
class Watcher:
    """Reads from the operating system, all the time, what the models' processes have."""

    embedded: EmbeddedTriton
    peak: int = 0
    most: int = 0
    samples: int = 0
    over: list[tuple[int, int]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(0.05):
            server = self.embedded.pid
            if server is None:
                continue
            total = count = 0
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(server).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        total += child.memory_info().rss
                        count += 1
            self.peak, self.most, self.samples = max(self.peak, total), max(self.most, count), self.samples + 1


@dataclass
class Tally:
    answers: int = 0
    interrupted: int = 0
    failures: list[str] = field(default_factory=list)


async def client(room: MemoryRoom, names: list[str], until: float, seed: int, tally: Tally) -> None:
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(names))]
    while time.monotonic() < until:
        (name,) = rng.choices(names, weights)
        generation = room.embedded.generation
        async with room.held(name):
            try:
                status = await room.load(name, 90)
                if not ready(status):
                    raise InferenceError(f"{name}: {status.phase} {status.message}")
                for _ in range(rng.randint(1, 4)):
                    assert await room.infer(name) == room.scales[name]
                    tally.answers += 1
            except TritonError as error:
                if room.embedded.generation != generation or room.embedded.state is not ServerState.READY:
                    tally.interrupted += 1  # the server was killed under it: the client comes again
                else:
                    await asyncio.sleep(0.5)
                    if room.embedded.generation != generation or room.embedded.state is not ServerState.READY:
                        tally.interrupted += 1
                    else:
                        tally.failures.append(f"{name}: {error}")
        await asyncio.sleep(rng.uniform(0, 0.2))


async def test_eight_of_forty_fit_and_every_request_is_answered(registry: Registry, tmp_path: Path) -> None:
    async with embedded_triton(tmp_path) as embedded:
        async with memory_room(registry, embedded, tmp_path, 2048 * MIB) as room:
            await room.deploy("one", 1.0)
            await room.until("it is measured", lambda: room.view("one").footprint[0].source == "measured")
            one = room.view("one").footprint[0].bytes
            registry_revision = registry.deployments.get("one", fresh=True)
            registry.deployments.put(
                registry_revision.spec.with_changes(deleted=True), after=registry_revision, actor="test", reason=""
            )
            room.reconciler.wake("one")
            await room.until("it is gone", lambda: not embedded.processes_of("one"))
        budget = int((one + 20 * MIB) * (FIT + 0.7))  # 16 MiB of weights is the mean
        async with memory_room(registry, embedded, tmp_path, budget, minimum_residence_seconds=1.0) as room:
            names = [f"m{number}" for number in range(MODELS)]
            for number, name in enumerate(names, 2):
                size = number % 5 * 8  # 0 to 32 MiB of weights: some are half as large again as others
                await asyncio.to_thread(
                    room.put, name, float(number), resident_mib=size, mode="on-demand", keep_alive_seconds=None
                )
            room.reconciler.wake()
            await room.until("all are known", lambda: len(room.memory.models) >= MODELS, 60)
            watcher, tally = Watcher(embedded), Tally()
            thread = threading.Thread(target=watcher.run)
            thread.start()
            try:
                until = time.monotonic() + SECONDS
                clients = [asyncio.create_task(client(room, names, until, seed, tally)) for seed in range(CLIENTS)]
                await asyncio.sleep(SECONDS / 2)
                before = tally.answers
                assert embedded.pid is not None
                os.kill(embedded.pid, signal.SIGKILL)
                await asyncio.gather(*clients)
            finally:
                watcher.stop.set()
                thread.join()
            memory = room.memory
            error = int(max(memory.counters["estimate_error_max_bytes"], 0))
            print(
                f"one {one / MIB:.1f} MiB, budget {budget / MIB:.1f} MiB, peak {watcher.peak / MIB:.1f} MiB of at most "
                f"{watcher.most} processes in {watcher.samples} samples, largest estimate error {error / MIB:.1f} MiB; "
                f"{tally.answers} answers ({tally.answers - before} after the kill), {tally.interrupted} interrupted; "
                f"{memory.counters}"
            )
            assert tally.failures == []
            assert watcher.samples > 300
            assert watcher.peak <= budget + error
            assert memory.counters["evictions"] > 5
            assert watcher.most >= FIT - 3, "the budget is made use of"
            assert before > 20
            assert tally.answers - before > 20, "it goes on after the kill"
            assert tally.interrupted <= 3 * CLIENTS
