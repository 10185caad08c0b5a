"""A registry in a folder, the session's real Triton, and a reconciler between them."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.names import Reference, candidate_name
from controlplane.domain.rollout.rollback import rollback_target
from controlplane.domain.states import DeploymentStatus
from controlplane.errors import InferenceError, NotFoundError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.cache import BlobCache
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import GcSettings, ReconcilerSettings
from controlplane.storage.filesystem import FilesystemStore
from controlplane.triton.client import TritonClient
from tests.support.models import publish_affine
from tests.support.triton import RunningTriton

GIB = 1 << 30
_numbers = itertools.count(1)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(tmp_path)


def open_registry(folder: Path) -> Registry:
    store = FilesystemStore(folder / "store")
    return Registry(store, BlobCache(folder / "cache", GIB), head_max_age_seconds=0.2, gc=GcSettings())


@pytest.fixture
def model() -> str:
    """Return a model name that only this test uses, because the session's Triton is shared."""
    return f"affine{next(_numbers)}"


def settings(**changes: Any) -> ReconcilerSettings:
    return ReconcilerSettings(
        **{
            "interval_seconds": 0.3,
            "probe_interval_seconds": 0.5,
            "backoff_initial_seconds": 0.5,
            "lease_seconds": 15.0,
            **changes,
        }
    )


@dataclass
class Harness:
    """A running reconciler with the helpers that tests need."""

    registry: Registry
    server: ManagedServer
    reconciler: Reconciler
    model: str
    work: Path

    def publish(self, scale: float, **options: Any) -> int:
        return publish_affine(self.registry, self.model, self.work, scale=scale, **options)

    def put(self, reference: str, *, reason: str = "", **changes: Any) -> DeploymentRevision:
        deployments = self.registry.deployments
        try:
            before = deployments.get(self.model, fresh=True, deleted=True)
        except NotFoundError:
            before = None
        version = self.registry.resolve(Reference.parse(reference)).number
        settings = changes.pop("settings", before.spec.settings if before else DeploymentSettings())
        spec = DeploymentSpec(model=self.model, reference=reference, version=version, settings=settings, **changes)
        return deployments.put(spec, after=before, actor="test", reason=reason)

    async def deploy(self, version: int, **changes: Any) -> DeploymentStatus:
        return await self.settled(self.put(f"{self.model}:{version}", **changes))

    async def rollback(self, revision: int | None = None) -> DeploymentStatus:
        deployments = self.registry.deployments
        history = deployments.history(self.model)
        spec = rollback_target(history, revision)
        return await self.settled(deployments.put(spec, after=history[0], actor="test", reason="rollback"))

    async def settled(self, revision: DeploymentRevision, seconds: float = 60) -> DeploymentStatus:
        self.reconciler.wake(self.model)
        status = await self.reconciler.wait_settled(self.model, revision.number, seconds)
        assert status.phase.settled, status
        return status

    async def until(self, condition: Callable[[DeploymentStatus], bool], seconds: float = 30) -> DeploymentStatus:
        async with asyncio.timeout(seconds):
            while True:
                status = self.reconciler.status(self.model)
                if status is not None and condition(status):
                    return status
                await asyncio.sleep(0.02)

    async def answer(self) -> tuple[float, int]:
        """Return the factor that Triton applies and the version that answered."""
        return await answer(self.server.client, self.model)

    def events(self, reason: str) -> list[str]:
        return [e.message for e in self.reconciler.events() if e.subject == self.model and e.reason == reason]


async def answer(client: TritonClient, model: str) -> tuple[float, int]:
    config = await client.model_config(model)
    width = config["input"][0]["dims"][-1]
    outputs, version = await client.infer(model, {"x": np.ones((1, int(width)), np.float32)}, config=config)
    return float(outputs["y"][0, 0]), version


@dataclass
class Traffic:
    """Two clients that infer in a tight loop through Triton's own port."""

    versions: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    answers: set[tuple[int, float]] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    @property
    def order(self) -> list[int]:
        """The versions that answered, in order and without repetitions; both clients saw the same."""
        one, other = ([version for version, _ in itertools.groupby(client)] for client in self.versions)
        assert one == other
        return one


@contextlib.asynccontextmanager
async def traffic(client: TritonClient, model: str) -> AsyncIterator[Traffic]:
    seen = Traffic()
    config = await client.model_config(model)
    stop = asyncio.Event()

    async def run(versions: list[int]) -> None:
        x = np.ones((1, 4), np.float32)
        while not stop.is_set():
            try:
                outputs, version = await client.infer(model, {"x": x}, config=config)
            except InferenceError as error:
                seen.errors.append(str(error))
            else:
                versions.append(version)
                seen.answers.add((version, float(outputs["y"][0, 0])))

    tasks = [asyncio.create_task(run(versions)) for versions in seen.versions]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@pytest.fixture
async def harness(triton: RunningTriton, registry: Registry, model: str, tmp_path: Path) -> AsyncIterator[Harness]:
    async with running(triton, registry, model, tmp_path) as harness:
        yield harness
    await forget(triton, model)


@contextlib.asynccontextmanager
async def running(
    triton: RunningTriton, registry: Registry, model: str, work: Path, **changes: Any
) -> AsyncIterator[Harness]:
    server = ManagedServer("test", triton.client(), triton.repository)
    reconciler = Reconciler(registry, [server], settings(**changes))
    await reconciler.start()
    try:
        yield Harness(registry, server, reconciler, model, work)
        assert not reconciler.missed, f"changed without a mark:  {dict(reconciler.missed)}"
    finally:
        await reconciler.stop()
        await server.client.close()


async def nothing_half_staged(server: ManagedServer, model: str) -> None:
    """Wait until no candidate is left and every staged folder is loaded."""
    async with asyncio.timeout(90):
        while True:
            ready = [e for e in await server.client.index() if e.state == "READY"]
            loaded = {e.version for e in ready if e.model == model}
            candidate = any(e.model == candidate_name(model) for e in ready)
            staged = server.repository.staged()
            if not candidate and candidate_name(model) not in staged and staged.get(model, set()) == loaded:
                break
            await asyncio.sleep(0.05)
    assert not list((server.repository.root / model).glob(".incomplete*"))


async def forget(triton: RunningTriton, model: str) -> None:
    async with InferenceServerClient(triton.server.grpc_url) as control:
        for name in (model, candidate_name(model)):
            await control.unload_model(name)
            triton.repository.remove_model(name)
