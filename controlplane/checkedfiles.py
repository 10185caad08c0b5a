"""Records of hashed local files, so that an unchanged file is not hashed again, and clones of files.

A record holds the SHA-256 of a file and its device, inode, size, modification time and change time. A file whose status
equals its record has the recorded content; any difference means that the file must be hashed again. The kernel sets the
change time (``ctime``) at every write, link, rename and change of times, and no program can set it, so a program that
writes to a file and restores its modification time is noticed.

Records are lines of JSON in one file, appended with one write each, so a process that is killed leaves at most one
incomplete line, which is ignored. Several processes may append to one file. Records are valid until the machine
restarts: after a power failure the status of a file may have reached the disk without its content, so the name of the
file carries the kernel's boot ID. A lost record costs one hash.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# ``ioctl_ficlone(2)``: the target shares the source's blocks until one of the two is written to.
_FICLONE = 0x40049409
_NO_CLONE = frozenset(
    {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF, errno.EISDIR}
)
_KEPT = 16_384
"""Records in memory; the oldest go first."""
_SPARE_LINES = 4096
"""Maximum number of outdated lines in the file before it is rewritten."""

_Identity = tuple[int, int]
_Status = tuple[int, int, int]
_Record = tuple[_Status, str]


class CheckedFiles:
    """Records of hashed files. Safe to use from several threads; several processes may share a folder.

    Args:
        folder: Where the records are kept; None keeps them in memory only.

    Attributes:
        hashed_bytes: How many bytes this object has hashed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._records: OrderedDict[_Identity, _Record] = OrderedDict()
        self._guard = threading.RLock()
        self._path = _log_of(folder)
        self._read = 0
        self._inode = 0
        self._lines = 0
        self.hashed_bytes = 0
        self._catch_up()

    def known(self, status: os.stat_result) -> str | None:
        """Return the SHA-256 of a file with this status, None if it must be hashed."""
        with self._guard:
            found = self._find(status)
            if found is None and self._catch_up():
                found = self._find(status)
            return found

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, from its record if it has not changed since it was hashed.

        Raises:
            OSError: The file cannot be read, or is a symbolic link.
        """
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            before = os.fstat(fd)
            if (known := self.known(before)) is not None:
                return known
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            with self._guard:
                self.hashed_bytes += before.st_size
                if _status(os.fstat(fd)) == _status(before):
                    self.remember(before, sha256)
            return sha256

    def remember(self, status: os.stat_result, sha256: str) -> None:
        """Record that a file with this status has this SHA-256."""
        with self._guard:
            self._put((status.st_dev, status.st_ino), (_status(status), sha256))
            self._append(status, sha256)

    @contextlib.contextmanager
    def unchanged(self, path: Path) -> Iterator[int]:
        """Keep the record of a file across a change of its links or times inside the context.

        Yields:
            An open descriptor of the file.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._guard:
                before = os.fstat(fd)
                known = self.known(before)
                yield fd
                after = os.fstat(fd)
                same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
                if known is not None and same and _status(before) != _status(after):
                    self.remember(after, known)
        finally:
            os.close(fd)

    def unlink(self, path: Path) -> None:
        """Remove one name of a file. The record of its other names stays valid, and the file counts as used now."""
        with self.unchanged(path) as fd:
            path.unlink()
            mark_used(fd)

    def _find(self, status: os.stat_result) -> str | None:
        record = self._records.get((status.st_dev, status.st_ino))
        return record[1] if record is not None and record[0] == _status(status) else None

    def _put(self, identity: _Identity, record: _Record) -> None:
        self._records[identity] = record
        self._records.move_to_end(identity)
        if len(self._records) > _KEPT:
            self._records.popitem(last=False)

    def _append(self, status: os.stat_result, sha256: str) -> None:
        if self._path is None:
            return
        line = _line((status.st_dev, status.st_ino), (_status(status), sha256))
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
            self._lines += 1
            if self._lines > len(self._records) + _SPARE_LINES:
                self._rewrite(self._path)
        except OSError as error:
            logger.warning("failed to write %s; files may be hashed again: %s", self._path, error)

    def _rewrite(self, path: Path) -> None:
        self._catch_up()
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        temporary.write_bytes(b"".join(_line(identity, record) for identity, record in self._records.items()))
        temporary.chmod(0o600)
        temporary.replace(path)
        self._lines = len(self._records)

    def _catch_up(self) -> bool:
        """Read the lines that any process appended since the last read; return whether there were any."""
        if self._path is None:
            return False
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._read:
                    self._inode, self._read, self._lines = status.st_ino, 0, 0
                if status.st_size == self._read:
                    return False
                file.seek(self._read)
                data = file.read()
        except OSError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._lines += 1
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found = json.loads(line)
                dev, ino, size, mtime, ctime = (int(found[name]) for name in ("dev", "ino", "size", "mtime", "ctime"))
                self._put((dev, ino), ((size, mtime, ctime), str(found["sha256"])))
        return bool(whole)


def clone(source: int, target: int) -> bool:
    """Make an open, empty file a copy that shares its blocks; False if the file system cannot do this (ext4)."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def mark_used(fd: int) -> None:
    """Set the access time of an open file to the present; file systems are often mounted ``noatime``."""
    with contextlib.suppress(OSError):
        os.utime(fd, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))


def _status(status: os.stat_result) -> _Status:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _line(identity: _Identity, record: _Record) -> bytes:
    (dev, ino), ((size, mtime, ctime), sha256) = identity, record
    fields = {"dev": dev, "ino": ino, "size": size, "mtime": mtime, "ctime": ctime, "sha256": sha256}
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _log_of(folder: Path | None) -> Path | None:
    """Return the path of the records of this boot, and remove those of earlier ones."""
    if folder is None:
        return None
    try:
        boot = _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return None  # it cannot be known whether the machine has restarted since
    path = folder / f"checked-{boot}.jsonl"
    for other in folder.glob("checked-*"):
        if not other.name.startswith(path.name):
            other.unlink(missing_ok=True)
    return path
