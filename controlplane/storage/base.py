"""The object store port.

The port assumes strong consistency, which S3 has provided since 2020: the next get and the next list see every
completed put. Everything else is based on one primitive, `ObjectStore.create`: a put that succeeds only if the key is
free.

All calls block and are safe to call from several threads. Keys are ``/``-separated, relative to the store's prefix,
without ``.`` or ``..`` parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in a listing of the store.

    Attributes:
        key: The object's key, relative to the store's prefix.
        size_bytes: The object's size.
        modified_at: When it was last written (UTC, the store's clock).
        tag: Changes whenever the object is written again; empty if the store does not provide one.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    tag: str = ""


class ProgressCallback(Protocol):
    """Receives the number of bytes moved since the last call; called from worker threads."""

    def __call__(self, moved_bytes: int, /) -> None: ...  # noqa: D102


class ObjectStore(Protocol):
    """The operations that the control plane requires of a bucket."""

    @property
    def url(self) -> str:
        """Return the store's URL, without credentials."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write a small object if, and only if, its key is free. Durable once this returns.

        Retryable errors are retried. A retry may meet the object that its own first attempt wrote although the response
        was lost. This is also reported as `ObjectExistsError`, and the caller must compare the content.

        Raises:
            ObjectExistsError: The key is taken.
            CommitOutcomeUnknownError: The response of every attempt was lost; the object may exist.
            StoreUnavailableError: The store is unreachable, and nothing was written.
            StoreAccessError: The credentials or permissions are insufficient.
            StoreFullError: No space is left.
        """
        ...

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read an object, or ``length`` bytes of it from ``start``.

        Raises:
            ObjectNotFoundError: No object has this key.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return the metadata of an object; None if it does not exist. One request."""
        ...

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix``, in the order of their keys as UTF-8 bytes.

        With a ``limit`` of up to 1,000 this is one request.
        """
        ...

    def list_folders(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[str]:
        """Yield the names directly under ``prefix`` (which ends in ``/``) that have objects below them, in order.

        Args:
            prefix: The folder.
            start_after: Yield only names after this one.
            limit: The maximum number of names.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; removing a missing object is not an error."""
        ...

    def put_file(self, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None = None) -> None:
        """Write a file of any size, in parallel parts, constant memory; overwrites (blobs are content-addressed).

        The bytes are hashed during the transfer, and content without the digest ``sha256`` is not left under the key.
        An interrupted transfer resumes with the parts that were already written.

        Raises:
            DigestMismatchError: The file's content does not match ``sha256`` (it changed while it was read).
        """
        ...

    def get_file(
        self, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None = None
    ) -> None:
        """Write an object to ``target``, in parallel ranges, constant memory, hashed during the transfer.

        ``target`` appears complete and verified or not at all (a temporary file beside it is renamed). It is a separate
        file: a write to it never changes the object. It is not flushed to the disk, so its digest must be checked after
        a power failure.

        Raises:
            ObjectNotFoundError: No object has this key.
            DigestMismatchError: The content does not match the published digest; nothing is left at ``target``.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Open an object for streaming from its start. The caller closes it and checks the digest.

        Raises:
            ObjectNotFoundError: No object has this key.
        """
        ...

    def presign_put(self, key: str, *, size_bytes: int, expires_seconds: int) -> "PresignedPut | None":
        """Return URLs for a client to write an object directly; None if the store does not support this (a folder)."""
        ...

    def complete_presigned(self, key: str, upload_id: str) -> None:
        """Assemble the parts of a presigned multipart put."""
        ...

    def move(self, source: str, target: str) -> None:
        """Move an object to another key of the store, replacing any object there; for objects of presigned uploads.

        Raises:
            ObjectNotFoundError: No object has the key ``source``.
        """
        ...

    def abort_incomplete(self, begun_before: datetime) -> int:
        """Remove uploads that were started and never completed, for garbage collection; return how many.

        Args:
            begun_before: Only uploads started before this moment by the store's clock (a store that can detect a dead
                writer uses that instead).
        """
        ...

    def close(self) -> None:
        """Release connections."""
        ...


def parallel_reads(store: ObjectStore, most: int) -> int:
    """Return how many objects to read at once: ``most`` from a remote store, one from a local store.

    A local read does not wait. More threads would only compete for the interpreter, also with the event loop.
    """
    return 1 if store.url.startswith(("file:", "memory:")) else most


@dataclass(frozen=True, slots=True)
class PresignedPut:
    """URLs with which a client writes one object directly.

    Attributes:
        upload_id: Id of the multipart upload, for `ObjectStore.complete_presigned`.
        part_size_bytes: The size of every part except the last.
        urls: One URL for each part, in order; each accepts a plain HTTP PUT of that part's bytes.
        expires_at: When the URLs expire (UTC).
    """

    upload_id: str
    part_size_bytes: int
    urls: tuple[str, ...]
    expires_at: datetime
