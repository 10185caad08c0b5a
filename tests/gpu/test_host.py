"""The host's memory: control groups of both versions as trees of files, and a real one."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from controlplane.gpu.base import DeviceKind
from controlplane.gpu.cgroup import memory_levels
from controlplane.gpu.host import HostSource, resident_bytes

MIB = 1 << 20
V2_MOUNT = "29 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"""
V1_UNLIMITED = 9223372036854771712


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, object]) -> Path:
    """Write what a process finds: its groups, the mounts, and files below ``/sys/fs/cgroup``."""
    process = root / "proc/self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(cgroup + "\n")
    (process / "mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mounts}\n")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def group2(path: str, limit: object, current: int, *, high: object = "max", **stat: int) -> dict[str, object]:
    lines = "\n".join(f"{name} {value}" for name, value in stat.items())
    prefix = f"{path}/" if path else ""
    return {
        f"{prefix}memory.max": limit,
        f"{prefix}memory.high": high,
        f"{prefix}memory.current": current,
        f"{prefix}memory.stat": lines,
    }


def group1(path: str, limit: int, usage: int, **stat: int) -> dict[str, object]:
    lines = "\n".join(f"{name} {value}" for name, value in stat.items())
    return {
        f"memory/{path}memory.limit_in_bytes": limit,
        f"memory/{path}memory.usage_in_bytes": usage,
        f"memory/{path}memory.use_hierarchy": 1,
        f"memory/{path}memory.stat": lines,
    }


