"""Blobs that a client writes directly to the bucket: nothing unverified is ever under a blob's key."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controlplane.domain.manifest import FileEntry
from controlplane.errors import InvalidArtifactError, ObjectNotFoundError
from controlplane.registry.blobs import blob_key
from controlplane.registry.registry import Registry
from controlplane.services.uploads.service import INCOMING, Uploads
from controlplane.services.uploads.spool import Spool
from controlplane.storage.factory import open_store
from controlplane.storage.s3.copy import copy_object
from controlplane.storage.s3.store import S3Store
from tests.support.registries import new_registry
from tests.support.s3server import S3Server

GOOD, BAD = b"good" * 1000, b"evil" * 1000
DIGEST = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    server: S3Server = request.getfixturevalue(request.param)
    store = open_store(server.settings(server.new_bucket(), f"registry-{uuid.uuid4().hex}"), tmp_path)
    yield new_registry(store, tmp_path / "cache")
    store.close()


async def announced(registry: Registry, folder: Path, data: bytes) -> tuple[Uploads, str, str]:
    """Announce GOOD and send ``data`` for it; returns the service, the upload's id and the multipart upload's."""
    uploads = Uploads(Spool(folder / "spool"), registry, max_bytes=1 << 20)
    upload = await uploads.create([FileEntry(path="model.onnx", sha256=DIGEST, size_bytes=len(GOOD))], actor="a")
    (blob,) = await uploads.presign(upload.id, expires_seconds=600)
    httpx.put(blob.urls[0], content=data, trust_env=False).raise_for_status()
    return uploads, upload.id, blob.multipart_id


async def test_verified_bytes_become_the_blob(registry: Registry, tmp_path: Path) -> None:
    uploads, upload, multipart = await announced(registry, tmp_path, GOOD)
    assert registry.blobs.size_of(DIGEST) is None
    await uploads.complete(upload, DIGEST, multipart_id=multipart)
    assert registry.read_blob(DIGEST) == GOOD
    assert list(registry.store.list(INCOMING)) == []
    assert (await uploads.whole(upload)).missing == ()


async def test_wrong_bytes_do_not_replace_or_remove_a_concurrent_blob(registry: Registry, tmp_path: Path) -> None:
    uploads, upload, multipart = await announced(registry, tmp_path, BAD)
    registry.blobs.put_bytes(GOOD)  # another publish of the same file
    with pytest.raises(InvalidArtifactError):
        await uploads.complete(upload, DIGEST, multipart_id=multipart)
    assert registry.read_blob(DIGEST) == GOOD
    assert list(registry.store.list(INCOMING)) == []


async def test_completion_with_a_lost_response_can_be_repeated(registry: Registry, tmp_path: Path) -> None:
    uploads, upload, multipart = await announced(registry, tmp_path, GOOD)
    registry.store.complete_presigned(f"{INCOMING}{upload}/{DIGEST}", multipart)
    await uploads.complete(upload, DIGEST, multipart_id=multipart)
    assert registry.read_blob(DIGEST) == GOOD
    again = await uploads.complete(upload, DIGEST, multipart_id=multipart)
    assert again.received_bytes == len(GOOD)


async def test_unknown_multipart_upload_is_rejected(registry: Registry, tmp_path: Path) -> None:
    uploads, upload, _ = await announced(registry, tmp_path, GOOD)
    with pytest.raises(ObjectNotFoundError):
        await uploads.complete(upload, DIGEST, multipart_id="nothing")
    assert registry.blobs.size_of(DIGEST) is None


def test_large_objects_are_copied_in_parts(registry: Registry, tmp_path: Path) -> None:
    store = registry.store
    assert isinstance(store, S3Store)
    part = 5 * 1024 * 1024
    data = bytes(range(256)) * (part // 256) + b"the end"
    source = tmp_path / "data"
    source.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    store.put_file("incoming/x/y", source, sha256=digest)
    found = store._bucket.size_and_etag("incoming/x/y")
    assert found is not None
    copy_object(
        store._bucket, "incoming/x/y", blob_key(digest), size_bytes=found[0], etag=found[1], single_max_bytes=part
    )
    assert registry.read_blob(digest) == data


def test_move_keeps_the_content_and_removes_the_source(registry: Registry) -> None:
    registry.store.create("incoming/x/y", b"data")
    registry.store.move("incoming/x/y", "blobs/target")
    assert registry.store.get("blobs/target") == b"data"
    assert registry.store.head("incoming/x/y") is None
    with pytest.raises(ObjectNotFoundError):
        registry.store.move("incoming/x/y", "blobs/target")
