"""A reconciler between a registry in a folder and a real Triton, for benchmarks and end-to-end tests below the API."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.names import Reference
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import NotFoundError
from controlplane.gpu.host import HostSource
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.cache import BlobCache
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import GcSettings, ReconcilerSettings
from controlplane.storage.filesystem import FilesystemStore
from controlplane.triton.client import TritonClient
from controlplane.triton.repository import ModelRepository
from tests.support.triton import RunningTriton

GIB = 1 << 30


@dataclass(frozen=True)
class Control:
    """A running reconciler and its parts."""

    registry: Registry
    reconciler: Reconciler
    client: TritonClient
    repository: ModelRepository

    def put(self, model: str, version: int, **settings: float) -> DeploymentRevision:
        """Commit a deployment of a version."""
        try:
            before = self.registry.deployments.get(model, fresh=True)
        except NotFoundError:
            before = None
        reference = str(Reference(model, version=version))
        spec = DeploymentSpec(
            model=model, reference=reference, version=version, settings=DeploymentSettings.model_validate(settings)
        )
        return self.registry.deployments.put(spec, after=before, actor="benchmark", reason="")

    async def settled(self, revision: DeploymentRevision) -> DeploymentStatus:
        """Wake the reconciler and wait until the revision is Ready."""
        self.reconciler.wake(revision.spec.model)
        status = await self.reconciler.wait_settled(revision.spec.model, revision.number, 120)
        assert status.phase is Phase.READY, status
        return status


@contextlib.asynccontextmanager
async def control(triton: RunningTriton, folder: Path) -> AsyncIterator[Control]:
    """Start a reconciler with the default intervals."""
    registry = Registry(
        FilesystemStore(folder / "store"), BlobCache(folder / "cache", GIB), head_max_age_seconds=1.0, gc=GcSettings()
    )
    client = triton.client()
    devices = HostSource(triton.server.processes)
    repository = ModelRepository(triton.repository.root, registry.cache.checked)
    server = ManagedServer("local", client, repository, devices=devices)
    reconciler = Reconciler(registry, [server], ReconcilerSettings())
    await reconciler.start()
    try:
        yield Control(registry, reconciler, client, repository)
    finally:
        await reconciler.stop()
        await client.close()
