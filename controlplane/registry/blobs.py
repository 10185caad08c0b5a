"""Content-addressed blobs in the bucket: the key is the digest of the content, so a blob is never overwritten."""

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
    """Return the digest that a blob's key contains; None if the key is not a blob key."""
    digest = key.rpartition("/")[2]
    return digest if key == blob_key(digest) and len(digest) == 64 else None


class BlobState(StrEnum):
    """The result of inspecting a blob."""

    INTACT = "intact"
    MISSING = "missing"
    DAMAGED = "damaged"


class Blobs:
    """The blobs of one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @property
    def store(self) -> ObjectStore:
        """Return the store that contains the blobs."""
        return self._store

    def size_of(self, sha256: str) -> int | None:
        """Return a blob's size in bytes; None if it is missing. One request."""
        info = self._store.head(blob_key(sha256))
        return info.size_bytes if info else None

    def sizes_of(self, digests: Sequence[str]) -> dict[str, int | None]:
        """Return the sizes of many blobs, requested in parallel."""
        with ThreadPoolExecutor(_PARALLEL_HEADS, thread_name_prefix="blobs") as pool:
            return dict(zip(digests, pool.map(self.size_of, digests), strict=True))

    def put_bytes(self, data: bytes) -> str:
        """Write a small blob unless it exists, repair it if it is damaged, and return its digest."""
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
            DigestMismatchError: The file's content does not match ``sha256``.
        """
        self._store.put_file(blob_key(sha256), source, sha256=sha256, progress=progress)

    def read(self, sha256: str) -> bytes:
        """Read a whole small blob and verify it.

        Raises:
            NotFoundError: The blob does not exist.
            DigestMismatchError: The content does not match the digest.
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
            NotFoundError: The blob does not exist.
        """
        try:
            return self._store.open(blob_key(sha256))
        except ObjectNotFoundError as error:
            raise _missing(sha256) from error

    def read_part(self, sha256: str, start: int, length: int) -> bytes:
        """Return bytes of a blob; a part cannot be checked against the digest.

        Raises:
            NotFoundError: The blob does not exist.
        """
        try:
            return self._store.get(blob_key(sha256), start=start, length=length)
        except ObjectNotFoundError as error:
            raise _missing(sha256) from error

    def adopt(self, key: str, sha256: str, size_bytes: int) -> None:
        """Turn an object that a client uploaded directly (presigned PUTs) under a separate key into a blob.

        The content is verified before it is written under the blob's key. So a good blob is never replaced by other
        content, and a publish never uses an unverified object as a blob.

        Raises:
            ObjectNotFoundError: The object does not exist.
            DigestMismatchError: The content does not match the digest; the object is removed.
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
        """Read a whole blob and compare it with its digest. One request, constant memory; changes nothing.

        Args:
            sha256: The blob's digest.
            size_bytes: The blob's size, if known.
            read: Called with the number of bytes after each piece; it may wait, or raise to stop the inspection.

        Raises:
            StoreError: The store could not be read; the state of the blob is unknown.
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
        """List every blob."""
        yield from self._store.list(PREFIX)

    def delete(self, sha256: str) -> None:
        """Remove a blob. Only garbage collection calls this."""
        self._store.delete(blob_key(sha256))


def _missing(sha256: str) -> NotFoundError:
    return NotFoundError(f"the store has no blob {sha256}", sha256=sha256)


def _mismatch(sha256: str) -> DigestMismatchError:
    return DigestMismatchError(f"the content of blob {sha256} does not match its digest", sha256=sha256)
