"""Forty models in memory for eight, several clients, and kills of both Triton and the control plane.

Everything is real: `tritonctl up` as a process of its own, its Triton, clients that hold a model over REST and ask
Triton itself, SIGKILL. It lasts as long as it takes to make some progress in each of its three parts (from the start,
after Triton was killed, after the control plane was killed); ``CHURN_SECONDS`` makes each part at least so long, for a
soak::

    CHURN_SECONDS=600 make test ARGS="-k churn"
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.errors import TritonError
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.filesystem import FilesystemStore
from controlplane.triton.client import TritonClient
from tests.support.models import publish_affine
from tests.support.processes import tied_to_us

PART_SECONDS = float(os.environ.get("CHURN_SECONDS", "15"))
pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(600 + 6 * PART_SECONDS)]

MIB = 1 << 20
MODELS = 40
FIT = 8
EACH = 92 * MIB
"""A process of 70 MiB, and the mean of the weights with what ONNX Runtime makes of them."""
BUDGET = int(EACH * (FIT + 0.7))
CLIENTS = 5
PROGRESS = 25
"""Answers that each part has at least."""
RECOVERY_SECONDS = 180.0


@dataclass
class Plane:
    """The control plane as a process that the test kills and restarts.

    Attributes:
        down: Periods of disturbance, each with start and end.
    """

    folder: Path
    process: "subprocess.Popen[bytes] | None" = None
    down: list[list[float]] = field(default_factory=list)
    error: float = 0.0

    @property
    def ready_file(self) -> Path:
        return self.folder / "data" / "up.json"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.ready_file.unlink(missing_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITONCTL_", "CONTROLPLANE_"))}
        memory = {
            "BUDGET_BYTES": json.dumps({"host": BUDGET}),
            "MINIMUM_RESIDENCE_SECONDS": "1",
            "POLL_INTERVAL_SECONDS": "0.3",
        }
        command = [sys.executable, "-m", "controlplane.cli.main", "up", "--data-dir", str(self.folder / "data")]
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                tied_to_us([*command, "--port", "0"]),
                env={**kept, **{f"CONTROLPLANE_MEMORY__{name}": value for name, value in memory.items()}},
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + RECOVERY_SECONDS
        while not self.ready_file.exists():
            assert self.process.poll() is None, (self.folder / "up.log").read_text()[-3000:]
            assert time.monotonic() < end, "the control plane does not start"
            time.sleep(0.05)

    def triton(self) -> psutil.Process | None:
        """The server's process."""
        assert self.process is not None
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                if process.name().startswith("tritonserver"):
                    return process
        return None

    def disturbed(self, since: float) -> bool:
        """Return whether a process was killed or still restarting since a time."""
        return any(end >= since for _, end in self.down)

    @property
    def url(self) -> str:
        return str(json.loads(self.ready_file.read_text())["url"])

    def memory(self) -> dict[str, Any]:
        """Return the ledger, read over REST."""
        (server,) = httpx.get(f"{self.url}/v1/memory", timeout=30).raise_for_status().json()["items"]
        self.error = max(self.error, server["counters"]["estimate_error_max_bytes"])
        return dict(server)

    def kill_triton(self) -> None:
        """Kill the server, and wait until another one answers."""
        killed = self.triton()
        assert killed is not None
        self.down.append([time.monotonic(), float("inf")])
        os.kill(killed.pid, signal.SIGKILL)
        end = time.monotonic() + RECOVERY_SECONDS
        while True:
            (server,) = httpx.get(f"{self.url}/v1/servers", timeout=30).raise_for_status().json()["items"]
            new = self.triton()
            if server["state"] == "Ready" and new is not None and new.pid != killed.pid:
                break
            assert time.monotonic() < end, server
            time.sleep(0.05)
        self.down[-1][1] = time.monotonic()

    def kill(self) -> None:
        """Kill the control plane and with it its Triton, and start another one on the same folder."""
        assert self.process is not None
        self.memory()
        self.down.append([time.monotonic(), float("inf")])
        orphans = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(orphans, timeout=RECOVERY_SECONDS)
        assert not alive, "a Triton outlived its control plane"
        self.start()
        self.down[-1][1] = time.monotonic()


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    """Forty deployed models, of 0 to 32 MiB of weights, none of them loaded."""
    store = FilesystemStore(tmp_path / "data" / "store")
    registry = Registry(store, BlobCache(tmp_path / "filling", 1 << 30), head_max_age_seconds=1.0, gc=GcSettings())
    settings = DeploymentSettings.model_validate({"mode": "on-demand", "keep_alive_seconds": None, "bake_seconds": 0})
    for number in range(MODELS):
        name = f"m{number}"
        publish_affine(registry, name, tmp_path / "files", scale=number + 2.0, resident_mib=number % 5 * 8)
        spec = DeploymentSpec(model=name, reference=name, version=1, settings=settings)
        registry.deployments.put(spec, after=None, actor="test", reason="")
    plane = Plane(tmp_path)
    plane.start()
    try:
        yield plane
    finally:
        assert plane.process is not None
        plane.process.terminate()
        try:
            plane.process.wait(60)
        finally:
            plane.process.kill()


