"""Files that appear under their name either complete or not at all.

A file is written under a unique ``*.incomplete`` name in the target folder and then renamed (or linked) to its name.
During the write the process holds a lock on the file. So any other process can distinguish leftovers of a killed
process from files that are being written, without relying on their age.
"""

import contextlib
import errno
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from controlplane.errors import StoreAccessError, StoreError, StoreFullError, StoreUnavailableError

logger = logging.getLogger(__name__)

SUFFIX = ".incomplete"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class IncompleteFile:
    """A new file in ``folder`` that is invisible until it is published; removed on exit if it is never published.

    Attributes:
        path: The temporary path during the write.
        fd: A descriptor for reading and writing.
    """

    def __init__(self, folder: Path, *, mode: int = 0o644) -> None:
        self._folder = folder
        self._mode = mode
        self.path = folder
        self.fd = -1

    def __enter__(self) -> Self:
        while True:
            self.path = self._folder / f".{uuid.uuid4().hex}{SUFFIX}"
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            # A cleaner may have removed the file as a leftover just before it was locked.
            if os.fstat(self.fd).st_nlink == 1:
                return self
            os.close(self.fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Unlinked while still locked, so a cleaner never finds it.
        self.path.unlink(missing_ok=True)
        os.close(self.fd)

    def reserve(self, size_bytes: int) -> None:
        """Reserve the disk space now, so that a full disk is reported before the transfer starts."""
        if size_bytes:
            try:
                os.posix_fallocate(self.fd, 0, size_bytes)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                    raise

    def set_mode(self) -> None:
        """Give the file its final mode."""
        os.fchmod(self.fd, self._mode)

    def sync(self) -> None:
        """Give the file its final mode and flush its bytes to the disk, so that they survive a power failure."""
        self.set_mode()
        os.fsync(self.fd)

    def link_to(self, target: Path) -> None:
        """Publish under ``target`` if that name is free (atomic, also between processes).

        Raises:
            FileExistsError: The name is taken.
            FileNotFoundError: The target's folder does not exist any more.
        """
        os.link(self.path, target)

    def replace(self, target: Path) -> None:
        """Publish under ``target``, replacing any existing file (atomic)."""
        self.path.replace(target)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; a single ``pwrite`` may write only a part."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def remove_abandoned(folder: Path) -> int:
    """Remove the incomplete files of dead writers.

    Args:
        folder: The folder to search, without subfolders.

    Returns:
        How many files were removed.
    """
    removed = 0
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(SUFFIX)]
    except FileNotFoundError:
        return 0
    for name in names:
        path = folder / name
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
            except BlockingIOError:
                continue  # a live writer holds the lock
            finally:
                os.close(fd)
    if removed:
        logger.info("removed %d abandoned incomplete files from %s", removed, folder)
    return removed


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk; a new name is durable only after this."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate an `OSError` of the local disk.

    Args:
        what: The operation, for the message ("write 'a/b'").

    Raises:
        StoreFullError: No space or quota is left.
        StoreAccessError: The operation is not permitted, or the file system is read-only.
        StoreUnavailableError: Any other error.
    """
    try:
        yield
    except OSError as error:
        raise store_error(error, what) from error


def store_error(error: OSError, what: str) -> StoreError:
    """Return the store error that corresponds to ``error``."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StoreFullError(f"Cannot {what}: {reason}. Free some space and try again.", errno=error.errno)
    if error.errno in _DENIED:
        return StoreAccessError(f"Cannot {what}: {reason}. Check the owner and mode of the folder.", errno=error.errno)
    return StoreUnavailableError(f"Cannot {what}: {reason}.", errno=error.errno)
