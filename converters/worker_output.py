"""Reading of a worker's log, files and exit status. None of them is trusted."""

import os
import signal
import stat
from pathlib import Path

LOG_HEAD_BYTES = 32 * 1024
LOG_TAIL_BYTES = 224 * 1024


class BoundedLog:
    """The beginning and the end of what a worker printed."""

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._dropped = 0

    def feed(self, data: bytes) -> None:
        """Add output of the worker."""
        room = LOG_HEAD_BYTES - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if len(self._tail) > LOG_TAIL_BYTES:
            self._dropped += len(self._tail) - LOG_TAIL_BYTES
            self._tail = self._tail[-LOG_TAIL_BYTES:]

    def text(self) -> str:
        """Return the kept output as text."""
        middle = f"\n… {self._dropped} bytes left out …\n".encode() if self._dropped else b""
        return (self._head + middle + self._tail).decode("utf-8", "replace")


def read_own(path: Path, limit: int | None = None) -> bytes | None:
    """Return a file that the worker wrote; None if it is missing, too large, a link, or not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (limit is not None and status.st_size > limit):
            return None
        return file.read()


def how_it_died(status: int) -> str:
    """Describe an exit status; a negative status is the negated number of a signal."""
    if status >= 0:
        return f"exited with status {status} and without a result"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (the system may be out of memory)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
