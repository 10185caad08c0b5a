"""A download closes the blob that it reads, however it ends."""

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from controlplane.domain.manifest import FileEntry
from controlplane.registry.registry import Registry
from controlplane.services.versions import Download
from controlplane.storage.filesystem import FilesystemStore
from tests.support.registries import new_registry

CONTENT = bytes(range(256)) * (12 << 10)  # three chunks


class Opened:
    """Collects the files that a store opens, and holds each opening back until `release` is set."""

    def __init__(self, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[BinaryIO] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self._open = store.open
        monkeypatch.setattr(store, "open", self)

    def __call__(self, key: str) -> BinaryIO:
        self.asked.set()
        assert self.release.wait(30)
        self.files.append(self._open(key))
        return self.files[-1]


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(tmp_path / "store")


@pytest.fixture
def registry(store: FilesystemStore, tmp_path: Path) -> Registry:
    return new_registry(store, tmp_path / "cache")


@pytest.fixture
def download(registry: Registry, tmp_path: Path) -> Download:
    digest = hashlib.sha256(CONTENT).hexdigest()
    (tmp_path / "file").write_bytes(CONTENT)
    registry.store.put_file(f"blobs/sha256/{digest[:2]}/{digest}", tmp_path / "file", sha256=digest)
    return Download(registry, FileEntry(path="model.onnx", sha256=digest, size_bytes=len(CONTENT)))


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def first_chunk(chunks: Any) -> bytes:
    part: bytes = await anext(chunks)
    return part


async def test_download_that_ends_early_closes_the_blob(
    download: Download, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(store, monkeypatch)
    opened.release.set()
    chunks = download.read(0, len(CONTENT))
    assert CONTENT.startswith(await first_chunk(chunks))
    await chunks.aclose()
    assert [file.closed for file in opened.files] == [True]


async def test_download_cancelled_while_it_opens_closes_the_blob(
    download: Download, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(store, monkeypatch)
    task = asyncio.create_task(first_chunk(download.read(0, len(CONTENT))))
    await wait_for(opened.asked)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    opened.release.set()
    for _ in range(3000):
        if opened.files and opened.files[0].closed:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the blob stayed open")


async def test_download_cancelled_while_it_closes_closes_the_blob(
    download: Download, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(store, monkeypatch)
    opened.release.set()

    async def whole() -> None:
        async for _ in download.read(0, len(CONTENT)):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await whole()
    for _ in range(3000):
        if opened.files[0].closed:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the blob stayed open")
