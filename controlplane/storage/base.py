"""The object store port.

Strong consistency is assumed, as S3 has had it since 2020: what was put is found by the next get and the next list. The
one primitive everything else rests on is `ObjectStore.create`: a put that wins only if the key is free.

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
    """An object as the store lists it.

    Attributes:
        key: Its key, relative to the store's prefix.
        size_bytes: Its size.
        modified_at: When it was last written (UTC, the store's clock).
        tag: Changes whenever the object is written again; empty where the store has no such thing.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    tag: str = ""


class ProgressCallback(Protocol):
    """Told how many bytes were moved since the last call; called from worker threads."""

    def __call__(self, moved_bytes: int, /) -> None: ...  # noqa: D102


class ObjectStore(Protocol):
    """What the control plane needs of a bucket."""

    @property
    def url(self) -> str:
        """The store as a URL, without credentials."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write a small object if, and only if, its key is free. Durable once this returns.

        Retries what is worth retrying. A retry may meet the object that its own lost first attempt wrote: that is
        reported as `ObjectExistsError` too, and the caller tells by the content (wall 3, first trap).

        Raises:
            ObjectExistsError: The key is taken.
            CommitOutcomeUnknownError: Every attempt's answer was lost; the object may be there.
            StoreUnavailableError: Not reachable, and nothing was written.
            StoreAccessError: Credentials or permissions.
            StoreFullError: No space.
        """
        ...

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read an object, or ``length`` bytes of it from ``start``.

        Raises:
            ObjectNotFoundError: No object has this key.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, None where there is none. One request."""
        ...

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix``, in the order of their keys as UTF-8 bytes.

        With a ``limit`` of up to 1,000 this is one request.
        """
        ...

    def list_folders(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[str]:
        """Yield the names directly under ``prefix`` (which ends in ``/``) that have objects below them, in order.

        Args:
            prefix: Where to look.
            start_after: Yield names after this one only.
            limit: How many at most.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; removing one that is not there is no error."""
        ...

    def put_file(self, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None = None) -> None:
        """Write a file of any size, in parallel parts, constant memory; overwrites (blobs are content-addressed).

        The bytes are hashed on the way, and what does not have the digest ``sha256`` is not left under the key. A
        transfer that was cut off goes on with the parts that are there already.

        Raises:
            DigestMismatchError: The file's content is not what ``sha256`` says (it changed while it was read).
        """
        ...

    def get_file(
        self, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None = None
    ) -> None:
        """Write an object to ``target``, in parallel ranges, constant memory, hashed on the way.

        ``target`` appears complete and verified or not at all (a temporary file beside it is renamed). It is a file of
        its own: a write to it never changes the object. It is not forced to the disk, so after a power failure its
        digest must be checked.

        Raises:
            ObjectNotFoundError: No object has this key.
            DigestMismatchError: The content is not what was published; nothing is left at ``target``.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Open an object for streaming from its start. The caller closes it and checks the digest.

        Raises:
            ObjectNotFoundError: No object has this key.
        """
        ...

    def presign_put(self, key: str, *, size_bytes: int, expires_seconds: int) -> "PresignedPut | None":
        """Let a client write an object directly to the store; None where the store cannot do that (a folder)."""
        ...

    def complete_presigned(self, key: str, upload_id: str) -> None:
        """Put the parts of a presigned multipart put together."""
        ...

    def move(self, source: str, target: str) -> None:
        """Give an object another key, within the store and whatever is there; for objects of presigned uploads.

        Raises:
            ObjectNotFoundError: No object has the key ``source``.
        """
        ...

    def abort_incomplete(self, begun_before: datetime) -> int:
        """Drop uploads that were begun and never completed, for garbage collection; returns how many.

        Args:
            begun_before: Only those that were begun before this moment by the store's clock (where the store can tell
                whether the writer is gone, it goes by that).
        """
        ...

    def close(self) -> None:
        """Release connections."""
        ...


@dataclass(frozen=True, slots=True)
class PresignedPut:
    """URLs with which a client writes one object directly.

    Attributes:
        upload_id: Names the multipart upload; to be given to `ObjectStore.complete_presigned`.
        part_size_bytes: Every part but the last has this size.
        urls: One URL for each part, in order; each takes a plain HTTP PUT of that part's bytes.
        expires_at: When the URLs end (UTC).
    """

    upload_id: str
    part_size_bytes: int
    urls: tuple[str, ...]
    expires_at: datetime
