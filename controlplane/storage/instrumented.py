"""A wrapper around any store that reports the duration and outcome of each operation."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from controlplane.errors import (
    CommitOutcomeUnknownError,
    DigestMismatchError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreFullError,
    StoreUnavailableError,
)
from controlplane.storage.base import ObjectInfo, ObjectStore, PresignedPut, ProgressCallback

_Item = TypeVar("_Item")
Observe = Callable[[str, str, float], None]
"""Receives operation, outcome and seconds; called from any thread."""

_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (ObjectExistsError, "exists"),
    (ObjectNotFoundError, "missing"),
    (StoreUnavailableError, "unavailable"),
    (StoreAccessError, "access"),
    (StoreFullError, "full"),
    (CommitOutcomeUnknownError, "unknown"),
    (DigestMismatchError, "digest"),
)
OUTCOMES = ("ok", *(name for _, name in _OUTCOMES), "other")
"""Possible outcomes of an operation; ``exists`` and ``missing`` are results, all others except ``ok`` are errors."""


class MeteredStore:
    """An `ObjectStore` that wraps another store.

    Args:
        store: The wrapped store.
        observe: Called after each operation.
    """

    def __init__(self, store: ObjectStore, observe: Observe) -> None:
        self._store = store
        self._observe = observe

    @property
    def url(self) -> str:
        """See `ObjectStore`, as for all methods below."""
        return self._store.url

    def create(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        with self._timed("create"):
            self._store.create(key, data)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `ObjectStore`."""
        with self._timed("get"):
            return self._store.get(key, start=start, length=length)

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore`."""
        with self._timed("head"):
            return self._store.head(key)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """See `ObjectStore`. Measured until the first object; the time after it depends on the caller."""
        yield from self._first("list", self._store.list(prefix, start_after=start_after, limit=limit))

    def list_folders(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `ObjectStore`. Measured until the first folder."""
        yield from self._first("list_folders", self._store.list_folders(prefix, start_after=start_after, limit=limit))

    def delete(self, key: str) -> None:
        """See `ObjectStore`."""
        with self._timed("delete"):
            self._store.delete(key)

    def put_file(self, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None = None) -> None:
        """See `ObjectStore`."""
        with self._timed("put_file"):
            self._store.put_file(key, source, sha256=sha256, progress=progress)

    def get_file(
        self, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None = None
    ) -> None:
        """See `ObjectStore`."""
        with self._timed("get_file"):
            self._store.get_file(key, target, size_bytes=size_bytes, sha256=sha256, progress=progress)

    def open(self, key: str) -> BinaryIO:
        """See `ObjectStore`."""
        with self._timed("open"):
            return self._store.open(key)

    def presign_put(self, key: str, *, size_bytes: int, expires_seconds: int) -> PresignedPut | None:
        """See `ObjectStore`."""
        with self._timed("presign_put"):
            return self._store.presign_put(key, size_bytes=size_bytes, expires_seconds=expires_seconds)

    def complete_presigned(self, key: str, upload_id: str) -> None:
        """See `ObjectStore`."""
        with self._timed("complete_presigned"):
            self._store.complete_presigned(key, upload_id)

    def move(self, source: str, target: str) -> None:
        """See `ObjectStore`."""
        with self._timed("move"):
            self._store.move(source, target)

    def abort_incomplete(self, begun_before: datetime) -> int:
        """See `ObjectStore`."""
        with self._timed("abort_incomplete"):
            return self._store.abort_incomplete(begun_before)

    def close(self) -> None:
        """See `ObjectStore`."""
        self._store.close()

    def _first(self, operation: str, items: Iterator[_Item]) -> Iterator[_Item]:
        with self._timed(operation):
            first = next(items, None)
        if first is not None:
            yield first
            yield from items

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        began, outcome = time.perf_counter(), "ok"
        try:
            yield
        except Exception as error:
            outcome = next((name for kind, name in _OUTCOMES if isinstance(error, kind)), "other")
            raise
        finally:
            self._observe(operation, outcome, time.perf_counter() - began)
