from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.memory import MemoryStore
from tests.support.registries import new_registry

NewRegistry = Callable[..., Registry]


@pytest.fixture(params=["memory", "filesystem"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    made: ObjectStore = MemoryStore() if request.param == "memory" else FilesystemStore(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture
def registry(store: ObjectStore, tmp_path: Path) -> Registry:
    return new_registry(store, tmp_path / "cache")
