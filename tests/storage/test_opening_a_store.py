"""Opening a store from the settings gives a usable store, or a message that says what to do."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from controlplane.errors import InvalidInputError, StoreAccessError, StoreUnavailableError
from controlplane.settings import StoreSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.factory import open_store
from controlplane.storage.probe import check_store
from tests.storage.conftest import Behind
from tests.support.processes import free_port
from tests.support.s3server import S3Server


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "file://{data}/store"),
        ("memory://", "memory://"),
        ("file://{data}/elsewhere", "file://{data}/elsewhere"),
        ("file://{data}/with%20space", "file://{data}/with%20space"),
    ],
)
def test_urls_of_local_stores(url: str, expected: str, tmp_path: Path) -> None:
    store = open_store(StoreSettings(url=url.format(data=tmp_path)), tmp_path)
    assert store.url == expected.format(data=tmp_path)
    check_store(store)


@pytest.mark.parametrize(
    "url",
    ["relative/path", "/absolute", "file://host/path", "file:relative", "s3:///prefix", "s3://", "gs://bucket",
     "http://host/x", "s3://bucket/../x", "s3://bucket/x?versioning=1", "memory://x", "s3://[bad/x"],
)  # fmt: skip
def test_unsupported_url_error_lists_supported_urls(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_store(StoreSettings(url=url), tmp_path)
    if ".." not in url:
        assert "file:///absolute/path" in caught.value.message


def test_credentials_in_a_url_are_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_store(StoreSettings(url="s3://key:topsecret@bucket/x"), tmp_path)
    assert "topsecret" not in str(caught.value)
    assert "SECRET_ACCESS_KEY" in caught.value.message


def test_missing_bucket_is_reported(moto: S3Server, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        open_store(moto.settings("no-such-bucket"), tmp_path)
    assert "no-such-bucket" in caught.value.message
    assert moto.endpoint_url in caught.value.message
    assert "Create it" in caught.value.message


def test_unreachable_endpoint_is_reported(moto: S3Server, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailableError) as caught:
        open_store(moto.settings("bucket", endpoint_url=endpoint, retries=1), tmp_path)
    assert endpoint in caught.value.message
    assert moto.secret_access_key not in caught.value.message


def test_invalid_endpoint_url_is_reported(moto: S3Server, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="localhost"):
        open_store(moto.settings("bucket", endpoint_url="localhost"), tmp_path)


def test_missing_credentials_are_reported(moto: S3Server, tmp_path: Path) -> None:
    settings = moto.settings("bucket", access_key_id=None, secret_access_key=None)
    with pytest.raises(StoreAccessError):
        open_store(settings, tmp_path)


def test_credentials_come_from_the_boto3_chain(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret_access_key)
    settings = moto.settings(moto.new_bucket(), access_key_id=None, secret_access_key=None)
    store = open_store(settings, tmp_path)
    check_store(store)
    store.close()


def test_a_store_may_be_a_whole_bucket(moto: S3Server, tmp_path: Path) -> None:
    bucket = moto.new_bucket()
    store = open_store(moto.settings(bucket, prefix=""), tmp_path)
    assert store.url == f"s3://{bucket}"
    store.create("a/b", b"1")
    assert [info.key for info in store.list("")] == ["a/b"]
    assert list(store.list_folders("")) == ["a"]
    store.close()


def test_store_does_not_see_objects_outside_its_prefix(moto: S3Server, tmp_path: Path) -> None:
    bucket = moto.new_bucket()
    ours, theirs = (open_store(moto.settings(bucket, prefix=prefix), tmp_path) for prefix in ("team/a", "team/a2"))
    theirs.create("x", b"theirs")
    theirs.presign_put("y", size_bytes=1, expires_seconds=60)
    assert list(ours.list("")) == []
    assert ours.head("x") is None
    assert ours.abort_incomplete(datetime.now(UTC) + timedelta(days=1)) == 0
    ours.create("x", b"ours")
    assert theirs.get("x") == b"theirs"
    ours.close()
    theirs.close()


@pytest.fixture
def on_ceph(behind_ceph: Behind, tmp_path: Path) -> Iterator[tuple[S3Server, str, ObjectStore]]:
    server, bucket = behind_ceph.server, behind_ceph.bucket
    store = open_store(server.settings(bucket, behind_ceph.new_prefix()), tmp_path)
    yield server, bucket, store
    store.close()


@pytest.mark.ceph
@pytest.mark.parametrize("wrong", ["secret_access_key", "access_key_id"])
def test_wrong_credentials_are_reported(on_ceph: tuple[S3Server, str, ObjectStore], tmp_path: Path, wrong: str) -> None:
    server, bucket, _ = on_ceph
    value = SecretStr("not-the-secret") if wrong == "secret_access_key" else "unknown-key"
    changes: dict[str, Any] = {wrong: value}
    with pytest.raises(StoreAccessError) as caught:
        open_store(server.settings(bucket, **changes), tmp_path)
    assert bucket in caught.value.message
    assert "not-the-secret" not in caught.value.message


@pytest.mark.ceph
def test_presigned_url_permits_only_its_part(on_ceph: tuple[S3Server, str, ObjectStore]) -> None:
    _, _, store = on_ceph
    presigned = store.presign_put("blobs/a", size_bytes=3, expires_seconds=600)
    assert presigned is not None
    (url,) = presigned.urls
    with httpx.Client(trust_env=False) as client:
        assert client.put(url.replace("blobs/a", "blobs/b"), content=b"abc").status_code == 403
        assert client.put(url.replace("partNumber=1", "partNumber=2"), content=b"abc").status_code == 403
        assert client.get(url).status_code in {403, 405}
        assert client.put(url, content=b"abc").status_code == 200
    store.complete_presigned("blobs/a", presigned.upload_id)
    assert store.get("blobs/a") == b"abc"
