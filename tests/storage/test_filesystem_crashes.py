"""The folder store with several processes, killed processes and a full disk."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.errors import DigestMismatchError, InvalidInputError, StoreAccessError, StoreFullError
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.localfile import remove_abandoned
from tests.storage.conftest import MIB, write_content
from tests.support.processes import tied_to_us

ROOT = Path(__file__).parents[2]
ROUNDS = 40

RACER = """
import json, sys, time
from pathlib import Path
from controlplane.errors import ObjectExistsError
from controlplane.storage.filesystem import FilesystemStore
store = FilesystemStore(Path(sys.argv[1]))
print("ready", flush=True)
start = float(sys.stdin.readline())
won = []
for number in range(int(sys.argv[2])):
    while time.time() < start + number * 0.02:
        pass
    try:
        store.create(f"race/{number}", sys.argv[3].encode())
        won.append(number)
    except ObjectExistsError:
        pass
print(json.dumps(won), flush=True)
"""

# Stops at a chosen call of a chosen function, reports it, and waits to be killed.
HELD = """
import os, sys, time
from pathlib import Path
from controlplane.storage.filesystem import FilesystemStore
what, name, number = sys.argv[2], sys.argv[3], int(sys.argv[4])
real, calls = getattr(os, name), 0
def held(*arguments, **options):
    global calls
    calls += 1
    if calls == number:
        print("held", flush=True)
        time.sleep(600)
    return real(*arguments, **options)
store = FilesystemStore(Path(sys.argv[1]))
setattr(os, name, held)
if what == "create":
    store.create("chains/a/1.json", b"x" * 100_000)
elif what == "put_file":
    store.put_file("blobs/a/b", Path(sys.argv[5]), sha256=sys.argv[6])
else:
    store.get_file("blobs/a/b", Path(sys.argv[5]) / "out", size_bytes=int(sys.argv[7]), sha256=sys.argv[6])
