"""The common interface of the S3 servers of the tests."""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from pydantic import SecretStr

from controlplane.settings import StoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_bucket_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server.

    Attributes:
        kind: "ceph" or "moto".
        endpoint_url: Its address.
        access_key_id: A user of it.
        secret_access_key: That user's secret.
        suspend: Suspends that user, or lets it in again; None where the server knows no users.
    """

    kind: str
    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    suspend: Callable[[bool], None] | None = None

    def client(self) -> "S3Client":
        """A plain boto3 client, to look at what is there and to set things up. Close it."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def new_bucket(self) -> str:
        """Make a fresh bucket; returns its name."""
        name = f"tests-{os.getpid()}-{next(_bucket_numbers)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def settings(self, bucket: str, prefix: str = "registry", **changes: object) -> StoreSettings:
        """Store settings for a bucket of this server."""
        return StoreSettings(
            **{
                "url": f"s3://{bucket}/{prefix}".rstrip("/"),
                "endpoint_url": self.endpoint_url,
                "region": "us-east-1",
                "access_key_id": self.access_key_id,
                "secret_access_key": SecretStr(self.secret_access_key),
                **changes,
            }
        )
