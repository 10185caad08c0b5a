import hashlib
import os
import resource
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.domain.manifest import FileEntry
from controlplane.errors import DigestMismatchError, NotFoundError
from controlplane.registry.blobs import Blobs, blob_key
from controlplane.registry.cache import BlobCache
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore

LARGE = 1 << 30


def put(store: MemoryStore | FilesystemStore | HookedStore, content: bytes) -> FileEntry:
    digest = Blobs(store).put_bytes(content)
    return FileEntry(path="model.onnx", sha256=digest, size_bytes=len(content))


def used_before(path: Path, seconds: float) -> None:
    """Set the last use of a file to ``seconds`` ago."""
    now = path.stat()
    os.utime(path, ns=(now.st_atime_ns - int(seconds * 1e9), now.st_mtime_ns))


def test_a_blob_is_downloaded_once_and_read_only(tmp_path: Path) -> None:
    store = HookedStore(MemoryStore())
    entry = put(store, b"content")
    cache = BlobCache(tmp_path, LARGE)
    assert cache.get(entry.sha256) is None
    moved: list[int] = []
    path = cache.fetch(store, entry, moved.append)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert cache.fetch(store, entry, moved.append) == path == cache.get(entry.sha256)
    assert [operation for operation, _ in store.calls].count("get_file") == 1
    assert sum(moved) == 14  # progress is also reported if no bytes were moved
    assert cache.used_bytes() == 7


def test_many_threads_and_caches_cause_one_download(tmp_path: Path) -> None:
    all_asked = threading.Barrier(9)
    store = HookedStore(MemoryStore())
    entry = put(store, b"x" * 1000)

    def fetch(number: int) -> bytes:
        cache = shared if number % 2 else BlobCache(tmp_path, LARGE)  # like another process
        all_asked.wait()
        return cache.fetch(store, entry).read_bytes()

    shared = BlobCache(tmp_path, LARGE)
    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(fetch, number) for number in range(8)]
        all_asked.wait()
        assert all(reader.result() == b"x" * 1000 for reader in readers)
    assert [operation for operation, _ in store.calls].count("get_file") == 1
    assert list((tmp_path / "locks").iterdir()) == []


_FETCH = """
import sys
from pathlib import Path
from controlplane.domain.manifest import FileEntry
from controlplane.registry.cache import BlobCache
from controlplane.storage.filesystem import FilesystemStore
from tests.support.hooked_store import HookedStore

store = HookedStore(FilesystemStore(Path(sys.argv[1])))
cache = BlobCache(Path(sys.argv[2]), 1 << 30)
entry = FileEntry(path="m", sha256=sys.argv[3], size_bytes=int(sys.argv[4]))
print("ready", flush=True)
sys.stdin.readline()
cache.fetch(store, entry).read_bytes()
print(len(store.calls))
"""


def test_processes_share_one_download(tmp_path: Path) -> None:
    entry = put(FilesystemStore(tmp_path / "store"), b"y" * 5_000_000)
    command = [sys.executable, "-c", _FETCH, str(tmp_path / "store"), str(tmp_path / "cache"), entry.sha256, "5000000"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    downloads = [int(process.communicate("go\n")[0]) for process in processes]
    assert sorted(downloads) == [0, 0, 1]


# A store on the same file system


def test_cache_never_holds_the_stores_own_file(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path / "store")
    entry = put(store, b"content")
    cache = BlobCache(tmp_path / "cache", LARGE)
    path = cache.fetch(store, entry)
    stored = tmp_path / "store" / blob_key(entry.sha256)
    assert not path.samefile(stored)
    assert stored.stat().st_nlink == 1
    path.chmod(0o644)
    path.write_bytes(b"CONTENT")
    assert stored.read_bytes() == b"content"
    assert cache.fetch(store, entry).read_bytes() == b"content"


# Damage


def test_a_damaged_blob_is_fetched_again(tmp_path: Path) -> None:
    store = MemoryStore()
    entry = put(store, b"content")
    path = BlobCache(tmp_path, LARGE).fetch(store, entry)
    path.chmod(0o644)
    path.write_bytes(b"CONTENT")
    cache = BlobCache(tmp_path, LARGE)  # a new process trusts only blobs that it has hashed
    assert cache.get(entry.sha256) is None
    assert cache.fetch(store, entry).read_bytes() == b"content"


def test_damage_by_another_process_is_found_by_the_file_stamp(tmp_path: Path) -> None:
    store = MemoryStore()
    entry = put(store, b"content")
    cache = BlobCache(tmp_path, LARGE)
    path = cache.fetch(store, entry)
    path.chmod(0o644)
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(0, 1))
    assert cache.fetch(store, entry).read_bytes() == b"content"