print("done", flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tied_to_us([sys.executable, "-c", script, *map(str, arguments)]),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()  # SIGKILL: the process cannot clean up
    process.communicate()


def run_until_held(script: str, *arguments: object) -> subprocess.Popen[str]:
    process = start(script, *arguments)
    if read_line(process) != "held":
        end(process)
        pytest.fail("the process ended before the call at which it was to be held")
    return process


def test_one_of_several_processes_wins_a_create(tmp_path: Path) -> None:
    processes = [start(RACER, tmp_path, ROUNDS, name) for name in "abcd"]
    try:
        assert [read_line(process) for process in processes] == ["ready"] * len(processes)
        for process in processes:
            assert process.stdin
            process.stdin.write(f"{time.time() + 0.2}\n")
            process.stdin.flush()
        won = [json.loads(read_line(process)) for process in processes]
    finally:
        for process in processes:
            end(process)
    assert sorted(number for numbers in won for number in numbers) == list(range(ROUNDS))
    store = FilesystemStore(tmp_path)
    for name, numbers in zip("abcd", won, strict=True):
        assert all(store.get(f"race/{number}") == name.encode() for number in numbers)


@pytest.mark.parametrize(
    ("call", "number", "there"),
    [("pwrite", 1, False), ("fsync", 1, False), ("link", 1, False), ("fsync", 2, True), ("fsync", 3, True)],
)
def test_killed_create_is_complete_or_absent(tmp_path: Path, call: str, number: int, there: bool) -> None:
    end(run_until_held(HELD, tmp_path, "create", call, number))
    store = FilesystemStore(tmp_path)
    found = list(store.list(""))
    assert [(info.key, info.size_bytes) for info in found] == ([("chains/a/1.json", 100_000)] if there else [])
    assert list((tmp_path / ".incomplete").iterdir()) == []
    if not there:
        store.create("chains/a/1.json", b"another")


class Flushed:
    """Recorder of the folders at and below ``folder`` that were flushed to the disk since the last `take`.

    It ignores other folders, which belong to control planes of other tests in this process.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._real = os.fsync
        self._folder = folder
        self._folders: list[Path] = []
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir() and path.is_relative_to(self._folder):
            self._folders.append(path)
        self._real(fd)

    def take(self) -> list[Path]:
        found = list(self._folders)
        self._folders.clear()
        return found


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Flushed:
    return Flushed(monkeypatch, tmp_path)


def test_folder_and_its_parents_are_flushed_once(tmp_path: Path, flushed: Flushed) -> None:
    root = tmp_path / "new" / "store"
    first, second = FilesystemStore(root), FilesystemStore(root)
    first.create("chains/a/1", b"")
    assert flushed.take()[:5] == [root / "chains/a", root / "chains", root, root.parent, tmp_path]
    first.create("chains/a/2", b"")
    assert flushed.take() == [root / "chains/a"]
    first.create("chains/b/1", b"")
    assert flushed.take() == [root / "chains/b", root / "chains"]
    # The second store cannot know that the first one flushed the folders, because it may have crashed before.
    second.create("chains/a/3", b"")
    assert flushed.take()[:5] == [root / "chains/a", root / "chains", root, root.parent, tmp_path]
    first.close()
    second.close()


def test_folder_recreated_by_a_killed_process_is_flushed_again(tmp_path: Path, flushed: Flushed) -> None:
    root = tmp_path / "store"
    store = FilesystemStore(root)
    store.create("chains/a/0.json", b"")
    store.create("chains/b/0.json", b"")
    # The process is killed after it published its object, but before it flushed its new folders to the disk. On ext4,
    # the new folder would get the inode number of the removed one if the store did not hold that inode.
    FilesystemStore(root).delete("chains/a/0.json")
    assert not (root / "chains/a").exists()
    end(run_until_held(HELD, root, "create", "fsync", 2))
    flushed.take()
    store.create("chains/a/2.json", b"")
    assert flushed.take() == [root / "chains/a", root / "chains"]
    # The same with all parent folders.
    FilesystemStore(root).delete("chains/b/0.json")
    for name in ("1.json", "2.json"):
        FilesystemStore(root).delete(f"chains/a/{name}")
    assert not (root / "chains").exists()
    end(run_until_held(HELD, root, "create", "fsync", 2))
    flushed.take()
    store.create("chains/a/2.json", b"")
    assert flushed.take() == [root / "chains/a", root / "chains", root]
    store.close()


def test_remembered_folders_do_not_use_up_the_descriptors(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = FilesystemStore(tmp_path)
    for number in range(100):
        store.create(f"chains/{number}/1", b"")
        store.delete(f"chains/{number}/1")
        store.create(f"chains/{number}/2", b"")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 64
    store.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize(("call", "number"), [("pwrite", 1), ("pwrite", 3), ("fsync", 1)])
def test_file_of_a_killed_writer_does_not_exist(tmp_path: Path, call: str, number: int) -> None:
    content = write_content(tmp_path / "in", 16 * MIB)
    root = tmp_path / "store"
    process = run_until_held(HELD, root, "put_file", call, number, content.path, content.sha256)
    # While the writer runs, other processes do not remove its file as a leftover.
    store = FilesystemStore(root)
    assert len(list((root / ".incomplete").iterdir())) == 1
    end(process)
    assert list(store.list("")) == []
    assert len(list((root / ".incomplete").iterdir())) == 1
    store = FilesystemStore(root)
    assert list((root / ".incomplete").iterdir()) == []
    store.put_file("blobs/a/b", content.path, sha256=content.sha256)
    assert store.get("blobs/a/b") == content.data


def test_leftovers_of_a_killed_download_can_be_removed(tmp_path: Path) -> None:
    content = write_content(tmp_path / "in", 16 * MIB)
    store = FilesystemStore(tmp_path / "store")
    store.put_file("blobs/a/b", content.path, sha256=content.sha256)
    target = tmp_path / "cache"
    target.mkdir()
    arguments = (target, content.sha256, content.size_bytes)
    process = run_until_held(HELD, tmp_path / "store", "get_file", "preadv", 2, *arguments)
    assert remove_abandoned(target) == 0
    assert len(list(target.iterdir())) == 1
    end(process)
    assert remove_abandoned(target) == 1
    assert list(target.iterdir()) == []
    assert store.get("blobs/a/b") == content.data


def test_objects_are_read_only_and_no_reader_gets_the_stores_file(tmp_path: Path) -> None:
    content = write_content(tmp_path / "in", MIB)
    store = FilesystemStore(tmp_path / "store")
    store.put_file("blobs/a", content.path, sha256=content.sha256)
    out = tmp_path / "out"
    for _ in range(2):
        store.get_file("blobs/a", out, size_bytes=content.size_bytes, sha256=content.sha256)
        stored = tmp_path / "store" / "blobs" / "a"
        assert stored.stat().st_nlink == 1
        assert stored.stat().st_mode & 0o777 == 0o444
        out.write_bytes(b"a reader writes to its copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "store"]
    content.path.write_bytes(b"the publisher goes on working with its file")
    assert store.get("blobs/a") == content.data


@pytest.fixture
def cloning_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system whose files can share blocks (XFS, in a file)."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root and mkfs.xfs")
    image, place = tmp_path / "disk", tmp_path / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run(["mkfs.xfs", "-q", image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"XFS cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_copies_take_no_space_where_files_can_share_blocks(cloning_folder: Path) -> None:
    content = write_content(cloning_folder / "in", 16 * MIB)
    store = FilesystemStore(cloning_folder / "store")
    free = shutil.disk_usage(cloning_folder).free
    store.put_file("blobs/a", content.path, sha256=content.sha256)
    out = cloning_folder / "out"
    store.get_file("blobs/a", out, size_bytes=content.size_bytes, sha256=content.sha256)
    assert free - shutil.disk_usage(cloning_folder).free < 2 * MIB
    assert out.read_bytes() == content.data
    with out.open("r+b") as file:
        file.write(b"a reader writes to its copy")
    assert store.get("blobs/a") == content.data
    content.path.write_bytes(b"cut")
    with pytest.raises(DigestMismatchError):
        store.put_file("blobs/b", content.path, sha256=content.sha256)
    assert store.head("blobs/b") is None


def test_a_key_below_another_is_refused(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    store.create("a/b", b"")
    with pytest.raises(InvalidInputError):
        store.create("a/b/c", b"")
    with pytest.raises(InvalidInputError):
        store.create("a", b"")
    content = write_content(tmp_path / "in", 10)
    with pytest.raises(InvalidInputError):
        store.put_file("a", content.path, sha256=content.sha256)
    with pytest.raises(InvalidInputError):
        store.put_file("a/b/c", content.path, sha256=content.sha256)


def test_concurrent_delete_and_create_lose_nothing(tmp_path: Path) -> None:
    """A delete removes empty folders, but a create that has just made such a folder must not fail."""
    script = """
import sys
from pathlib import Path
from controlplane.storage.filesystem import FilesystemStore
store = FilesystemStore(Path(sys.argv[1]))
for number in range(300):
    store.create(f"a/b/c/{sys.argv[2]}-{number}", b"x")
    store.delete(f"a/b/c/{sys.argv[2]}-{number}")
store.create(f"a/b/c/{sys.argv[2]}", b"x")
"""
    processes = [start(script, tmp_path, name) for name in "xyz"]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [info.key for info in FilesystemStore(tmp_path).list("")] == ["a/b/c/x", "a/b/c/y", "a/b/c/z"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_reported_and_leaves_no_files(small_disk: Path, tmp_path: Path) -> None:
    content = write_content(tmp_path / "in", 6 * MIB)
    store = FilesystemStore(small_disk / "store")
    with pytest.raises(StoreFullError) as caught:
        store.put_file("blobs/a", content.path, sha256=content.sha256)
    assert "No space left" in caught.value.message
    with pytest.raises(StoreFullError):
        store.create("chains/a", content.data)
    elsewhere = FilesystemStore(tmp_path / "store")
    elsewhere.put_file("blobs/a", content.path, sha256=content.sha256)
    with pytest.raises(StoreFullError):
        elsewhere.get_file("blobs/a", small_disk / "out", size_bytes=content.size_bytes, sha256=content.sha256)
    assert [path.name for path in small_disk.rglob("*")] == ["store", ".incomplete"]
    # An object that fits can be stored again.
    store.create("chains/a", content.data[:MIB])
    store.close()


def test_move_across_file_systems_copies(small_disk: Path, tmp_path: Path) -> None:
    content = write_content(tmp_path / "in", MIB)
    store = FilesystemStore(tmp_path / "store")
    store.put_file("blobs/a", content.path, sha256=content.sha256)
    store.get_file("blobs/a", small_disk / "out", size_bytes=MIB, sha256=content.sha256)
    assert hashlib.sha256((small_disk / "out").read_bytes()).hexdigest() == content.sha256


def test_unwritable_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreAccessError) as caught:
        FilesystemStore(Path("/proc/1/no-such-store") if os.geteuid() else Path("/sys/kernel/no-such-store"))
    assert "no-such-store" in caught.value.message
