"""Advisory locks between threads and processes on one machine (``flock``), on temporary files."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """A lock on a file that is created for the lock and removed with the last holder.

    ``flock`` belongs to the open file, so two instances exclude each other even within one process. Acquiring the lock
    blocks the calling thread.

    Args:
        path: The lock file; its folder must exist.
        shared: Whether other shared holders are allowed.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self._path = path
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor = -1

    def acquire(self) -> None:
        """Wait for the lock."""
        if not self._take(0):  # pragma: no cover - a blocking flock does not refuse
            raise BlockingIOError(str(self._path))

    def try_acquire(self) -> bool:
        """Take the lock if no other holder prevents it; return whether it was taken."""
        return self._take(fcntl.LOCK_NB)

    def release(self) -> None:
        """Release the lock, and remove the file if there is no other holder."""
        descriptor, self._descriptor = self._descriptor, -1
        try:
            # Only the sole holder may remove the file; otherwise two holders could lock two files with the same name.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)

    def _take(self, flag: int) -> bool:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, self._kind | flag)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except BaseException:
                os.close(descriptor)
                raise
            if _is_file_at(descriptor, self._path):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # the last holder removed the file while we waited

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
