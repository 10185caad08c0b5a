"""Files that appear under their name complete or not at all.

A file is written under a unique ``*.incomplete`` name beside its place and renamed (or linked) into it. While it is
written its process holds a lock on it, so that what a killed process left can be told from what is still being
written, by any other process and without guessing by age.
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
    """A new file in ``folder`` that nobody sees until it is published; removed on exit if it never is.

    Attributes:
        path: Where it is while it is written.
        fd: Open for reading and writing.
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
            # A cleaner may have taken it for a leftover in the instant before it was locked.
            if os.fstat(self.fd).st_nlink == 1:
                return self
            os.close(self.fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Unlinked while still locked: a cleaner never meets it.
        self.path.unlink(missing_ok=True)
        os.close(self.fd)

    def reserve(self, size_bytes: int) -> None:
        """Take the disk space now, so that a full disk is told before anything is moved."""
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
        """Give the file its final mode, and force its bytes to the disk, so that they survive a power failure."""
        self.set_mode()
        os.fsync(self.fd)

    def link_to(self, target: Path) -> None:
        """Publish under ``target`` if that name is free (atomic, also between processes).

        Raises:
            FileExistsError: The name is taken.
            FileNotFoundError: The target's folder is gone.
        """
        os.link(self.path, target)

    def replace(self, target: Path) -> None:
        """Publish under ``target``, whatever is there (atomic)."""
        self.path.replace(target)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; one ``pwrite`` may write less than it was given."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def remove_abandoned(folder: Path) -> int:
    """Remove the incomplete files whose writers are gone.

    Args:
        folder: Looked into, not below.

    Returns:
        How many were removed.
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
                continue  # somebody is writing it
            finally:
                os.close(fd)
    if removed:
        logger.info("Removed %d abandoned incomplete files from %s", removed, folder)
    return removed


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk: a new name is durable only after this."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate an `OSError` of the local disk.

    Args:
        what: What was being done, for the message ("write 'a/b'").

    Raises:
        StoreFullError: No space or quota left.
        StoreAccessError: Not permitted, or read-only.
        StoreUnavailableError: Anything else.
    """
    try:
        yield
    except OSError as error:
        raise store_error(error, what) from error


def store_error(error: OSError, what: str) -> StoreError:
    """The store error that says what ``error`` means."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StoreFullError(f"Cannot {what}: {reason}. Free some space and try again.", errno=error.errno)
    if error.errno in _DENIED:
        return StoreAccessError(f"Cannot {what}: {reason}. Check the owner and mode of the folder.", errno=error.errno)
    return StoreUnavailableError(f"Cannot {what}: {reason}.", errno=error.errno)
