"""Files of a model in a bucket, from a real HTTP server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.errors import NotFoundError
from controlplane.sources.errors import SourceUnavailableError
from controlplane.sources.s3 import S3Folder
from tests.support.moto import moto_server
from tests.support.processes import free_port
from tests.support.s3server import S3Server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def test_files_below_a_prefix_are_listed_and_downloaded(server: S3Server, tmp_path: Path) -> None:
    import boto3

    bucket = server.new_bucket()
    client = boto3.client("s3", endpoint_url=server.endpoint_url)
    for key in ("1/artifacts/MLmodel", "1/artifacts/data/model.pth", "1/artifacts2/other"):
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    folder = S3Folder(bucket, "1/artifacts", server.endpoint_url)
    assert sorted(folder.list_files()) == ["MLmodel", "data/model.pth"]
    folder.download("data/model.pth", tmp_path / "a" / "model.pth")
    assert (tmp_path / "a" / "model.pth").read_bytes() == b"1/artifacts/data/model.pth"
    with pytest.raises(NotFoundError, match="none does not exist"):
        folder.download("none", tmp_path / "none")
    with pytest.raises(NotFoundError, match="does not exist"):
        S3Folder("no-such-bucket", "1", server.endpoint_url).list_files()


def test_unreachable_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SourceUnavailableError, match="unreachable"):
        S3Folder("bucket", "1", f"http://127.0.0.1:{free_port()}").list_files()