def figures(root: Path) -> list[tuple[int, int]]:
    """Limit and use in MiB, the innermost group first."""
    return [(level.limit_bytes // MIB, level.used_bytes // MIB) for level in memory_levels(root)]


def test_version_2_counts_every_group_up_to_the_root(tmp_path: Path) -> None:
    files = {
        **group2("apps.slice/one.scope", 900 * MIB, 100 * MIB, inactive_file=20 * MIB, active_file=30 * MIB),
        **group2("apps.slice", 800 * MIB, 500 * MIB, slab_reclaimable=50 * MIB),
    }
    root = tree(tmp_path, "0::/apps.slice/one.scope", V2_MOUNT.format(root="/"), files)
    assert figures(root) == [(900, 50), (800, 450)]


def test_version_2_counts_shared_memory_as_used(tmp_path: Path) -> None:
    stat = {"file": 90 * MIB, "shmem": 80 * MIB, "inactive_file": 10 * MIB, "active_file": 0}
    root = tree(tmp_path, "0::/", V2_MOUNT.format(root="/"), group2("", 200 * MIB, 100 * MIB, **stat))
    assert figures(root) == [(200, 90)]


def test_version_2_high_mark_is_a_limit(tmp_path: Path) -> None:
    files = group2("a", "max", 10 * MIB, high=64 * MIB)
    assert figures(tree(tmp_path, "0::/a", V2_MOUNT.format(root="/"), files)) == [(64, 10)]


def test_version_2_group_without_limit_is_ignored(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/a", V2_MOUNT.format(root="/"), group2("a", "max", 10 * MIB))
    assert figures(root) == []


@pytest.mark.parametrize(
    ("cgroup", "mount_root"),
    [
        ("0::/", "/"),  # a namespace of its own, as Docker and Kubernetes do under version 2
        ("0::/system.slice/docker-1.scope", "/system.slice/docker-1.scope"),  # the machine's namespace
        ("0::/../../other", "/"),  # seen from another namespace
        ("0::/system.slice/docker-1.scope", "/../.."),
    ],
)
def test_version_2_finds_limit_in_a_container(tmp_path: Path, cgroup: str, mount_root: str) -> None:
    files = group2("", 512 * MIB, 100 * MIB)
    assert figures(tree(tmp_path, cgroup, V2_MOUNT.format(root=mount_root), files)) == [(512, 100)]


def test_version_2_finds_group_below_the_mounted_one(tmp_path: Path) -> None:
    files = {**group2("", 512 * MIB, 100 * MIB), **group2("worker", 256 * MIB, 7 * MIB)}
    root = tree(tmp_path, "0::/pod/worker", V2_MOUNT.format(root="/pod"), files)
    assert figures(root) == [(256, 7), (512, 100)]


def test_version_1_counts_every_group_up_to_the_root(tmp_path: Path) -> None:
    files = {
        **group1("a/b/", 300 * MIB, 100 * MIB, cache=1, total_inactive_file=10 * MIB, total_active_file=20 * MIB),
        **group1("a/", 200 * MIB, 150 * MIB),
        **group1("", V1_UNLIMITED, 900 * MIB),
    }
    root = tree(tmp_path, "4:memory:/a/b\n3:cpu,cpuacct:/x\n0::/", V1_MOUNTS.format(root="/"), files)
    assert figures(root) == [(300, 70), (200, 150), (V1_UNLIMITED // MIB, 900)]


def test_version_1_finds_limit_in_a_container(tmp_path: Path) -> None:
    files = group1("", 100 * MIB, 10 * MIB)
    root = tree(tmp_path, "4:memory:/docker/1", V1_MOUNTS.format(root="/docker/1"), files)
    assert figures(root) == [(100, 10)]


def test_version_1_parent_without_hierarchy_is_ignored(tmp_path: Path) -> None:
    files = {**group1("a/", 300 * MIB, 100 * MIB), **group1("", 200 * MIB, 1), "memory/memory.use_hierarchy": 0}
    assert figures(tree(tmp_path, "4:memory:/a", V1_MOUNTS.format(root="/"), files)) == [(300, 100)]


def test_mount_point_may_contain_a_space(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", r"29 23 0:26 / /sys/fs/cgroup/odd\040one rw - cgroup2 cgroup2 rw", {})
    folder = root / "sys/fs/cgroup/odd one"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("1048576\n")
    (folder / "memory.current").write_text("0\n")
    assert figures(root) == [(1, 0)]


@pytest.mark.parametrize("kept", ["proc/self/cgroup", "proc/self/mountinfo", "sys/fs/cgroup/memory.max", ""])
def test_missing_files_mean_no_limit(tmp_path: Path, kept: str) -> None:
    root = tree(tmp_path, "0::/", V2_MOUNT.format(root="/"), group2("", 512 * MIB, 100 * MIB))
    for path in [path for path in root.rglob("*") if path.is_file() and str(path.relative_to(root)) != kept]:
        path.unlink()
    assert figures(root) == []
    (reading,) = HostSource(root=root).read()
    assert reading.total_bytes == psutil.virtual_memory().total


def test_limit_of_container_replaces_size_of_machine(tmp_path: Path) -> None:
    files = group2("", 64 * MIB, 20 * MIB, inactive_file=4 * MIB)
    root = tree(tmp_path, "0::/", V2_MOUNT.format(root="/"), files)
    (reading,) = HostSource(root=root).read()
    assert (reading.name, reading.kind, reading.device_id, reading.error) == ("host", DeviceKind.HOST, None, "")
    assert (reading.total_bytes, reading.used_bytes, reading.free_bytes) == (64 * MIB, 16 * MIB, 48 * MIB)
    assert reading.processes is None


def test_utilisation_covers_time_since_last_reading() -> None:
    source = HostSource()
    (reading,) = source.read()
    while reading.utilisation is None:  # it takes half a core-second to tell
        sum(range(100_000))
        (reading,) = source.read()
    assert 0 < reading.utilisation <= 1
    (again,) = source.read()
    assert again.utilisation == reading.utilisation, "too soon for another figure"


def test_full_parent_group_reduces_free_memory(tmp_path: Path) -> None:
    files = {**group2("pod/one", 64 * MIB, 1 * MIB), **group2("pod", 100 * MIB, 90 * MIB)}
    (reading,) = HostSource(root=tree(tmp_path, "0::/pod/one", V2_MOUNT.format(root="/"), files)).read()
    assert (reading.total_bytes, reading.free_bytes) == (64 * MIB, 10 * MIB)


def test_limit_above_memory_of_machine_is_ignored(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    files = group2("", 4 * machine, 0)
    (reading,) = HostSource(root=tree(tmp_path, "0::/", V2_MOUNT.format(root="/"), files)).read()
    assert reading.total_bytes == machine
    assert reading.used_bytes is not None
    assert 0 < reading.used_bytes < machine


def test_server_in_another_container_does_not_get_our_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", V2_MOUNT.format(root="/"), group2("", 64 * MIB, 20 * MIB))
    (reading,) = HostSource(contained=False, root=root).read()
    assert reading.total_bytes == psutil.virtual_memory().total


def test_process_memory_is_read_from_operating_system() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = f"data = b'x' * {64 * MIB}; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (reading,) = HostSource(lambda: [child.pid, gone.pid]).read()
        assert reading.processes is not None
        assert list(reading.processes) == [child.pid], "a process that ended has no memory"
        assert 64 * MIB < reading.processes[child.pid] < 128 * MIB
        child.communicate(b"\n")
    assert resident_bytes([child.pid]) == {}


PROGRAM = """
import json, os, sys
from pathlib import Path
from controlplane.gpu.host import HostSource
def tell():
    (reading,) = HostSource().read()
    print(json.dumps([reading.total_bytes, reading.used_bytes]), flush=True)
sys.stdin.readline()                      # until we were moved into the group
tell()
data = b"x" * (64 << 20)                  # memory
tell()
Path(sys.argv[1]).write_bytes(data)       # page cache, on its way to the disk and then clean
with open(sys.argv[1]) as file: os.fsync(file.fileno())
tell()
"""


@contextmanager
def real_group(limit_bytes: int) -> Iterator[Path]:
    """Make a control group with a memory limit, where this machine lets us."""
    name = f"tritonctl-test-{uuid.uuid4().hex[:8]}"
    if os.geteuid() != 0:
        pytest.skip("only root may make control groups")
    base, limit = Path("/sys/fs/cgroup"), "memory.max"
    if (base / "memory/memory.limit_in_bytes").exists():
        base, limit = base / "memory", "memory.limit_in_bytes"
    elif "memory" not in (base / "cgroup.subtree_control").read_text().split():
        pytest.skip("the memory controller is not handed down here")
    folder = base / name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        (folder / limit).write_text(str(limit_bytes))
        yield folder
    finally:
        folder.rmdir()


def test_limit_of_real_control_group_is_read() -> None:
    command = [sys.executable, "-c", PROGRAM]
    # pytest's own folder may lie on a tmpfs, whose pages are memory like any other and no page cache.
    with real_group(512 * MIB) as group, TemporaryDirectory(dir=Path(__file__).parent) as folder:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([*command, Path(folder) / "data"], **pipes, text=True) as child:
            (group / "cgroup.procs").write_text(str(child.pid))
            out, _ = child.communicate("\n", timeout=60)
    first, with_data, with_file = (json.loads(line) for line in out.splitlines())
    assert {total for total, _ in (first, with_data, with_file)} == {512 * MIB}
    assert 60 * MIB < with_data[1] - first[1] < 72 * MIB
    assert with_file[1] - with_data[1] < 16 * MIB, "page cache that can be had back is not in use"
