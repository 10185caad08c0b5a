"""An embedded Triton for one test with a budget, a reconciler, and clients that load, hold and infer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Mode
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import LoadRefusedError, NotFoundError
from controlplane.gpu.budgets import BudgetRules
from controlplane.gpu.host import HostSource
from controlplane.memory.views import ModelMemoryView, ServerMemory
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import MemorySettings, TritonSettings
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.metrics_scraper import MetricsScraper
from controlplane.triton.repository import ModelRepository
from tests.reconciler.conftest import settings as reconciler_settings
from tests.support.models import publish_affine

MIB = 1 << 20


class ShortOfMemory(TritonClient):
    """A client of a real Triton that refuses loads on request as Triton does when it has no memory.

    Attributes:
        refusals: How many loads of a model are still refused, by Triton name.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.refusals: dict[str, int] = {}

    async def load(self, name: str, config: Mapping[str, Any]) -> None:
        if self.refusals.get(name, 0) > 0:
            self.refusals[name] -= 1
            raise LoadRefusedError(
                f"{self.name} refused to load {name}: Failed to allocate memory for requested buffer of size 41943040",
                model=name,
            )
        await super().load(name, config)


@dataclass
class MemoryHarness:
    """A running reconciler with one server that has a budget."""

    registry: Registry
    embedded: EmbeddedTriton
    client: ShortOfMemory
    reconciler: Reconciler
    work: Path
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def memory(self) -> ServerMemory:
        (memory,) = self.reconciler.memory()
        return memory

    def view(self, model: str) -> ModelMemoryView:
        return next(view for view in self.memory.models if view.model == model)

    def loaded(self) -> list[str]:
        return [view.model for view in self.memory.models if view.state == "loaded"]

    def events(self, reason: str) -> list[str]:
        return [f"{e.subject}: {e.message}" for e in self.reconciler.events() if e.reason == reason]

    def put(self, model: str, scale: float, *, resident_mib: int = 0, **settings: object) -> int:
        """Publish a version, commit a deployment of it and return the revision."""
        version = publish_affine(self.registry, model, self.work, scale=scale, resident_mib=resident_mib)
        self.scales[model] = scale
        return self.want(model, version, **settings)

    def want(self, model: str, version: int, **settings: object) -> int:
        try:
            before = self.registry.deployments.get(model, fresh=True)
        except NotFoundError:
            before = None
        spec = DeploymentSpec(
            model=model,
            reference=f"{model}:{version}",
            version=version,
            settings=DeploymentSettings.model_validate({"bake_seconds": 0, **settings}),
        )
        revision = self.registry.deployments.put(spec, after=before, actor="test", reason="")
        self.reconciler.wake(model)
        return revision.number

    async def deploy(self, model: str, scale: float, **options: object) -> DeploymentStatus:
        revision = self.put(model, scale, **options)  # type: ignore[arg-type]
        return await self.reconciler.wait_settled(model, revision, 60)

    async def load(self, model: str, seconds: float = 60) -> DeploymentStatus:
        return await self.reconciler.wait_loaded(model, seconds)

    async def infer(self, model: str) -> float:
        outputs, _ = await self.client.infer(model, {"x": np.ones((1, 4), np.float32)})
        return float(outputs["y"][0, 0])

    async def until(self, what: str, condition: object, seconds: float = 30) -> None:
        assert callable(condition)
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not reached: {what}; {self.memory}") from None

    @contextlib.asynccontextmanager
    async def held(self, model: str, seconds: float = 30) -> AsyncIterator[None]:
        """Hold, load, use and release a model as a client that must not lose it."""
        lease = await asyncio.to_thread(self.registry.holds.acquire, model, seconds=seconds, holder="test")
        self.reconciler.lease_changed(lease)
        try:
            yield
        finally:
            given_back = await asyncio.to_thread(self.registry.holds.release, model, lease.id)
            self.reconciler.lease_changed(given_back)


def small(name: str, **changes: object) -> dict[str, object]:
    """Return settings of an on-demand model."""
    return {"mode": Mode.ON_DEMAND, **changes}


@contextlib.asynccontextmanager
async def embedded_triton(folder: Path) -> AsyncIterator[EmbeddedTriton]:
    embedded = EmbeddedTriton(folder / "models", folder / "triton", TritonSettings())
    await embedded.start()
    try:
        yield embedded
    finally:
        await embedded.stop()


@contextlib.asynccontextmanager
async def memory_harness(
    registry: Registry,
    embedded: EmbeddedTriton,
    work: Path,
    budget: int,
    *,
    supervised: bool = True,
    pace: Mapping[str, float] = {},
    **changes: object,
) -> AsyncIterator[MemoryHarness]:
    """Start a reconciler with one server, supervised or external.

    Args:
        registry: The bucket.
        embedded: The server.
        work: For files.
        budget: Host memory that models can use, in bytes.
        supervised: Whether the reconciler supervises the server.
        pace: Other intervals of the reconciler.
        changes: Other settings of the memory.
    """
    client = ShortOfMemory(
        "own",
        embedded.grpc_url,
        timeouts=TritonTimeouts(load_seconds=60),
        processes=embedded.processes_of,
        log_tail=embedded.log_tail,
    )
    server = ManagedServer(
        "own",
        client,
        ModelRepository(embedded.repository),
        embedded if supervised else None,
        page=MetricsScraper(embedded.metrics_url),
        devices=HostSource(embedded.processes),
        budgets=BudgetRules({"host": budget}),
    )
    memory = MemorySettings.model_validate(
        {"minimum_residence_seconds": 0.5, "poll_interval_seconds": 0.3, "load_queue_timeout_seconds": 30, **changes}
    )
    reconciler = Reconciler(registry, [server], reconciler_settings(**pace), memory=memory)
    await reconciler.start()
    try:
        yield MemoryHarness(registry, embedded, client, reconciler, work)
    finally:
        await reconciler.stop()
        await client.close()


def ready(status: DeploymentStatus) -> bool:
    return status.phase is Phase.READY
