"""A bucket as the transfer modules see it: a client, its retries, and where in the bucket the store lies."""

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
    """Where the objects are, and how to ask for them.

    Attributes:
        client: Tries once; every call goes through ``requests``.
        requests: The retries.
        name: The bucket.
        prefix: Empty, or ends in ``/``.
        part_size_bytes: Size of a part, up and down.
        concurrency: Parts moved at once.
    """

    client: "S3Client"
    requests: Requests
    name: str
    prefix: str
    part_size_bytes: int
    concurrency: int

    def full_key(self, key: str) -> str:
        """The key in the bucket.

        Raises:
            InvalidInputError: No store could hold this key.
        """
        return self.prefix + check_key(key)

    def size_and_etag(self, key: str) -> tuple[int, str] | None:
        """Size and ETag (unquoted) of an object, None where there is none."""

        def attempt() -> tuple[int, str] | None:
            try:
                found = self.client.head_object(Bucket=self.name, Key=self.full_key(key))
            except boto.ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
            return found["ContentLength"], found["ETag"].strip('"')

        return self.requests.run("look at", attempt, key=key)


def part_size_for(size_bytes: int, wanted_bytes: int) -> int:
    """The part size for an object: as wanted, or larger (whole MiB) where it would need more than 10,000 parts."""
    least = -(-size_bytes // MAX_PARTS)
    mib = 1024 * 1024
    return max(wanted_bytes, -(-least // mib) * mib)
