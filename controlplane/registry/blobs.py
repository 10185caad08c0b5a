"""Content-addressed blobs in the bucket: what has the digest is the content, so nothing is ever overwritten."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from controlplane.errors import (
    CommitOutcomeUnknownError,
    DigestMismatchError,
    NotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from controlplane.storage.base import ObjectInfo, ObjectStore, ProgressCallback

PREFIX = "blobs/sha256/"
_CHUNK = 1024 * 1024
_PARALLEL_HEADS = 8


def blob_key(sha256: str) -> str:
    """Return the key of a blob."""
    return f"{PREFIX}{sha256[:2]}/{sha256}"


def digest_of(key: str) -> str | None:
    """Return the digest a blob's key names, None for a key that is no blob's."""
    digest = key.rpartition("/")[2]
    return digest if key == blob_key(digest) and len(digest) == 64 else None


class BlobState(StrEnum):
    """What was found where a blob should be."""

    INTACT = "intact"
    MISSING = "missing"
    DAMAGED = "damaged"


class Blobs:
    """The blobs of one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @property
    def store(self) -> ObjectStore:
        """Where they are."""
        return self._store

    def size_of(self, sha256: str) -> int | None:
        """Return a blob's size in bytes, None where it is missing. One request."""
        info = self._store.head(blob_key(sha256))
        return info.size_bytes if info else None

    def sizes_of(self, digests: Sequence[str]) -> dict[str, int | None]:
        """Return the sizes of many blobs, asked for in parallel."""
        with ThreadPoolExecutor(_PARALLEL_HEADS, thread_name_prefix="blobs") as pool:
            return dict(zip(digests, pool.map(self.size_of, digests), strict=True))

    def put_bytes(self, data: bytes) -> str:
        """Write a small blob, unless it is there, and return its digest. One that is there and damaged is repaired."""
        digest = hashlib.sha256(data).hexdigest()
        key = blob_key(digest)
        try:
            self._store.create(key, data)
        except ObjectExistsError:
            if self.inspect(digest) is not BlobState.INTACT:
                with tempfile.NamedTemporaryFile() as file:
                    file.write(data)
                    file.flush()
                    self.put_file(Path(file.name), digest)
        except CommitOutcomeUnknownError:
            if self._store.head(key) is None:
                raise
        return digest

    def put_file(self, source: Path, sha256: str, progress: ProgressCallback | None = None) -> None:
        """Write a blob of any size from a file.

        Raises:
            DigestMismatchError: The file's content is not what ``sha256`` says.
        """
        self._store.put_file(blob_key(sha256), source, sha256=sha256, progress=progress)

    def read(self, sha256: str) -> bytes:
        """Read a small blob whole and check it.

        Raises:
            NotFoundError: There is no such blob.
            DigestMismatchError: Its content is not what was written.
        """
        try:
            data = self._store.get(blob_key(sha256))
        except ObjectNotFoundError as error:
            raise _missing(sha256) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _mismatch(sha256)
        return data

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob for streaming; the caller closes it and checks the digest.

        Raises:
            NotFoundError: There is no such blob.
        """
        try:
            return self._store.open(blob_key(sha256))
        except ObjectNotFoundError as error:
            raise _missing(sha256) from error

    def adopt(self, key: str, sha256: str, size_bytes: int) -> None:
        """Make a blob of an object that a client wrote directly (presigned PUTs) under a key of its own.

        Nothing is under a blob's key before its content was compared, so a good blob is never replaced by another
        content, and no publish takes an unverified object for a blob.

        Raises:
            ObjectNotFoundError: There is no such object.
            DigestMismatchError: Its content is something else; the object is removed.
        """
        digest, size = hashlib.sha256(), 0
        with self._store.open(key) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        if digest.hexdigest() != sha256 or size != size_bytes:
            self._store.delete(key)
            raise _mismatch(sha256)
        self._store.move(key, blob_key(sha256))

    def inspect(
        self, sha256: str, size_bytes: int | None = None, read: Callable[[int], None] | None = None
    ) -> BlobState:
        """Read a blob whole and compare it with its digest. One request, constant memory; nothing is changed.

        Args:
            sha256: The blob.
            size_bytes: Its size, where it is known.
            read: Called with the number of bytes after each piece that was read; it may wait, or raise to stop.

        Raises:
            StoreError: The store could not be read, which says nothing about the blob.
        """
        digest, size = hashlib.sha256(), 0
        try:
            with self.open(sha256) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    if read is not None:
                        read(len(chunk))
        except NotFoundError:
            return BlobState.MISSING
        same = digest.hexdigest() == sha256 and size_bytes in (None, size)
        return BlobState.INTACT if same else BlobState.DAMAGED

    def all(self) -> Iterator[ObjectInfo]:
        """Yield every blob."""
        yield from self._store.list(PREFIX)

    def delete(self, sha256: str) -> None:
        """Remove a blob. For garbage collection alone."""
        self._store.delete(blob_key(sha256))


def _missing(sha256: str) -> NotFoundError:
    return NotFoundError(f"the store has no blob {sha256}", sha256=sha256)


def _mismatch(sha256: str) -> DigestMismatchError:
    return DigestMismatchError(f"blob {sha256} does not have the content its name says", sha256=sha256)
