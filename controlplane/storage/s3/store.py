"""A store in an S3 bucket: AWS, MinIO, Ceph RGW, or any other service that passes the probe."""

import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from botocore import exceptions as boto

from controlplane.errors import ObjectNotFoundError, StoreUnavailableError
from controlplane.settings import StoreSettings
from controlplane.storage import localfile
from controlplane.storage.base import ObjectInfo, PresignedPut, ProgressCallback
from controlplane.storage.keys import check_folder, check_key, check_prefix, check_range
from controlplane.storage.s3 import copy, upload
from controlplane.storage.s3.bucket import MAX_KEYS_PER_LIST, Bucket
from controlplane.storage.s3.client import Requests, code_of, make_client, status_of
from controlplane.storage.s3.download import ObjectReader, download_file

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ListObjectsV2RequestTypeDef


class S3Store:
    """An `ObjectStore` in a bucket.

    Args:
        bucket: The bucket's name; it must exist.
        prefix: Prefix of every key, without a ``/`` at either end; may be empty.
        settings: Endpoint, credentials (boto3's own chain unless given), part size, concurrency, deadline, retries.

    Raises:
        InvalidInputError: The settings are invalid.
        StoreAccessError: The credentials cannot be read.
    """

    def __init__(self, bucket: str, prefix: str, settings: StoreSettings) -> None:
        where = f"s3://{bucket} at {settings.endpoint_url or 'AWS'}"
        self._bucket = Bucket(
            client=make_client(settings),
            requests=Requests(where=where, retries=settings.retries),
            name=bucket,
            prefix=f"{check_key(prefix)}/" if prefix else "",
            part_size_bytes=settings.part_size_bytes,
            concurrency=settings.concurrency,
        )
        self._client = self._bucket.client
        self._requests = self._bucket.requests

    @property
    def url(self) -> str:
        """Return ``s3://bucket/prefix``."""
        return f"s3://{self._bucket.name}/{self._bucket.prefix}".rstrip("/")

    def check_bucket(self) -> None:
        """Check that the bucket exists and is accessible.

        Raises:
            StoreUnavailableError: The endpoint cannot be reached, or the bucket does not exist.
            StoreAccessError: The credentials or permissions are insufficient.
        """

        def attempt() -> bool:
            try:
                self._client.head_bucket(Bucket=self._bucket.name)
            except boto.ClientError as error:
                if status_of(error) == 404:
                    return False
                raise
            return True

        if not self._requests.run("open the store", attempt):
            raise StoreUnavailableError(
                f"The bucket {self._requests.where} does not exist. Create it, or correct the store's URL.",
                bucket=self._bucket.name,
            )

    def create(self, key: str, data: bytes) -> None:
        """See `ObjectStore.create`."""
        full_key = self._bucket.full_key(key)
        self._requests.run(
            "write",
            lambda: self._client.put_object(Bucket=self._bucket.name, Key=full_key, Body=data, IfNoneMatch="*"),
            key=key,
            commit=True,
        )

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        check_range(start, length)
        full_key = self._bucket.full_key(key)
        # HTTP cannot express an empty range; one byte also shows whether the object exists.
        end = "" if length is None else start + max(length, 1) - 1

        def attempt() -> bytes:
            if start == 0 and length is None:
                found = self._client.get_object(Bucket=self._bucket.name, Key=full_key)
            else:
                try:
                    found = self._client.get_object(
                        Bucket=self._bucket.name, Key=full_key, Range=f"bytes={start}-{end}"
                    )
                except boto.ClientError as error:
                    if code_of(error) == "InvalidRange" or status_of(error) == 416:
                        return b""
                    raise
            with found["Body"] as body:
                return body.read()

        data = self._requests.run("read", attempt, key=key)
        return data if length is None else data[:length]

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        full_key = self._bucket.full_key(key)

        def attempt() -> ObjectInfo | None:
            try:
                found = self._client.head_object(Bucket=self._bucket.name, Key=full_key)
            except boto.ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
            return ObjectInfo(
                key, found["ContentLength"], found["LastModified"].astimezone(UTC), found["ETag"].strip('"')
            )

        return self._requests.run("inspect", attempt, key=key)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        check_prefix(prefix)
        count = 0
        for page in self._pages(prefix, start_after=start_after, delimiter="", limit=limit):
            for found in page.get("Contents", []):
                if count == limit:
                    return
                key = found["Key"].removeprefix(self._bucket.prefix)
                yield ObjectInfo(key, found["Size"], found["LastModified"].astimezone(UTC), found["ETag"].strip('"'))
                count += 1

    def list_folders(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `ObjectStore.list_folders`."""
        check_folder(prefix)
        count = 0
        # "0" is the character after "/": it sorts after everything in the folder `start_after` and before any other
        # folder.
        after = f"{prefix}{start_after}0" if start_after else ""
        for page in self._pages(prefix, start_after=after, delimiter="/", limit=limit):
            for found in page.get("CommonPrefixes", []):
                if count == limit:
                    return
                yield found["Prefix"].removeprefix(self._bucket.prefix + prefix).removesuffix("/")
                count += 1

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        full_key = self._bucket.full_key(key)
        self._requests.run(
            "delete", lambda: self._client.delete_object(Bucket=self._bucket.name, Key=full_key), key=key
        )

    def put_file(self, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None = None) -> None:
        """See `ObjectStore.put_file`."""
        with localfile.translated(f"read {source}"):
            upload.upload_file(self._bucket, key, source, sha256=sha256, progress=progress)

    def get_file(
        self, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None = None
    ) -> None:
        """See `ObjectStore.get_file`."""
        with localfile.translated(f"write {target}"):
            download_file(self._bucket, key, target, size_bytes=size_bytes, sha256=sha256, progress=progress)

    def open(self, key: str) -> BinaryIO:
        """See `ObjectStore.open`."""
        return cast("BinaryIO", io.BufferedReader(ObjectReader(self._bucket, key), buffer_size=1024 * 1024))

    def presign_put(self, key: str, *, size_bytes: int, expires_seconds: int) -> PresignedPut | None:
        """See `ObjectStore.presign_put`. The written content is not verified: check the digest after completion."""
        return upload.presign_upload(self._bucket, key, size_bytes=size_bytes, expires_seconds=expires_seconds)

    def complete_presigned(self, key: str, upload_id: str) -> None:
        """See `ObjectStore.complete_presigned`."""
        upload.complete_upload(self._bucket, key, upload_id)

    def move(self, source: str, target: str) -> None:
        """See `ObjectStore.move`. The server copies the bytes, provided that the object is unchanged."""
        found = self._bucket.size_and_etag(source)
        if found is None:
            raise ObjectNotFoundError(f"Object {source!r} does not exist in {self._requests.where}.", key=source)
        copy.copy_object(self._bucket, source, target, size_bytes=found[0], etag=found[1])
        self.delete(source)

    def abort_incomplete(self, begun_before: datetime) -> int:
        """See `ObjectStore.abort_incomplete`."""
        return upload.abort_incomplete(self._bucket, begun_before)

    def close(self) -> None:
        """See `ObjectStore.close`."""
        self._client.close()

    def _pages(
        self, prefix: str, *, start_after: str, delimiter: str, limit: int | None
    ) -> "Iterator[ListObjectsV2OutputTypeDef]":
        size = MAX_KEYS_PER_LIST if limit is None else min(limit, MAX_KEYS_PER_LIST)
        if size <= 0:
            return
        full_prefix, after, token = self._bucket.prefix + prefix, start_after and self._bucket.prefix + start_after, ""
        while True:
            page = self._requests.run("list", self._page_request(full_prefix, after, delimiter, size, token))
            yield page
            token = page.get("NextContinuationToken", "")
            if not page["IsTruncated"] or not token:
                return

    def _page_request(
        self, prefix: str, start_after: str, delimiter: str, size: int, token: str
    ) -> "Callable[[], ListObjectsV2OutputTypeDef]":
        request: ListObjectsV2RequestTypeDef = {"Bucket": self._bucket.name, "Prefix": prefix, "MaxKeys": size}
        if delimiter:
            request["Delimiter"] = delimiter
        if token:
            request["ContinuationToken"] = token
        elif start_after:
            request["StartAfter"] = start_after
        return lambda: self._client.list_objects_v2(**request)
