"""Every kind of store, each with direct access to its data."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.storage.base import ObjectStore
from controlplane.storage.factory import open_store
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.instrumented import MeteredStore
from controlplane.storage.memory import MemoryStore
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.s3server import S3Server

MIB = 1024 * 1024
PART_BYTES = 5 * MIB


@dataclass(frozen=True)
class Content:
    """A file with its expected content and digest."""

    path: Path
    data: bytes
    sha256: str

    @property
    def size_bytes(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Case:
    """A store under test.

    Attributes:
        kind: memory (inside the measuring wrapper, as in the application), filesystem, moto or ceph.
        store: The store.
        damage: Replaces the bytes of a key without using the store.
    """

    kind: str
    store: ObjectStore
    damage: Callable[[str, bytes], None]


def write_content(path: Path, size_bytes: int) -> Content:
    data = os.urandom(size_bytes)
    path.write_bytes(data)
    return Content(path, data, hashlib.sha256(data).hexdigest())


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Slightly more than 40 MiB: eight full parts and a short one."""
    return write_content(tmp_path_factory.mktemp("big") / "weights", 40 * MIB + 12345)


class Behind:
    """A bucket of an S3 server, with a plain client, for all tests of the run; each test has its own prefix."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.bucket = server.new_bucket()
        self.client = server.client()
        self._numbers = itertools.count(1)

    def new_prefix(self) -> str:
        return f"registry-{next(self._numbers)}"


@pytest.fixture(scope="session")
def behind_moto(moto: S3Server) -> Iterator[Behind]:
    behind = Behind(moto)
    yield behind
    behind.client.close()


@pytest.fixture(scope="session")
def behind_ceph(ceph: S3Server) -> Iterator[Behind]:
    behind = Behind(ceph)
    yield behind
    behind.client.close()


@pytest.fixture(
    params=["memory", "filesystem", "moto", pytest.param("ceph", marks=pytest.mark.ceph)],
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    kind: str = request.param
    if kind == "memory":
        memory = MemoryStore()
        yield Case(
            kind,
            MeteredStore(memory, lambda *_: None),
            lambda key, data: memory._objects.update({key: (data, datetime.now(UTC))}),
        )
        return
    if kind == "filesystem":
        root = tmp_path / "store"

        def overwrite(key: str, data: bytes) -> None:
            (root / key).chmod(0o644)
            (root / key).write_bytes(data)

        yield Case(kind, FilesystemStore(root), overwrite)
        return
    behind: Behind = request.getfixturevalue(f"behind_{kind}")
    prefix = behind.new_prefix()
    settings = behind.server.settings(behind.bucket, prefix, part_size_bytes=PART_BYTES, concurrency=4)
    store = open_store(settings, tmp_path)

    def put_behind(key: str, data: bytes) -> None:
        behind.client.put_object(Bucket=behind.bucket, Key=f"{prefix}/{key}", Body=data)

    yield Case(kind, store, put_behind)
    store.close()


@pytest.fixture
def store(case: Case) -> ObjectStore:
    return case.store


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of moto."""
    with fault_proxy(moto.endpoint_url) as running:
        yield running
