"""Server-side copies within a bucket."""

from typing import TYPE_CHECKING

from controlplane.storage.s3.bucket import Bucket
from controlplane.storage.s3.upload import abort_upload, begin_upload, complete_upload

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

_SINGLE_MAX_BYTES = 5 * 1024**3
"""The limit of the S3 protocol for one copy, and for one part."""
_PART_BYTES = 1024**3


def copy_object(
    bucket: Bucket, source: str, target: str, *, size_bytes: int, etag: str, single_max_bytes: int = _SINGLE_MAX_BYTES
) -> None:
    """Copy an object, in parts if it is too large for one request.

    Args:
        bucket: The bucket.
        source: The key to copy from.
        target: The key to copy to; an existing object is replaced.
        size_bytes: The source's size.
        etag: The source's ETag; an object with another ETag is not copied.
        single_max_bytes: Above this size the copy is made in parts.

    Raises:
        ObjectNotFoundError: The source does not exist.
        ObjectExistsError: Another object has replaced the source.
    """
    origin: CopySourceTypeDef = {"Bucket": bucket.name, "Key": bucket.full_key(source)}
    full_key, quoted = bucket.full_key(target), f'"{etag}"'
    if size_bytes <= single_max_bytes:
        bucket.requests.run(
            "copy",
            lambda: bucket.client.copy_object(
                Bucket=bucket.name, Key=full_key, CopySource=origin, CopySourceIfMatch=quoted
            ),
            key=source,
        )
        return
    upload_id = begin_upload(bucket, target)
    part_bytes = min(_PART_BYTES, single_max_bytes)
    try:
        for number, start in enumerate(range(0, size_bytes, part_bytes), 1):
            last = min(start + part_bytes, size_bytes) - 1
            bucket.requests.run(
                "copy",
                lambda number=number, span=f"bytes={start}-{last}": bucket.client.upload_part_copy(  # type: ignore[misc]
                    Bucket=bucket.name,
                    Key=full_key,
                    UploadId=upload_id,
                    PartNumber=number,
                    CopySource=origin,
                    CopySourceIfMatch=quoted,
                    CopySourceRange=span,
                ),
                key=source,
            )
        complete_upload(bucket, target, upload_id)
    except BaseException:
        abort_upload(bucket, target, upload_id)
        raise
