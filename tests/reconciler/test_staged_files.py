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
from tests.reconciler.conftest import GIB, Room, forget, settings
from tests.support.hooked_store import HookedStore
from tests.support.triton import RunningTriton

pytestmark = pytest.mark.triton


@contextlib.asynccontextmanager
async def room_in(triton: RunningTriton, model: str, folder: Path) -> AsyncIterator[tuple[Room, HookedStore]]:
    """Start a control plane on the folder's store and cache; a second one on the same folder acts as a restart."""
    store = HookedStore(FilesystemStore(folder / "store"))
    registry = Registry(store, BlobCache(folder / "cache", GIB), head_max_age_seconds=0.2, gc=GcSettings())
    repository = ModelRepository(triton.repository.root, registry.cache.checked)
    server = ManagedServer("test", triton.client(), repository)
    reconciler = Reconciler(registry, [server], settings())
    await reconciler.start()
    try:
        yield Room(registry, server, reconciler, model, folder), store
    finally:
        await reconciler.stop()
        await server.client.close()


def staged(room: Room, version: int) -> Path:
    return room.server.repository.root / room.model / str(version) / "model.onnx"


def stored(room: Room, version: int) -> Path:
    (file,) = room.registry.manifest(room.model, version).files
    return room.work / "store" / blob_key(file.sha256)


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


async def unload(room: Room, version: int) -> None:
    revision = room.put(f"{room.model}:{version}", loaded=False)
    room.reconciler.wake(room.model)
    await room.reconciler.wait_settled(room.model, revision.number, 60)
    assert (await room.until(lambda status: status.phase is Phase.UNLOADED)).phase is Phase.UNLOADED


async def test_staging_compares_store_cache_and_repository(triton: RunningTriton, model: str, tmp_path: Path) -> None:
    async with room_in(triton, model, tmp_path) as (room, _):
        version = room.publish(1.0)
        await room.deploy(version)
        (file,) = room.registry.manifest(model, version).files
        cached = room.registry.cache.path_of(file.sha256)
        assert staged(room, version).samefile(cached)  # cache and repository share one copy
        assert not staged(room, version).samefile(stored(room, version))
        assert stored(room, version).stat().st_nlink == 1
    await forget(triton, model)


async def test_rollback_redeploy_and_restart_hash_and_fetch_nothing_again(
    triton: RunningTriton, model: str, tmp_path: Path
) -> None:
    async with room_in(triton, model, tmp_path) as (room, store):
        first, second = room.publish(1.0), room.publish(2.0)
        for version in (first, second):
            await room.deploy(version, settings=DeploymentSettings(bake_seconds=600))
        fetched = [call for call in store.calls if call[0] == "get_file"]
        assert len(fetched) == 2
        for _ in range(2):
            await room.rollback()  # back within the bake window, and forward
        await room.deploy(first, settings=DeploymentSettings(bake_seconds=0))  # removes the second
        await room.deploy(second)
        await unload(room, second)
        await room.deploy(second)
        assert await room.answer() == (2.0, second)
        assert [call for call in store.calls if call[0] == "get_file"] == fetched
        assert room.registry.cache.checked.hashed_bytes == 0
        await unload(room, second)
    async with room_in(triton, model, tmp_path) as (room, store):
        await room.deploy(second)
        await room.deploy(first)
        assert await room.answer() == (1.0, first)
        assert not [call for call in store.calls if call[0] == "get_file"]
        assert room.registry.cache.checked.hashed_bytes == 0
    await forget(triton, model)


async def test_changed_file_is_repaired_before_it_is_loaded(triton: RunningTriton, model: str, tmp_path: Path) -> None:
    async with room_in(triton, model, tmp_path) as (room, _):
        version = room.publish(8.0)
        await room.deploy(version)
        await unload(room, version)
        tamper(staged(room, version), 8.0, 8.000004)  # within the tolerance of any proof
    async with room_in(triton, model, tmp_path) as (room, _):
        status = await room.deploy(version)
        assert status.phase is Phase.READY, status
        assert await room.answer() == (8.0, version)
        (event,) = room.events("StagedFilesRepaired")
        assert "model.onnx was changed" in event
        assert staged(room, version).read_bytes() == stored(room, version).read_bytes()
    await forget(triton, model)


async def test_changed_file_is_repaired_before_a_rollback_to_it(
    triton: RunningTriton, model: str, tmp_path: Path
) -> None:
    async with room_in(triton, model, tmp_path) as (room, _):
        first, second = room.publish(8.0), room.publish(9.0)
        for version in (first, second):
            await room.deploy(version, settings=DeploymentSettings(bake_seconds=600))
        tamper(staged(room, first), 8.0, 8.000004)
        (staged(room, first).parent / "model.py").write_text("not ours")
        status = await room.rollback()
        assert status.phase is Phase.READY, status
        assert await room.answer() == (8.0, first)
        (event,) = room.events("StagedFilesRepaired")
        assert "model.onnx was changed" in event
        assert "model.py does not belong to the version" in event
    await forget(triton, model)


async def test_version_whose_only_copies_are_damaged_is_not_loaded(
    triton: RunningTriton, model: str, tmp_path: Path
) -> None:
    async with room_in(triton, model, tmp_path) as (room, _):
        version = room.publish(8.0)
        await room.deploy(version)
        await unload(room, version)
        whole = tmp_path / "whole"
        shutil.copyfile(stored(room, version), whole)
        tamper(staged(room, version), 8.0, 8.000004)
        tamper(stored(room, version), 8.0, 8.000004)
        status = await room.deploy(version)
        assert status.phase is Phase.FAILED
        assert f"staged files of {model}:{version} differ from the published ones" in status.message
        assert "cannot be repaired from the store" in status.message
        assert not [
            entry for entry in await room.server.client.index() if entry.model == model and entry.state == "READY"
        ]
        (file,) = room.registry.manifest(model, version).files
        room.registry.blobs.put_file(whole, file.sha256)
        await room.until(lambda status: status.phase is Phase.READY)
        assert await room.answer() == (8.0, version)
    await forget(triton, model)
