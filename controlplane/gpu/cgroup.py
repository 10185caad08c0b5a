"""Reads memory limits of control groups, version 1 and 2, from this process's group up to the root.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, and proc(5), cgroups(7).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """One control group that limits memory.

    Attributes:
        path: Its folder.
        limit_bytes: The memory that its processes may use together.
        used_bytes: The memory that they use, less the page cache that the kernel reclaims before memory runs out.
    """

    path: Path
    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """The memory that its processes can still allocate."""
        return max(self.limit_bytes - self.used_bytes, 0)


@dataclass(frozen=True, slots=True)
class _Files:
    """The file and field names of a control group version."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]


_V2 = _Files(
    # Above `high` processes are not killed but throttled almost to a standstill: a load must stay below it, too.
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    # Pages of files on disk, and the kernel's own caches. `file` would include tmpfs and shared memory, which are not
    # reclaimable.
    reclaimable=("inactive_file", "active_file", "slab_reclaimable"),
)
_V1 = _Files(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable=("total_inactive_file", "total_active_file"),
)


def memory_levels(root: Path = Path("/")) -> tuple[MemoryLevel, ...]:
    """Return this process's control groups that have a memory limit, the innermost first.

    Args:
        root: The folder that contains ``proc/self`` and the mounted control groups.
    """
    groups = _groups(root)
    levels = []
    for mount_root, mount_point, files in _mounts(root):
        group = groups.get("memory" if files is _V1 else "")
        if group is None:
            continue
        for folder in _upwards(root / mount_point.lstrip("/"), mount_root, group):
            level = _level(folder, files)
            if level is not None:
                levels.append(level)
            if files is _V1 and _number(folder.parent / "memory.use_hierarchy") == 0:
                break  # the groups above do not count this group's memory
    return tuple(levels)


def _groups(root: Path) -> dict[str, str]:
    """Return this process's group by controller; version 2 has the empty name."""
    groups = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _mounts(root: Path) -> Iterator[tuple[str, str, _Files]]:
    """Yield each mount of the memory controller: the group at its top, the folder, the version's file names."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, separator, rest = line.partition(" - ")
        words, kind = fields.split(), rest.split()
        if not separator or len(words) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            yield _unescaped(words[3]), _unescaped(words[4]), _V2
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            yield _unescaped(words[3]), _unescaped(words[4]), _V1


def _upwards(mount: Path, mount_root: str, group: str) -> Iterator[Path]:
    """Yield a group's folder and the mounted folders above it.

    In a container the mount often begins at the container's own group, while ``/proc/self/cgroup`` gives the path from
    the machine's root, or one that begins with ``..``: then only the top of the mount is visible.
    """
    try:
        below = PurePosixPath(group).relative_to(mount_root)
    except ValueError:
        below = PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    folder = mount / below
    while True:
        yield folder
        if folder == mount:
            return
        folder = folder.parent


def _level(folder: Path, files: _Files) -> MemoryLevel | None:
    limits = [limit for name in files.limits if (limit := _number(folder / name)) is not None]
    used = _number(folder / files.usage)
    if not limits or used is None:
        return None
    reclaimable = 0
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in files.reclaimable and value.strip().isdigit():
            reclaimable += int(value)
    return MemoryLevel(folder, min(limits), max(used - reclaimable, 0))


def _number(path: Path) -> int | None:
    """Return the number in a file; None if the file does not exist or contains ``max``."""
    for line in _lines(path):
        return int(line) if line.isdigit() else None
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # missing, not readable, or the group was removed during the read
        return []


def _unescaped(text: str) -> str:
    """Undo mountinfo's escapes of space, tab, newline and backslash (proc(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
