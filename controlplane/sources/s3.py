"""Files below a prefix of a bucket, with boto3's own credentials."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.errors import ForbiddenError, NotFoundError
from controlplane.sources.errors import SourceError, SourceUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class S3Folder:
    """A folder in a bucket.

    Args:
        bucket: The bucket.
        prefix: The folder's key, without a slash at the end.
        endpoint_url: The S3 server; None is AWS, or what ``AWS_ENDPOINT_URL`` names.
    """

    def __init__(self, bucket: str, prefix: str, endpoint_url: str | None = None) -> None:
        import boto3
        from botocore.exceptions import BotoCoreError

        self._bucket, self._prefix = bucket, prefix
        try:
            self._client: S3Client = boto3.session.Session().client("s3", endpoint_url=endpoint_url or None)
        except (BotoCoreError, ValueError) as error:
            raise SourceError(f"failed to open s3://{bucket}: {error}") from error

    def list_files(self) -> list[str]:
        """Return the paths of all files, relative to the folder.

        Raises:
            ControlPlaneError: See `download`.
        """
        start = f"{self._prefix}/"
        found = []
        with _translated(f"s3://{self._bucket}/{start}"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start):
                found += [item["Key"].removeprefix(start) for item in page.get("Contents", ())]
        return [path for path in found if path and not path.endswith("/")]

    def download(self, path: str, target: Path) -> None:
        """Write a file to disk.

        Raises:
            NotFoundError: There is no such file or bucket.
            ForbiddenError: The credentials are missing or not sufficient.
            SourceUnavailableError: The server cannot be reached.
            SourceError: The server failed.
        """
        key = f"{self._prefix}/{path}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with _translated(f"s3://{self._bucket}/{key}"):
            self._client.download_file(self._bucket, key, str(target))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn boto3's errors into those of this package."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        EndpointConnectionError,
        HTTPClientError,
        NoCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}:
            raise NotFoundError(f"{what} does not exist ({code})") from error
        if code in {"403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
            raise ForbiddenError(
                f"access to {what} is denied ({code}); check the AWS credentials", needed="s3:GetObject"
            ) from error
        raise SourceError(f"failed to read {what}: {code}") from error
    except NoCredentialsError as error:
        raise ForbiddenError(
            f"reading {what} needs AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use another of "
            "boto3's sources",
            needed="s3:GetObject",
        ) from error
    except (EndpointConnectionError, HTTPClientError) as error:
        raise SourceUnavailableError(
            f"the S3 server of {what} is unreachable ({type(error).__name__}); check the endpoint"
        ) from error
    except BotoCoreError as error:
        raise SourceError(f"failed to read {what}: {error}") from error
