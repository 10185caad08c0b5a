"""Blobs in a store: comparison of a blob with its digest, and rewriting of damaged blobs."""

import hashlib
from pathlib import Path

import pytest

from controlplane.registry.blobs import Blobs, BlobState, blob_key
from controlplane.storage.filesystem import FilesystemStore


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(FilesystemStore(tmp_path))


def damage(tmp_path: Path, sha256: str, content: bytes) -> None:
    path = tmp_path / blob_key(sha256)
    path.chmod(0o644)
    path.write_bytes(content)


def test_inspect_reads_and_changes_nothing(blobs: Blobs, tmp_path: Path) -> None:
    sha256 = blobs.put_bytes(b"content")
    read: list[int] = []
    assert blobs.inspect(sha256, 7, read.append) is BlobState.INTACT
    assert read == [7]
    assert blobs.inspect(sha256, 8) is BlobState.DAMAGED
    damage(tmp_path, sha256, b"CONTENT")
    assert blobs.inspect(sha256) is BlobState.DAMAGED
    assert (tmp_path / blob_key(sha256)).read_bytes() == b"CONTENT"
    assert blobs.inspect(hashlib.sha256(b"never").hexdigest()) is BlobState.MISSING


def test_small_blob_that_is_damaged_is_written_again(blobs: Blobs, tmp_path: Path) -> None:
    sha256 = blobs.put_bytes(b"content")
    damage(tmp_path, sha256, b"CONT")
    assert blobs.put_bytes(b"content") == sha256
    assert blobs.read(sha256) == b"content"
