"""The bucket as the transfer modules use it: a client, its retries, and the store's prefix in the bucket."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore import exceptions as boto

from controlplane.storage.keys import check_key
from controlplane.storage.s3.client import Requests, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Limits of the S3 protocol.
MAX_PARTS = 10_000
MAX_KEYS_PER_LIST = 1000


@dataclass(frozen=True, slots=True)
class Bucket:
    """The location of the objects, and the client to access them.

    Attributes:
        client: Makes one attempt per call; every call goes through ``requests``.
        requests: The retries.
        name: The bucket's name.
        prefix: Empty, or ends in ``/``.
        part_size_bytes: Size of a part, for uploads and downloads.
        concurrency: Number of parts transferred at once.
    """

    client: "S3Client"
    requests: Requests
    name: str
    prefix: str
    part_size_bytes: int
    concurrency: int

    def full_key(self, key: str) -> str:
        """Return the key in the bucket.

        Raises:
            InvalidInputError: The key is not valid in every store.
        """
        return self.prefix + check_key(key)

    def size_and_etag(self, key: str) -> tuple[int, str] | None:
        """Return the size and the ETag (unquoted) of an object; None if it does not exist."""

        def attempt() -> tuple[int, str] | None:
            try:
                found = self.client.head_object(Bucket=self.name, Key=self.full_key(key))
            except boto.ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
            return found["ContentLength"], found["ETag"].strip('"')

        return self.requests.run("inspect", attempt, key=key)


def part_size_for(size_bytes: int, wanted_bytes: int) -> int:
    """Return the part size for an object: ``wanted_bytes``, or more (whole MiB) to stay within 10,000 parts."""
    least = -(-size_bytes // MAX_PARTS)
    mib = 1024 * 1024
    return max(wanted_bytes, -(-least // mib) * mib)
