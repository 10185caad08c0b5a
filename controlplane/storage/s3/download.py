"""Downloads from S3: parallel ranges into one file, hashed in order from a fixed set of buffers."""

import hashlib
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from botocore import exceptions as boto

from controlplane.errors import DigestMismatchError, StoreError, UnsupportedStoreError
from controlplane.storage.base import ProgressCallback
from controlplane.storage.digest import SharedProgress, check_digest, check_size
from controlplane.storage.localfile import IncompleteFile, write_all
from controlplane.storage.s3.bucket import Bucket
from controlplane.storage.s3.client import code_of, status_of

if TYPE_CHECKING:
    from botocore.response import StreamingBody

# Small enough to be allocated from the heap repeatedly, instead of being mapped and faulted in each time.
_READ_BYTES = 256 * 1024
# Buffers in addition to those being filled, for parts that wait to be hashed in the file's order.
_SLACK = 2


def download_file(
    bucket: Bucket, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None
) -> None:
    """Write an object to a local file; see `ObjectStore.get_file`.

    Raises:
        OSError: The file cannot be written.
        StoreError: See `ObjectStore.get_file`.
    """
    bucket.full_key(key)
    with IncompleteFile(target.parent) as file:
        file.reserve(size_bytes)
        found = _Receiver(bucket, key, size_bytes, file.fd, SharedProgress(progress)).receive()
        check_digest(key, expected=sha256, found=found)
        file.set_mode()
        file.replace(target)


class _Receiver:
    """Reads ranges in several threads; hashes them in order in the calling thread."""

    def __init__(self, bucket: Bucket, key: str, size_bytes: int, fd: int, progress: ProgressCallback) -> None:
        self._bucket = bucket
        self._key = key
        self._size_bytes = size_bytes
        self._fd = fd
        self._progress = progress

    def receive(self) -> str:
        """Fetch all ranges; return the SHA-256 of the whole object."""
        part_size = min(self._bucket.part_size_bytes, max(1, self._size_bytes))
        starts = deque(range(0, max(1, self._size_bytes), part_size))
        workers = min(self._bucket.concurrency, len(starts))
        free = [memoryview(bytearray(part_size)) for _ in range(min(workers + _SLACK, len(starts)))]
        digest = hashlib.sha256()
        pending: deque[tuple[memoryview, Future[int]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="download") as pool:
            try:
                while starts or pending:
                    while starts and free:
                        buffer = free.pop()
                        pending.append((buffer, pool.submit(self._fetch, starts.popleft(), buffer)))
                    buffer, future = pending.popleft()
                    digest.update(buffer[: future.result()])
                    free.append(buffer)
            finally:
                for _, future in pending:
                    future.cancel()
        return digest.hexdigest()

    def _fetch(self, start: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``start`` of the object and write it to the file; return the number of bytes."""
        wanted = buffer[: min(len(buffer), self._size_bytes - start)]
        filled = 0

        def attempt() -> None:
            nonlocal filled  # a retry after a lost connection continues where that one ended
            body = self._get(start + filled, start + len(wanted))
            try:
                while filled < len(wanted):
                    block = body.read(min(_READ_BYTES, len(wanted) - filled))
                    if not block:
                        raise ConnectionError(f"the connection ended {len(wanted) - filled} bytes early")
                    wanted[filled : filled + len(block)] = block
                    filled += len(block)
            finally:
                body.close()

        self._bucket.requests.run("read", attempt, key=self._key)
        write_all(self._fd, wanted, start)
        self._progress(len(wanted))
        return len(wanted)

    def _get(self, start: int, end: int) -> "StreamingBody":
        client, name, full_key = self._bucket.client, self._bucket.name, self._bucket.full_key(self._key)
        wanted = f"{start}-{end - 1}"
        try:
            if self._size_bytes == 0:  # an empty object has no ranges
                found = client.get_object(Bucket=name, Key=full_key)
            else:
                found = client.get_object(Bucket=name, Key=full_key, Range=f"bytes={wanted}")
        except boto.ClientError as error:
            if code_of(error) == "InvalidRange" or status_of(error) == 416:
                raise DigestMismatchError(
                    f"The content of {self._key!r} is shorter than its {self._size_bytes} bytes; it was truncated.",
                    key=self._key,
                ) from error
            raise
        try:
            self._check_answer(wanted, found.get("ContentRange", ""), found["ContentLength"])
        except StoreError:
            found["Body"].close()
            raise
        return found["Body"]

    def _check_answer(self, wanted: str, content_range: str, content_length: int) -> None:
        sent, _, total = content_range.removeprefix("bytes ").partition("/")
        if self._size_bytes == 0:
            check_size(self._key, expected=0, found=content_length)
            return
        if total.isdigit():
            check_size(self._key, expected=self._size_bytes, found=int(total))
        if sent != wanted:
            raise UnsupportedStoreError(
                f"{self._bucket.requests.where} does not support the Range header: bytes {wanted} were requested, "
                f"it sent {sent or 'everything'}."
            )


class ObjectReader(io.RawIOBase):
    """An object as a stream that survives a lost connection.

    Raises:
        ObjectNotFoundError: No object has this key.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._full_key = bucket.full_key(key)
        self._offset = 0
        self._etag = ""
        self._body: StreamingBody | None = None
        bucket.requests.run("read", self._connect, key=key)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Read some bytes; return 0 at the end."""
        view = memoryview(buffer).cast("B")

        def attempt() -> bytes:
            if self._body is None:
                self._connect()
            assert self._body is not None
            try:
                return self._body.read(min(len(view), _READ_BYTES))
            except BaseException:
                self._drop()
                raise

        block = self._bucket.requests.run("read", attempt, key=self._key)
        view[: len(block)] = block
        self._offset += len(block)
        return len(block)

    def close(self) -> None:
        """Release the connection."""
        if not self.closed:
            self._drop()
        super().close()

    def _connect(self) -> None:
        client, name = self._bucket.client, self._bucket.name
        if self._offset == 0:
            found = client.get_object(Bucket=name, Key=self._full_key)
        else:
            # The rest must be from the same object.
            found = client.get_object(
                Bucket=name, Key=self._full_key, Range=f"bytes={self._offset}-", IfMatch=self._etag
            )
        self._etag = found["ETag"]
        self._body = found["Body"]

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
