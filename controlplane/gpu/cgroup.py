"""Memory limits of control groups, version 1 and 2, of every group from this process's up to the root.

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
        limit_bytes: What its processes may use together.
        used_bytes: What they use, less the page cache that the kernel takes back before it runs out.
    """

    path: Path
    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What its processes can still have."""
        return max(self.limit_bytes - self.used_bytes, 0)


@dataclass(frozen=True, slots=True)
class _Files:
    """What a version calls things."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]


_V2 = _Files(
    # Above `high` processes are not killed but slowed until nothing moves: for a load it is the limit too.
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    # Pages of files on disk, and the kernel's own caches. `file` would count tmpfs and shared memory, which stay.
    reclaimable=("inactive_file", "active_file", "slab_reclaimable"),
)
_V1 = _Files(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable=("total_inactive_file", "total_active_file"),
)


def memory_levels(root: Path = Path("/")) -> tuple[MemoryLevel, ...]:
    """Return the control groups with a memory limit that this process is in, the innermost first.

    Args:
        root: Where ``proc/self`` and the mounted control groups are looked for.
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
                break  # what is above does not count this group's memory
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
    """Yield where the memory controller is mounted: the group at the top of the mount, the folder, the version."""
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
    """Yield a group's folder and those above it that are mounted.

    In a container the mount often begins at the container's own group, while ``/proc/self/cgroup`` tells the path
    from the machine's root, or one with ``..`` in front: then the mount's top is all that can be seen of it.
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
    """Return the number in a file; None where there is no file, or it says ``max``."""
    for line in _lines(path):
        return int(line) if line.isdigit() else None
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not there, not readable, or the group was removed while we looked
        return []


def _unescaped(text: str) -> str:
    """Undo mountinfo's escapes of space, tab, newline and backslash (proc(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
