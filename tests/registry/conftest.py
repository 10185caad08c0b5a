import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from controlplane.storage.factory import open_store
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.memory import MemoryStore
from tests.support.registries import new_registry
from tests.support.s3server import S3Server

NewRegistry = Callable[..., Registry]


@pytest.fixture(params=["memory", "filesystem"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    made: ObjectStore = MemoryStore() if request.param == "memory" else FilesystemStore(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture(scope="session")
def moto_bucket(moto: S3Server) -> tuple[S3Server, str]:
    return moto, moto.new_bucket()


@pytest.fixture(params=["filesystem", "moto"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """A store that outlives a process: a folder, or a prefix of an S3 bucket."""
    if request.param == "filesystem":
        made: ObjectStore = FilesystemStore(tmp_path / "bucket")
    else:
        server, name = request.getfixturevalue("moto_bucket")
        made = open_store(server.settings(name, f"registry-{uuid.uuid4().hex}"), tmp_path)
    yield made
    made.close()


@pytest.fixture
def registry(store: ObjectStore, tmp_path: Path) -> Registry:
    return new_registry(store, tmp_path / "cache")