def test_unchanged_blob_is_not_hashed_again_by_this_or_another_process(tmp_path: Path) -> None:
    store = MemoryStore()
    entry = put(store, b"content")
    first = BlobCache(tmp_path, LARGE)
    path = first.fetch(store, entry)  # hashed while it was downloaded
    second = BlobCache(tmp_path, LARGE)
    staged = tmp_path / "staged"
    for cache in (first, second):
        for _ in range(3):
            cache.fetch(store, entry)
        with cache.checked.unchanged(path):
            staged.hardlink_to(path)
        cache.checked.unlink(staged)
    assert (first.checked.hashed_bytes, second.checked.hashed_bytes) == (0, 0)
    path.chmod(0o644)
    assert second.get(entry.sha256) == path
    assert second.checked.hashed_bytes == 7  # it hashes again after any change that the cache did not make


def test_staged_blob_is_not_touched(tmp_path: Path) -> None:
    """Triton reloads a version if the change time of its files differs."""
    store = MemoryStore()
    entry = put(store, b"content")
    cache = BlobCache(tmp_path / "cache", LARGE)
    path = cache.fetch(store, entry)
    with cache.checked.unchanged(path):
        (tmp_path / "staged").hardlink_to(path)
    changed = path.stat().st_ctime_ns
    cache.fetch(store, entry)
    assert path.stat().st_ctime_ns == changed


def test_lost_or_damaged_blob_in_the_store_is_reported(tmp_path: Path) -> None:
    store = MemoryStore()
    cache = BlobCache(tmp_path, LARGE)
    missing = FileEntry(path="model.onnx", sha256="0" * 64, size_bytes=1)
    with pytest.raises(NotFoundError, match=r"model\.onnx"):
        cache.fetch(store, missing)
    store.create(blob_key("1" * 64), b"x")
    with pytest.raises(DigestMismatchError):
        cache.fetch(store, missing.model_copy(update={"sha256": "1" * 64}))
    assert cache.get("1" * 64) is None


# The size limit


def test_least_recently_used_blob_is_evicted_first(tmp_path: Path) -> None:
    store = MemoryStore()
    cache = BlobCache(tmp_path, 30)
    entries = [put(store, bytes([number]) * 10) for number in range(4)]
    for age, entry in zip((300, 200, 100), entries[:3], strict=True):
        used_before(cache.fetch(store, entry), age)
    cache.fetch(store, entries[0])  # now the most recently used
    cache.fetch(store, entries[3])
    assert [cache.get(entry.sha256) is not None for entry in entries] == [True, False, True, True]
    assert cache.used_bytes() == 30


def test_pinned_blob_is_not_evicted(tmp_path: Path) -> None:
    store = MemoryStore()
    cache, other_process = BlobCache(tmp_path, 10), BlobCache(tmp_path, 10)
    pinned, second, third = (put(store, bytes([number]) * 10) for number in range(3))
    with cache.pin([pinned.sha256]):
        path = cache.fetch(store, pinned)
        used_before(path, 1000)
        with other_process.pin([pinned.sha256]):
            pass  # the end of another pin does not end this one
        other_process.fetch(store, second)
        assert path.exists()
    other_process.fetch(store, third)
    assert not path.exists()
    assert list((tmp_path / "locks").iterdir()) == []


