"""Uploads to S3: parallel parts from a fixed set of buffers, hashed while they are read, resumed if interrupted."""

import hashlib
import logging
import os
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from botocore import exceptions as boto

from controlplane.errors import StoreError, StoreUnavailableError
from controlplane.storage.base import PresignedPut, ProgressCallback
from controlplane.storage.digest import SharedProgress, check_digest, check_size, read_into
from controlplane.storage.s3.bucket import Bucket, part_size_for
from controlplane.storage.s3.client import code_of

logger = logging.getLogger(__name__)

# Another client completed or aborted this multipart upload, or sent different bytes for a part of it.
_GONE = frozenset({"NoSuchUpload", "InvalidPart"})


@dataclass(frozen=True, slots=True)
class _Part:
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Upload:
    """A multipart upload and its parts that are already on the server, by number from 1."""

    id: str
    parts: dict[int, _Part]


def upload_file(bucket: Bucket, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None) -> None:
    """Write a file under ``key``; see `ObjectStore.put_file`.

    Raises:
        OSError: The file cannot be read.
        StoreError: See `ObjectStore.put_file`.
    """
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes <= bucket.part_size_bytes:
            _put_single(bucket, key, fd, size_bytes, sha256=sha256)
            if progress:
                progress(size_bytes)
            return
        if _put_parts(bucket, key, fd, size_bytes, sha256=sha256, progress=progress, resume=True):
            return
        logger.info("the multipart upload of %s was aborted by another process; starting again", key)
        if not _put_parts(bucket, key, fd, size_bytes, sha256=sha256, progress=None, resume=False):
            raise StoreUnavailableError(
                f"Could not write object {key!r} to {bucket.requests.where}: its multipart upload was aborted "
                "twice by another process. Check whether another program or a lifecycle rule aborts uploads.",
                key=key,
            )
    finally:
        os.close(fd)


