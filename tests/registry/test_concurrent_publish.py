"""Concurrent publishers of one model: no version is lost, and every version has its own number."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.s3.store import S3Store
from tests.support.registries import new_registry, publish, require_readable

pytestmark = pytest.mark.slow

PUBLISHERS = 8
EACH = 3


# Without moto: under load, two of its writers may create the same key.
@pytest.fixture(params=["memory", "filesystem", pytest.param("ceph", marks=pytest.mark.ceph)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    from controlplane.storage.memory import MemoryStore

    if request.param == "memory":
        made: ObjectStore = MemoryStore()
    elif request.param == "filesystem":
        made = FilesystemStore(tmp_path / "store")
    else:
        server = request.getfixturevalue(request.param)
        bucket = server.new_bucket()
        made = S3Store(bucket, "registry", server.settings(bucket))
    yield made
    made.close()


def require_all_there(store: ObjectStore, tmp_path: Path, count: int) -> None:
    registry = new_registry(store, tmp_path / "reader")
    head = registry.get_model("m")
    assert [entry.number for entry in head.live_versions] == list(range(1, count + 1))
    contents = set()
    for entry in head.live_versions:
        (file,) = registry.manifest("m", entry.number).files
        contents.add(registry.read_blob(file.sha256))
    assert len(contents) == count  # no publisher's content replaced another's
    assert len(registry.history("m")) == count
    assert list(store.list("publishing/")) == []


def test_threads_publish_concurrently(any_store: ObjectStore, tmp_path: Path) -> None:
    barrier = threading.Barrier(PUBLISHERS)

    def run(name: int) -> list[int]:
        registry = new_registry(any_store, tmp_path / f"cache{name}")  # a separate instance
        barrier.wait()
        return [
            publish(registry, tmp_path / f"p{name}", f"{name}.{turn}".encode(), aliases=["newest"]).number
            for turn in range(EACH)
        ]

    with ThreadPoolExecutor(PUBLISHERS) as pool:
        numbers = sorted(number for published in pool.map(run, range(PUBLISHERS)) for number in published)
    assert numbers == list(range(1, PUBLISHERS * EACH + 1))
    require_all_there(any_store, tmp_path, PUBLISHERS * EACH)
    assert new_registry(any_store, tmp_path / "x").get_model("m").aliases == {"newest": PUBLISHERS * EACH}


def test_threads_of_one_registry_publish_concurrently(any_store: ObjectStore, tmp_path: Path) -> None:
    registry = new_registry(any_store, tmp_path / "cache", head_max_age_seconds=60)

    def run(name: int) -> int:
        return publish(registry, tmp_path / f"p{name}", str(name).encode()).number

    with ThreadPoolExecutor(PUBLISHERS) as pool:
        assert sorted(pool.map(run, range(PUBLISHERS))) == list(range(1, PUBLISHERS + 1))
    require_all_there(any_store, tmp_path, PUBLISHERS)


_SCRIPT = """
import sys
from pathlib import Path
from controlplane.storage.filesystem import FilesystemStore
from tests.support.registries import new_registry, publish

folder, name, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
registry = new_registry(FilesystemStore(folder / "store"), folder / "cache")
print("ready", flush=True)
sys.stdin.readline()
for turn in range(turns):
    print(publish(registry, folder / name, f"{name}.{turn}".encode()).number, flush=True)
"""


def test_processes_publish_concurrently_to_one_folder(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(tmp_path), f"p{number}", str(EACH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    numbers = [int(number) for process in processes for number in process.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 4 * EACH + 1))
    store = FilesystemStore(tmp_path / "store")
    require_all_there(store, tmp_path, 4 * EACH)
    require_readable(new_registry(store, tmp_path / "cache"), "m")
