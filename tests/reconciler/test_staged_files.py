"""The files in Triton's repository are compared with the published ones before each load, on a real Triton."""

import contextlib
import os
import shutil
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.states import Phase
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.blobs import blob_key
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import GcSettings
from controlplane.storage.filesystem import FilesystemStore
from controlplane.triton.repository import ModelRepository
from tests.reconciler.conftest import GIB, Harness, forget, settings
from tests.support.hooked_store import HookedStore
from tests.support.triton import RunningTriton

pytestmark = pytest.mark.triton


@contextlib.asynccontextmanager
async def harness_in(triton: RunningTriton, model: str, folder: Path) -> AsyncIterator[tuple[Harness, HookedStore]]:
    """Start a control plane on the folder's store and cache; a second one on the same folder acts as a restart."""
    store = HookedStore(FilesystemStore(folder / "store"))
    registry = Registry(store, BlobCache(folder / "cache", GIB), head_max_age_seconds=0.2, gc=GcSettings())
    repository = ModelRepository(triton.repository.root, registry.cache.checked)
    server = ManagedServer("test", triton.client(), repository)
    reconciler = Reconciler(registry, [server], settings())
    await reconciler.start()
    try:
        yield Harness(registry, server, reconciler, model, folder), store
    finally:
        await reconciler.stop()
        await server.client.close()


def staged(harness: Harness, version: int) -> Path:
    return harness.server.repository.root / harness.model / str(version) / "model.onnx"


def stored(harness: Harness, version: int) -> Path:
    (file,) = harness.registry.manifest(harness.model, version).files
    return harness.work / "store" / blob_key(file.sha256)


def tamper(path: Path, old: float, new: float) -> None:
    """Change a weight in place without changing size, mode or modification time."""
    status = path.stat()
    content = path.read_bytes().replace(struct.pack("<f", old), struct.pack("<f", new))
    assert content != path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(status.st_mode & 0o7777)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


async def unload(harness: Harness, version: int) -> None:
    revision = harness.put(f"{harness.model}:{version}", loaded=False)
    harness.reconciler.wake(harness.model)
    await harness.reconciler.wait_settled(harness.model, revision.number, 60)
    assert (await harness.until(lambda status: status.phase is Phase.UNLOADED)).phase is Phase.UNLOADED


async def test_staging_compares_store_cache_and_repository(triton: RunningTriton, model: str, tmp_path: Path) -> None:
    async with harness_in(triton, model, tmp_path) as (harness, _):
        version = harness.publish(1.0)
        await harness.deploy(version)
        (file,) = harness.registry.manifest(model, version).files
        cached = harness.registry.cache.path_of(file.sha256)
        assert staged(harness, version).samefile(cached)  # cache and repository share one copy
        assert not staged(harness, version).samefile(stored(harness, version))
        assert stored(harness, version).stat().st_nlink == 1
    await forget(triton, model)


async def test_rollback_redeploy_and_restart_hash_and_fetch_nothing_again(
    triton: RunningTriton, model: str, tmp_path: Path
) -> None:
    async with harness_in(triton, model, tmp_path) as (harness, store):
        first, second = harness.publish(1.0), harness.publish(2.0)
        for version in (first, second):
            await harness.deploy(version, settings=DeploymentSettings(bake_seconds=600))
        fetched = [call for call in store.calls if call[0] == "get_file"]
        assert len(fetched) == 2
        for _ in range(2):
            await harness.rollback()  # back within the bake window, and forward
        await harness.deploy(first, settings=DeploymentSettings(bake_seconds=0))  # removes the second
        await harness.deploy(second)
        await unload(harness, second)
        await harness.deploy(second)
        assert await harness.answer() == (2.0, second)
        assert [call for call in store.calls if call[0] == "get_file"] == fetched
        assert harness.registry.cache.checked.hashed_bytes == 0
        await unload(harness, second)
    async with harness_in(triton, model, tmp_path) as (harness, store):
        await harness.deploy(second)
        await harness.deploy(first)
        assert await harness.answer() == (1.0, first)
        assert not [call for call in store.calls if call[0] == "get_file"]
        assert harness.registry.cache.checked.hashed_bytes == 0
    await forget(triton, model)


async def test_changed_file_is_repaired_before_it_is_loaded(triton: RunningTriton, model: str, tmp_path: Path) -> None:
    async with harness_in(triton, model, tmp_path) as (harness, _):
        version = harness.publish(8.0)
        await harness.deploy(version)
        await unload(harness, version)
        tamper(staged(harness, version), 8.0, 8.000004)  # within the tolerance of any proof
    async with harness_in(triton, model, tmp_path) as (harness, _):
        status = await harness.deploy(version)
        assert status.phase is Phase.READY, status
        assert await harness.answer() == (8.0, version)
        (event,) = harness.events("StagedFilesRepaired")
        assert "model.onnx was changed" in event
        assert staged(harness, version).read_bytes() == stored(harness, version).read_bytes()
    await forget(triton, model)


async def test_changed_file_is_repaired_before_a_rollback_to_it(
    triton: RunningTriton, model: str, tmp_path: Path
) -> None:
    async with harness_in(triton, model, tmp_path) as (harness, _):
        first, second = harness.publish(8.0), harness.publish(9.0)
        for version in (first, second):
            await harness.deploy(version, settings=DeploymentSettings(bake_seconds=600))
        tamper(staged(harness, first), 8.0, 8.000004)
        (staged(harness, first).parent / "model.py").write_text("not ours")
        status = await harness.rollback()
        assert status.phase is Phase.READY, status
        assert await harness.answer() == (8.0, first)
        (event,) = harness.events("StagedFilesRepaired")
        assert "model.onnx was changed" in event
        assert "model.py does not belong to the version" in event
    await forget(triton, model)


async def test_version_whose_only_copies_are_damaged_is_not_loaded(
    triton: RunningTriton, model: str, tmp_path: Path
) -> None:
    async with harness_in(triton, model, tmp_path) as (harness, _):
        version = harness.publish(8.0)
        await harness.deploy(version)
        await unload(harness, version)
        whole = tmp_path / "whole"
        shutil.copyfile(stored(harness, version), whole)
        tamper(staged(harness, version), 8.0, 8.000004)
        tamper(stored(harness, version), 8.0, 8.000004)
        status = await harness.deploy(version)
        assert status.phase is Phase.FAILED
        assert f"staged files of {model}:{version} differ from the published ones" in status.message
        assert "cannot be repaired from the store" in status.message
        assert not [
            entry for entry in await harness.server.client.index() if entry.model == model and entry.state == "READY"
        ]
        (file,) = harness.registry.manifest(model, version).files
        harness.registry.blobs.put_file(whole, file.sha256)
        await harness.until(lambda status: status.phase is Phase.READY)
        assert await harness.answer() == (8.0, version)
    await forget(triton, model)
