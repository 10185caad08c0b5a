"""A real store with a hook before and after each of its operations: to count, to delay, to fail, to kill.

An error raised before an operation simulates a request that was never sent; one raised after it, a lost response.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from controlplane.storage.base import ObjectInfo, ObjectStore, PresignedPut, ProgressCallback

Hook = Callable[[str, str], None]


def _nothing(operation: str, key: str) -> None:
    pass


class HookedStore:
    """Wraps a store.

    Args:
        store: The real one.
        before: Called with the operation's name and its key (or prefix).
        after: The same, once the operation is done.

    Attributes:
        calls: Every operation so far, with its key.
    """

    def __init__(self, store: ObjectStore, *, before: Hook = _nothing, after: Hook = _nothing) -> None:
        self.inner = store
        self.before = before
        self.after = after
        self.calls: list[tuple[str, str]] = []

    def _enter(self, operation: str, key: str) -> None:
        self.calls.append((operation, key))
        self.before(operation, key)

    @property
    def url(self) -> str:
        return self.inner.url

    def create(self, key: str, data: bytes) -> None:
        self._enter("create", key)
        self.inner.create(key, data)
        self.after("create", key)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._enter("get", key)
        data = self.inner.get(key, start=start, length=length)
        self.after("get", key)
        return data

    def head(self, key: str) -> ObjectInfo | None:
        self._enter("head", key)
        info = self.inner.head(key)
        self.after("head", key)
        return info

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        self._enter("list", prefix)
        yield from self.inner.list(prefix, start_after=start_after, limit=limit)
        self.after("list", prefix)

    def list_folders(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[str]:
        self._enter("list_folders", prefix)
        yield from self.inner.list_folders(prefix, start_after=start_after, limit=limit)
        self.after("list_folders", prefix)

    def delete(self, key: str) -> None:
        self._enter("delete", key)
        self.inner.delete(key)
        self.after("delete", key)

    def put_file(self, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None = None) -> None:
        self._enter("put_file", key)
        self.inner.put_file(key, source, sha256=sha256, progress=progress)
        self.after("put_file", key)

    def get_file(
        self, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None = None
    ) -> None:
        self._enter("get_file", key)
        self.inner.get_file(key, target, size_bytes=size_bytes, sha256=sha256, progress=progress)
        self.after("get_file", key)

    def open(self, key: str) -> BinaryIO:
        self._enter("open", key)
        stream = self.inner.open(key)
        self.after("open", key)
        return stream

    def presign_put(self, key: str, *, size_bytes: int, expires_seconds: int) -> PresignedPut | None:
        self._enter("presign_put", key)
        return self.inner.presign_put(key, size_bytes=size_bytes, expires_seconds=expires_seconds)

    def complete_presigned(self, key: str, upload_id: str) -> None:
        self._enter("complete_presigned", key)
        self.inner.complete_presigned(key, upload_id)
        self.after("complete_presigned", key)

    def abort_incomplete(self, begun_before: datetime) -> int:
        self._enter("abort_incomplete", "")
        dropped = self.inner.abort_incomplete(begun_before)
        self.after("abort_incomplete", "")
        return dropped

    def move(self, source: str, target: str) -> None:
        self._enter("move", source)
        self.inner.move(source, target)
        self.after("move", source)

    def close(self) -> None:
        self.inner.close()
