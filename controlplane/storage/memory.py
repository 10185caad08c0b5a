"""An in-memory store for tests and experiments."""

import bisect
import hashlib
import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from controlplane.errors import InvalidInputError, ObjectExistsError, ObjectNotFoundError
from controlplane.storage import localfile
from controlplane.storage.base import ObjectInfo, PresignedPut, ProgressCallback
from controlplane.storage.digest import check_digest, check_size
from controlplane.storage.keys import check_folder, check_key, check_prefix, check_range, order


class MemoryStore:
    """An `ObjectStore` whose objects are lost when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, datetime]] = {}

    @property
    def url(self) -> str:
        """Return ``memory://``."""
        return "memory://"

    def create(self, key: str, data: bytes) -> None:
        """See `ObjectStore.create`."""
        check_key(key)
        with self._lock:
            if key in self._objects:
                raise ObjectExistsError(f"Object {key!r} already exists.", key=key)
            self._objects[key] = (bytes(data), datetime.now(UTC))

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        check_range(start, length)
        data = self._find(key)
        return data[start:] if length is None else data[start : start + length]

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        return ObjectInfo(key, len(found[0]), found[1]) if found else None

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        check_prefix(prefix)
        with self._lock:
            found = [
                ObjectInfo(key, len(data), at) for key, (data, at) in self._objects.items() if key.startswith(prefix)
            ]
        found.sort(key=lambda info: order(info.key))
        first = bisect.bisect_right(found, order(start_after), key=lambda info: order(info.key))
        yield from found[first:] if limit is None else found[first : first + limit]

    def list_folders(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `ObjectStore.list_folders`."""
        check_folder(prefix)
        with self._lock:
            below = [key[len(prefix) :] for key in self._objects if key.startswith(prefix)]
        names = {rest.split("/", 1)[0] for rest in below if "/" in rest}
        # Ordered as S3 orders common prefixes, which end in "/": "a-b/" comes before "a/".
        wanted = sorted(
            (name for name in names if not start_after or order(name + "/") > order(start_after + "/")),
            key=lambda name: order(name + "/"),
        )
        yield from wanted if limit is None else wanted[:limit]

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def put_file(self, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None = None) -> None:
        """See `ObjectStore.put_file`."""
        check_key(key)
        with localfile.translated(f"read {source}"):
            data = source.read_bytes()
        check_digest(key, expected=sha256, found=hashlib.sha256(data).hexdigest())
        with self._lock:
            self._objects[key] = (data, datetime.now(UTC))
        if progress:
            progress(len(data))

    def get_file(
        self, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None = None
    ) -> None:
        """See `ObjectStore.get_file`."""
        data = self._find(key)
        check_size(key, expected=size_bytes, found=len(data))
        check_digest(key, expected=sha256, found=hashlib.sha256(data).hexdigest())
        with localfile.translated(f"write {target}"), localfile.IncompleteFile(target.parent) as file:
            localfile.write_all(file.fd, data, 0)
            file.set_mode()
            file.replace(target)
        if progress:
            progress(len(data))

    def open(self, key: str) -> BinaryIO:
        """See `ObjectStore.open`."""
        return io.BytesIO(self._find(key))

    def presign_put(
        self,
        key: str,
        *,
        size_bytes: int,  # noqa: ARG002
        expires_seconds: int,  # noqa: ARG002
    ) -> PresignedPut | None:
        """Return None: no other process can write here."""
        check_key(key)
        return None

    def complete_presigned(self, key: str, upload_id: str) -> None:  # noqa: ARG002
        """See `ObjectStore.complete_presigned`; always invalid here."""
        raise InvalidInputError(
            f"{self.url} does not support presigned uploads, so there is none to complete.", key=key
        )

    def move(self, source: str, target: str) -> None:  # noqa: ARG002
        """See `ObjectStore.move`; never needed here."""
        raise InvalidInputError(f"{self.url} does not support presigned uploads, so there is none to move.", key=source)

    def abort_incomplete(self, begun_before: datetime) -> int:  # noqa: ARG002
        """See `ObjectStore.abort_incomplete`; this store has no incomplete uploads."""
        return 0

    def close(self) -> None:
        """See `ObjectStore.close`."""

    def _find(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise ObjectNotFoundError(f"Object {key!r} does not exist in {self.url}.", key=key)
        return found[0]