_PIN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from controlplane.registry.cache import BlobCache

with BlobCache(Path(sys.argv[1]), 10).pin(sys.argv[2:]):
    print("pinned", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_pins_of_a_process_last_until_it_ends(tmp_path: Path) -> None:
    store = MemoryStore()
    cache = BlobCache(tmp_path, 10)
    pinned, second, third = (put(store, bytes([number]) * 10) for number in range(3))
    process = subprocess.Popen(
        [sys.executable, "-c", _PIN_AND_DIE, str(tmp_path), pinned.sha256],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "pinned\n"
    used_before(cache.fetch(store, pinned), 1000)
    cache.fetch(store, second)
    assert cache.get(pinned.sha256) is not None
    process.communicate("die\n")
    used_before(cache.path_of(pinned.sha256), 1000)
    cache.fetch(store, third)
    assert cache.get(pinned.sha256) is None
    assert list((tmp_path / "locks").iterdir()) == []


def test_more_blobs_can_be_pinned_than_files_can_be_open(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 10)
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Files that other tests have open also count.
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 200, hard))
    try:
        with cache.pin([f"{number:064x}" for number in range(1000)]):
            assert len(list((tmp_path / "locks").iterdir())) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def test_staged_blob_is_kept_and_does_not_count(tmp_path: Path) -> None:
    store = MemoryStore()
    cache = BlobCache(tmp_path / "cache", 10)
    path = cache.fetch(store, put(store, b"a" * 10))
    staged = tmp_path / "model.onnx"
    staged.hardlink_to(path)
    second = cache.fetch(store, put(store, b"b" * 10))
    assert path.exists()
    assert second.exists()
    assert cache.used_bytes() == 10
    staged.unlink()
    used_before(path, 100)
    cache.fetch(store, put(store, b"c"))
    assert not path.exists()


def test_blob_larger_than_the_cache_limit_is_fetched(tmp_path: Path) -> None:
    store = MemoryStore()
    assert BlobCache(tmp_path, 5).fetch(store, put(store, b"x" * 10)).exists()


def test_leftovers_of_a_killed_download_are_removed(tmp_path: Path) -> None:
    store = MemoryStore()
    cache = BlobCache(tmp_path, LARGE)
    entry = put(store, b"content")
    folder = cache.path_of(entry.sha256).parent
    folder.mkdir()
    (folder / ".abc.incomplete").write_bytes(b"cont")
    cache.fetch(store, entry)
    assert [path.name for path in folder.iterdir()] == [entry.sha256]


def test_threads_keep_pinned_blobs_when_more_than_fits_is_fetched(tmp_path: Path) -> None:
    store = MemoryStore()
    entries = [put(store, bytes([number]) * 100) for number in range(12)]

    def use(worker: int) -> None:
        cache = BlobCache(tmp_path, 300)
        for turn in range(20):
            mine = [entries[(worker * 5 + turn * 7 + step) % 12] for step in range(2)]
            with cache.pin([entry.sha256 for entry in mine]):
                paths = [cache.fetch(store, entry) for entry in mine]
                for entry, path in zip(mine, paths, strict=True):
                    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(6)))


# Adopting


def test_file_moved_into_the_cache_is_trusted_after_hashing(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", LARGE)
    good, bad, again = (tmp_path / name for name in ("good", "bad", "again"))
    digest = hashlib.sha256(b"good").hexdigest()
    good.write_bytes(b"good")
    path = cache.adopt(good, digest)
    assert not good.exists()
    assert cache.get(digest) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    again.write_bytes(b"good")
    assert cache.adopt(again, digest) == path
    assert not again.exists()
    bad.write_bytes(b"bad")
    cache.adopt(bad, "2" * 64)
    assert cache.get("2" * 64) is None