def presign_upload(bucket: Bucket, key: str, *, size_bytes: int, expires_seconds: int) -> PresignedPut:
    """Start a multipart upload whose parts a client sends.

    A small object is also uploaded this way, as a single part. The URL of a plain put would stay valid until it
    expires, so the bytes could be changed after their digest was checked. The URLs of a multipart upload become invalid
    with its completion.
    """
    full_key = bucket.full_key(key)
    part_size = part_size_for(size_bytes, bucket.part_size_bytes)
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_seconds)
    upload_id = begin_upload(bucket, key)
    urls = tuple(
        bucket.client.generate_presigned_url(
            "upload_part",
            Params={"Bucket": bucket.name, "Key": full_key, "UploadId": upload_id, "PartNumber": number},
            ExpiresIn=expires_seconds,
        )
        for number in range(1, max(1, -(-size_bytes // part_size)) + 1)
    )
    return PresignedPut(upload_id=upload_id, part_size_bytes=part_size, urls=urls, expires_at=expires_at)


def complete_upload(bucket: Bucket, key: str, upload_id: str) -> None:
    """Assemble the parts that are on the server.

    Raises:
        ObjectNotFoundError: The upload does not exist (it was completed or aborted before).
    """
    parts = _list_parts(bucket, key, upload_id)
    _complete(bucket, key, upload_id, {number: part.etag for number, part in parts.items()})


def abort_incomplete(bucket: Bucket, begun_before: datetime) -> int:
    """Abort the multipart uploads below the store's prefix that started before a moment by the store's clock."""
    aborted = 0
    for full_key, upload_id, begun_at in _list_uploads(bucket, bucket.prefix):
        if begun_at < begun_before:
            abort_upload(bucket, full_key.removeprefix(bucket.prefix), upload_id)
            aborted += 1
    return aborted


def _put_single(bucket: Bucket, key: str, fd: int, size_bytes: int, *, sha256: str) -> None:
    data = bytearray(size_bytes)
    check_size(key, expected=size_bytes, found=read_into(fd, memoryview(data), 0))
    check_digest(key, expected=sha256, found=hashlib.sha256(data).hexdigest())
    full_key = bucket.full_key(key)
    bucket.requests.run(
        "write", lambda: bucket.client.put_object(Bucket=bucket.name, Key=full_key, Body=cast("bytes", data)), key=key
    )


def _put_parts(
    bucket: Bucket,
    key: str,
    fd: int,
    size_bytes: int,
    *,
    sha256: str,
    progress: ProgressCallback | None,
    resume: bool,
) -> bool:
    """Send the parts; return False if the multipart upload was completed or aborted in the meantime."""
    upload = (_find_upload(bucket, key) if resume else None) or _Upload(begin_upload(bucket, key), {})
    try:
        etags, found = _Sender(bucket, key, upload, SharedProgress(progress)).send(fd, size_bytes)
    except StoreError as error:
        if code_of(error.__cause__) in _GONE:
            return False
        raise
    if found != sha256:
        abort_upload(bucket, key, upload.id)
        check_digest(key, expected=sha256, found=found)
    try:
        _complete(bucket, key, upload.id, etags)
    except StoreError as error:
        if code_of(error.__cause__) not in _GONE:
            raise
        # Either the upload succeeded and an earlier response was lost, or it was aborted. The ETag shows which.
        return bucket.size_and_etag(key) == (size_bytes, _etag_of_parts(etags))
    return True


class _Sender:
    """Reads and hashes the file in order in the calling thread, and sends parts from several others."""

    def __init__(self, bucket: Bucket, key: str, upload: _Upload, progress: ProgressCallback) -> None:
        self._bucket = bucket
        self._key = key
        self._full_key = bucket.full_key(key)
        self._upload = upload
        self._progress = progress
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._stop = threading.Event()

    def send(self, fd: int, size_bytes: int) -> tuple[dict[int, str], str]:
        """Send the missing parts; return the parts' ETags by number, and the SHA-256 of the whole file."""
        part_size = part_size_for(size_bytes, self._bucket.part_size_bytes)
        count = -(-size_bytes // part_size)
        workers = min(self._bucket.concurrency, count)
        for _ in range(workers + 1):  # one to read into while the others are being sent
            self._free.put(bytearray(part_size))
        digest = hashlib.sha256()
        etags: dict[int, str | Future[str]] = {}
        with ThreadPoolExecutor(workers, thread_name_prefix="upload") as pool:
            try:
                for number in range(1, count + 1):
                    buffer = self._free.get()
                    if self._stop.is_set():
                        break
                    start = (number - 1) * part_size
                    part = memoryview(buffer)[: min(part_size, size_bytes - start)]
                    read = read_into(fd, part, start)
                    if read < len(part):
                        check_size(self._key, expected=size_bytes, found=start + read)
                    digest.update(part)
                    there = self._upload.parts.get(number)
                    if there and there.size_bytes == len(part) and there.etag == _md5(part):
                        etags[number] = there.etag
                        self._free.put(buffer)
                        self._progress(len(part))
                    else:
                        etags[number] = pool.submit(self._send_part, number, buffer, len(part))
                sent = {number: etag if isinstance(etag, str) else etag.result() for number, etag in etags.items()}
                return sent, digest.hexdigest()
            finally:
                self._stop.set()

    def _send_part(self, number: int, buffer: bytearray, size_bytes: int) -> str:
        try:
            if self._stop.is_set():
                return ""  # the error of another part is about to be raised
            body = buffer if size_bytes == len(buffer) else buffer[:size_bytes]
            etag = self._bucket.requests.run(
                "write",
                lambda: self._bucket.client.upload_part(
                    Bucket=self._bucket.name,
                    Key=self._full_key,
                    UploadId=self._upload.id,
                    PartNumber=number,
                    Body=cast("bytes", body),  # boto3 accepts a bytearray, but its stubs do not declare it
                )["ETag"],
                key=self._key,
            )
            self._progress(size_bytes)
            return etag.strip('"')
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._free.put(buffer)


def begin_upload(bucket: Bucket, key: str) -> str:
    """Start a multipart upload; return its id."""
    full_key = bucket.full_key(key)
    return bucket.requests.run(
        "start the upload of",
        lambda: bucket.client.create_multipart_upload(Bucket=bucket.name, Key=full_key)["UploadId"],
        key=key,
    )


def _find_upload(bucket: Bucket, key: str) -> _Upload | None:
    full_key = bucket.full_key(key)
    try:
        found = [(at, upload_id) for k, upload_id, at in _list_uploads(bucket, full_key) if k == full_key]
        if not found:
            return None
        _, upload_id = max(found)
        parts = _list_parts(bucket, key, upload_id)
    except StoreError as error:
        # Not permitted, not supported, or just completed: there is nothing to resume.
        logger.debug("no upload of %s to resume: %s", key, error)
        return None
    logger.info("resuming the upload of %s: %d parts already exist", key, len(parts))
    return _Upload(upload_id, parts)


def _list_uploads(bucket: Bucket, prefix: str) -> list[tuple[str, str, datetime]]:
    """Return (key in the bucket, upload id, start time) of every unfinished multipart upload below a prefix."""

    def attempt() -> list[tuple[str, str, datetime]]:
        pages = bucket.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=prefix)
        return [
            (upload["Key"], upload["UploadId"], upload["Initiated"])
            for page in pages
            for upload in page.get("Uploads", [])
        ]

    return bucket.requests.run("list the unfinished uploads", attempt)


def _list_parts(bucket: Bucket, key: str, upload_id: str) -> dict[int, _Part]:
    full_key = bucket.full_key(key)

    def attempt() -> dict[int, _Part]:
        pages = bucket.client.get_paginator("list_parts").paginate(Bucket=bucket.name, Key=full_key, UploadId=upload_id)
        return {
            part["PartNumber"]: _Part(part["Size"], part["ETag"].strip('"'))
            for page in pages
            for part in page.get("Parts", [])
        }

    return bucket.requests.run("list the uploaded parts of", attempt, key=key)


def _complete(bucket: Bucket, key: str, upload_id: str, etags: dict[int, str]) -> None:
    full_key = bucket.full_key(key)
    bucket.requests.run(
        "complete the upload of",
        lambda: bucket.client.complete_multipart_upload(
            Bucket=bucket.name,
            Key=full_key,
            UploadId=upload_id,
            MultipartUpload={"Parts": [{"PartNumber": n, "ETag": f'"{etags[n]}"'} for n in sorted(etags)]},
        ),
        key=key,
    )


def abort_upload(bucket: Bucket, key: str, upload_id: str) -> None:
    """Abort a multipart upload; a missing upload is not an error."""
    full_key = bucket.full_key(key)

    def attempt() -> None:
        try:
            bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=full_key, UploadId=upload_id)
        except boto.ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise

    bucket.requests.run("abort the upload of", attempt, key=key)


def _md5(data: memoryview) -> str:
    # S3's ETag of a part; the SHA-256 of the whole file verifies the content.
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _etag_of_parts(etags: dict[int, str]) -> str:
    try:
        digests = b"".join(bytes.fromhex(etags[number]) for number in sorted(etags))
    except ValueError:  # encrypted buckets have ETags of other kinds
        return ""
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"
