"""Copying and hashing of files, concurrently."""

import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from controlplane.errors import DigestMismatchError
from controlplane.storage.base import ProgressCallback
from controlplane.storage.localfile import write_all

BLOCK_BYTES = 4 * 1024 * 1024


class Hash(Protocol):
    """The required methods of `hashlib`'s objects."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...  # noqa: D102
    def hexdigest(self) -> str: ...  # noqa: D102


def check_digest(key: str, *, expected: str, found: str) -> None:
    """Compare two SHA-256 digests.

    Raises:
        DigestMismatchError: They differ.
    """
    if found != expected:
        raise DigestMismatchError(
            f"The content of {key!r} has SHA-256 {found} instead of {expected}; it was changed or damaged.",
            key=key,
            expected=expected,
            found=found,
        )


def check_size(key: str, *, expected: int, found: int) -> None:
    """Compare two sizes, before or in addition to the digests: a wrong size is a clearer error than a wrong digest.

    Raises:
        DigestMismatchError: They differ.
    """
    if found != expected:
        raise DigestMismatchError(
            f"The content of {key!r} has {found} bytes instead of {expected}; it was truncated or changed.",
            key=key,
            expected_bytes=expected,
            found_bytes=found,
        )


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset`` of a file; return the byte count, less than the buffer's size only at the end."""
    filled = 0
    while filled < len(buffer):
        count = os.preadv(fd, [buffer[filled:]], offset + filled)
        if count == 0:
            break
        filled += count
    return filled


def hash_file(fd: int, *, progress: ProgressCallback | None = None) -> tuple[str, int]:
    """Return the SHA-256 of an open file, and the number of bytes read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    offset = 0
    while count := read_into(fd, buffer, offset):
        digest.update(buffer[:count])
        offset += count
        if progress:
            progress(count)
    return digest.hexdigest(), offset


def copy_and_hash(source: int, target: int, *, progress: ProgressCallback | None = None) -> tuple[str, int]:
    """Copy an open file into another and hash the written bytes; return the SHA-256 and the size.

    One thread hashes while the other writes. Both release the interpreter's lock, so hashing adds no time if there are
    two cores.
    """
    digest = hashlib.sha256()
    buffers = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(2)]
    offset = 0
    turn = 0
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher:
        hashed: Future[None] | None = None
        while count := read_into(source, buffers[turn], offset):
            block = buffers[turn][:count]
            if hashed:
                hashed.result()  # one block at a time, in order; the other buffer is free again
            hashed = hasher.submit(digest.update, block)
            write_all(target, block, offset)
            offset += count
            turn = 1 - turn
            if progress:
                progress(count)
        if hashed:
            hashed.result()
    return digest.hexdigest(), offset


class SharedProgress:
    """Wrapper that makes a progress callback safe for several worker threads; also accepts None."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._lock = threading.Lock()

    def __call__(self, moved_bytes: int, /) -> None:
        """Call the wrapped callback."""
        if self._callback:
            with self._lock:
                self._callback(moved_bytes)