@dataclass
class Watcher:
    """Reads the memory of the models' processes from the operating system continuously."""

    plane: Plane
    peak: int = 0
    most: int = 0
    samples: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(0.05):
            server = self.plane.triton()
            if server is None:
                continue
            total = count = 0
            with contextlib.suppress(psutil.Error):
                for child in server.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        total += child.memory_info().rss
                        count += 1
            self.peak, self.most, self.samples = max(self.peak, total), max(self.most, count), self.samples + 1


@dataclass
class Tally:
    answers: int = 0
    interrupted: int = 0
    failures: list[str] = field(default_factory=list)


class Client:
    """Holds a model over REST, sends requests to Triton, releases the hold, and repeats with the next model."""

    def __init__(self, plane: Plane, stats: Tally, seed: int) -> None:
        self._plane = plane
        self._stats = stats
        self._random = random.Random(seed)
        self._weights = [1 / (rank + 1) for rank in range(MODELS)]

    async def work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            (number,) = self._random.choices(range(MODELS), self._weights)
            began = time.monotonic()
            try:
                await self._use(number)
            except (httpx.HTTPError, TritonError, json.JSONDecodeError, FileNotFoundError) as error:
                await asyncio.sleep(1.0)  # a client may notice a kill before the test has recorded it
                if self._plane.disturbed(began):
                    self._stats.interrupted += 1  # the client retries
                else:
                    body = error.response.text if isinstance(error, httpx.HTTPStatusError) else ""
                    self._stats.failures.append(f"m{number}: {type(error).__name__} {error} {body}")
            await asyncio.sleep(self._random.uniform(0, 0.2))

    async def _use(self, number: int) -> None:
        name = f"m{number}"
        async with httpx.AsyncClient(base_url=self._plane.url, timeout=120) as http:
            leases = f"/v1/deployments/{name}/holds"
            taken = (await http.post(leases, params={"wait": 90}, json={"ttl_seconds": 20})).raise_for_status().json()
            assert taken["ready"], taken
            (server,) = (await http.get("/v1/servers")).raise_for_status().json()["items"]
            triton = TritonClient("embedded", server["grpc_url"])
            try:
                for _ in range(self._random.randint(1, 4)):
                    outputs, _ = await triton.infer(name, {"x": np.ones((1, 4), np.float32)})
                    assert float(outputs["y"][0, 0]) == number + 2.0
                    self._stats.answers += 1
            finally:
                await triton.close()
            (await http.delete(f"{leases}/{taken['id']}")).raise_for_status()


async def part(stats: Tally) -> int:
    """Run the clients until there is progress; return the answers."""
    before, began = stats.answers, time.monotonic()
    async with asyncio.timeout(RECOVERY_SECONDS + PART_SECONDS):
        while stats.answers < before + PROGRESS or time.monotonic() < began + PART_SECONDS:
            await asyncio.sleep(0.1)
    return stats.answers - before


async def test_forty_models_in_memory_for_eight_serve_all_possible_requests(plane: Plane) -> None:
    watcher, stats, stop = Watcher(plane), Tally(), asyncio.Event()
    thread = threading.Thread(target=watcher.run)
    thread.start()
    clients = [asyncio.create_task(Client(plane, stats, seed).work(stop)) for seed in range(CLIENTS)]
    try:
        parts = [await part(stats)]
        evictions = (await asyncio.to_thread(plane.memory))["counters"]["evictions"]
        await asyncio.to_thread(plane.kill_triton)
        parts.append(await part(stats))
        await asyncio.to_thread(plane.kill)
        parts.append(await part(stats))
        stop.set()
        await asyncio.gather(*clients)
    finally:
        for client in clients:
            client.cancel()
        watcher.stop.set()
        thread.join()
    counters = (await asyncio.to_thread(plane.memory))["counters"]
    error = int(max(plane.error, 0))
    print(
        f"budget {BUDGET / MIB:.0f} MiB, peak {watcher.peak / MIB:.0f} MiB of at most {watcher.most} processes in "
        f"{watcher.samples} samples, largest estimate error {error / MIB:.1f} MiB; answers {parts}, "
        f"{stats.interrupted} interrupted; down for {[round(end - begin, 1) for begin, end in plane.down]} s; "
        f"{counters}"
    )
    assert stats.failures == []
    assert watcher.samples > 100
    assert watcher.peak <= BUDGET + error
    assert watcher.most >= FIT - 3, "most of the budget is used"
    assert evictions > 3
    assert counters["loads"] > 3, "models are loaded after both kills"
    # Each kill affects each client once; while the control plane is down, it retries once a second.
    away = sum(end - begin for begin, end in plane.down)
    assert stats.interrupted <= CLIENTS * (2 * len(plane.down) + away)
