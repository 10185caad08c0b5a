"""Faults of real S3 services: errors, throttling, resets, lost responses, stalls, bytes corrupted in transit."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.errors import (
    CommitOutcomeUnknownError,
    DigestMismatchError,
    ObjectExistsError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from controlplane.storage.probe import PREFIX, check_store
from controlplane.storage.s3 import client
from controlplane.storage.s3.store import S3Store
from tests.storage.conftest import PART_BYTES, Behind, Content, write_content
from tests.support.faultproxy import Action, Fault, FaultProxy, fault_proxy
from tests.support.s3server import S3Server

pytestmark = pytest.mark.slow

RETRIES = 3


@pytest.fixture
def direct(behind_moto: Behind) -> Iterator[tuple[S3Store, str]]:
    """The store without the proxy, to see its true content, and its prefix."""
    prefix = behind_moto.new_prefix()
    settings = behind_moto.server.settings(behind_moto.bucket, prefix, part_size_bytes=PART_BYTES)
    store = S3Store(behind_moto.bucket, prefix, settings)
    yield store, prefix
    store.close()


@pytest.fixture
def faulty(
    behind_moto: Behind, direct: tuple[S3Store, str], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Store]:
    """The same store through the proxy."""
    monkeypatch.setattr(client, "_BACKOFF_FIRST_SECONDS", 0.01)
    settings = behind_moto.server.settings(
        behind_moto.bucket,
        direct[1],
        endpoint_url=proxy.endpoint_url,
        part_size_bytes=PART_BYTES,
        retries=RETRIES,
        timeout_seconds=5,
        concurrency=2,
    )
    store = S3Store(behind_moto.bucket, direct[1], settings)
    yield store
    store.close()


def test_a_store_that_ignores_if_none_match_is_refused(faulty: S3Store, proxy: FaultProxy) -> None:
    check_store(faulty)
    proxy.strip_headers.add("if-none-match")
    with pytest.raises(UnsupportedStoreError) as caught:
        check_store(faulty)
    assert "If-None-Match" in caught.value.message
    assert "MinIO" in caught.value.message
    assert list(faulty.list(PREFIX)) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "InternalError"), (503, "SlowDown"), (502, "BadGateway"), (409, "ConditionalRequestConflict")],
)
def test_transient_errors_are_retried(faulty: S3Store, proxy: FaultProxy, status: int, code: str) -> None:
    proxy.inject(Fault(Action.ANSWER, "PUT", times=RETRIES, status=status, code=code))
    faulty.create("a", b"1")
    proxy.inject(Fault(Action.ANSWER, "GET", times=RETRIES, status=status, code=code))
    assert faulty.get("a") == b"1"
    proxy.inject(Fault(Action.ANSWER, "GET", times=RETRIES, status=status, code=code))
    assert [info.key for info in faulty.list("")] == ["a"]
    proxy.inject(Fault(Action.ANSWER, "HEAD", times=RETRIES, status=503))
    assert faulty.head("a") is not None
    proxy.inject(Fault(Action.ANSWER, "DELETE", times=RETRIES, status=status, code=code))
    faulty.delete("a")
    assert faulty.head("a") is None


def test_abandoned_throttled_create_wrote_nothing(faulty: S3Store, proxy: FaultProxy) -> None:
    proxy.inject(Fault(Action.ANSWER, "PUT", times=RETRIES + 1, status=503, code="SlowDown"))
    with pytest.raises(StoreUnavailableError) as caught:
        faulty.create("a", b"1")
    assert proxy.count("PUT") == RETRIES + 1
    assert f"{RETRIES + 1} attempts" in caught.value.message
    assert proxy.endpoint_url in caught.value.message
    assert "tests-secret" not in caught.value.message


def test_commit_with_a_lost_response_meets_its_own_object(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str]
) -> None:
    proxy.inject(Fault(Action.LOSE_ANSWER, "PUT"))
    with pytest.raises(ObjectExistsError):
        faulty.create("a", b"commit 1")
    assert direct[0].get("a") == b"commit 1"


def test_commit_with_all_responses_lost_is_unknown(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str]
) -> None:
    proxy.inject(Fault(Action.LOSE_ANSWER, "PUT", times=RETRIES + 1))
    with pytest.raises(CommitOutcomeUnknownError):
        faulty.create("a", b"commit 1")
    assert direct[0].get("a") == b"commit 1"


def test_lost_response_followed_by_an_outage_is_unknown(faulty: S3Store, proxy: FaultProxy) -> None:
    proxy.inject(Fault(Action.LOSE_ANSWER, "PUT"))
    proxy.inject(Fault(Action.ANSWER, "PUT", times=RETRIES, status=503, code="SlowDown"))
    with pytest.raises(CommitOutcomeUnknownError):
        faulty.create("a", b"commit 1")


def test_stalled_request_times_out_and_is_retried(
    behind_moto: Behind, proxy: FaultProxy, direct: tuple[S3Store, str]
) -> None:
    direct[0].create("a", b"1")
    settings = behind_moto.server.settings(
        behind_moto.bucket, direct[1], endpoint_url=proxy.endpoint_url, timeout_seconds=0.5
    )
    store = S3Store(behind_moto.bucket, direct[1], settings)
    proxy.inject(Fault(Action.STALL, "GET"))
    assert store.get("a") == b"1"
    proxy.inject(Fault(Action.STALL, "PUT"))
    with pytest.raises(ObjectExistsError):  # the first attempt, whose response was lost, succeeded
        store.create("b", b"1")
    store.close()


def test_a_stale_connection_of_the_pool_is_replaced(faulty: S3Store, proxy: FaultProxy) -> None:
    faulty.create("a", b"1")
    proxy.inject(Fault(Action.RESET_REQUEST, "PUT"))
    faulty.create("b", b"1")
    assert faulty.get("b") == b"1"


def test_an_upload_survives_resets_and_throttling(faulty: S3Store, proxy: FaultProxy, big: Content) -> None:
    proxy.inject(Fault(Action.RESET_REQUEST, "PUT", contains="partNumber=2"))
    proxy.inject(Fault(Action.LOSE_ANSWER, "PUT", contains="partNumber=3"))
    proxy.inject(Fault(Action.ANSWER, "PUT", contains="partNumber=5", times=2, status=503, code="SlowDown"))
    proxy.inject(Fault(Action.ANSWER, "POST", contains="uploads", status=500, code="InternalError"))
    moved: list[int] = []
    faulty.put_file("blobs/big", big.path, sha256=big.sha256, progress=moved.append)
    assert sum(moved) == big.size_bytes
    assert faulty.get("blobs/big") == big.data


@pytest.mark.parametrize("action", [Action.LOSE_ANSWER, Action.RESET_REQUEST])
def test_lost_response_of_a_completed_upload_is_resolved(
    faulty: S3Store, proxy: FaultProxy, big: Content, action: Action
) -> None:
    proxy.inject(Fault(action, "POST", contains="uploadId="))
    faulty.put_file("blobs/big", big.path, sha256=big.sha256)
    assert faulty.get("blobs/big") == big.data
    assert proxy.count("PUT", "partNumber=") == 9  # nothing was sent twice


def test_interrupted_upload_is_resumed(faulty: S3Store, proxy: FaultProxy, big: Content) -> None:
    proxy.inject(Fault(Action.ANSWER, "PUT", contains="partNumber=7", times=RETRIES + 1, status=500, code="Oops"))
    with pytest.raises(StoreUnavailableError):
        faulty.put_file("blobs/big", big.path, sha256=big.sha256)
    assert faulty.head("blobs/big") is None
    proxy.seen.clear()
    moved: list[int] = []
    faulty.put_file("blobs/big", big.path, sha256=big.sha256, progress=moved.append)
    # Part 7, those after it, and 6 if it was interrupted; no part that had arrived.
    assert 1 <= proxy.count("PUT", "partNumber=") <= 4
    assert not any(proxy.count("PUT", f"partNumber={number}") for number in range(1, 6))
    assert sum(moved) == big.size_bytes
    assert faulty.get("blobs/big") == big.data


def test_uploaded_part_with_other_content_is_sent_again(
    faulty: S3Store, proxy: FaultProxy, behind_moto: Behind, direct: tuple[S3Store, str], big: Content
) -> None:
    client, bucket, key = behind_moto.client, behind_moto.bucket, f"{direct[1]}/blobs/big"
    upload_id = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = (big.data[:PART_BYTES], b"\0" * PART_BYTES, b"too short")
    for number, part in enumerate(parts, 1):
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=part)
    faulty.put_file("blobs/big", big.path, sha256=big.sha256)
    assert proxy.count("PUT", "partNumber=") == 8
    assert faulty.get("blobs/big") == big.data


def test_aborted_upload_starts_again(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str], big: Content
) -> None:
    proxy.inject(Fault(Action.ANSWER, "PUT", contains="partNumber=4", status=404, code="NoSuchUpload"))
    faulty.put_file("blobs/big", big.path, sha256=big.sha256)
    assert direct[0].get("blobs/big") == big.data


def test_a_download_survives_cuts_resets_and_throttling(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str], big: Content, tmp_path: Path
) -> None:
    direct[0].put_file("blobs/big", big.path, sha256=big.sha256)
    proxy.inject(Fault(Action.CUT_RESPONSE, "GET", times=2))
    proxy.inject(Fault(Action.ANSWER, "GET", times=2, status=503, code="SlowDown"))
    proxy.inject(Fault(Action.LOSE_ANSWER, "GET", skip=2))
    moved: list[int] = []
    faulty.get_file("blobs/big", tmp_path / "out", size_bytes=big.size_bytes, sha256=big.sha256, progress=moved.append)
    assert (tmp_path / "out").read_bytes() == big.data
    assert sum(moved) == big.size_bytes


def test_bit_flip_in_a_download_is_detected(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str], big: Content, tmp_path: Path
) -> None:
    direct[0].put_file("blobs/big", big.path, sha256=big.sha256)
    proxy.inject(Fault(Action.FLIP, "GET", skip=4))
    with pytest.raises(DigestMismatchError):
        faulty.get_file("blobs/big", tmp_path / "out", size_bytes=big.size_bytes, sha256=big.sha256)
    assert list(tmp_path.iterdir()) == []
    faulty.get_file("blobs/big", tmp_path / "out", size_bytes=big.size_bytes, sha256=big.sha256)
    assert (tmp_path / "out").read_bytes() == big.data


def test_a_download_that_fails_leaves_nothing(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str], big: Content, tmp_path: Path
) -> None:
    direct[0].put_file("blobs/big", big.path, sha256=big.sha256)
    proxy.inject(Fault(Action.ANSWER, "GET", skip=3, times=100, status=503))
    with pytest.raises(StoreUnavailableError):
        faulty.get_file("blobs/big", tmp_path / "out", size_bytes=big.size_bytes, sha256=big.sha256)
    assert list(tmp_path.iterdir()) == []


def test_stream_continues_after_a_lost_connection(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str], big: Content
) -> None:
    direct[0].put_file("blobs/big", big.path, sha256=big.sha256)
    proxy.inject(Fault(Action.CUT_RESPONSE, "GET", times=2))
    with faulty.open("blobs/big") as stream:
        assert stream.read() == big.data
    assert proxy.count("GET") == 3


def test_a_server_that_ignores_ranges_is_named(
    faulty: S3Store, proxy: FaultProxy, direct: tuple[S3Store, str], tmp_path: Path
) -> None:
    content = write_content(tmp_path / "in", 2 * PART_BYTES)
    direct[0].put_file("blobs/x", content.path, sha256=content.sha256)
    proxy.strip_headers.add("range")
    with pytest.raises(UnsupportedStoreError, match="Range"):
        faulty.get_file("blobs/x", tmp_path / "out", size_bytes=content.size_bytes, sha256=content.sha256)


@pytest.mark.ceph
def test_concurrent_uploads_of_the_same_blob_both_succeed(ceph: S3Server, big: Content) -> None:
    # Ceph answers NoSuchUpload for an upload that the other store has completed, as S3 does; moto answers 500.
    bucket = ceph.new_bucket()
    stores = [S3Store(bucket, "", ceph.settings(bucket, part_size_bytes=PART_BYTES)) for _ in range(2)]
    failures: list[BaseException] = []
    barrier = threading.Barrier(2)

    def publish(store: S3Store) -> None:
        barrier.wait()
        try:
            store.put_file("blobs/big", big.path, sha256=big.sha256)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert stores[0].get("blobs/big") == big.data
    for store in stores:
        store.close()


@pytest.mark.ceph
def test_bit_flip_in_an_upload_is_rejected_and_sent_again(
    ceph: S3Server, big: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_BACKOFF_FIRST_SECONDS", 0.01)
    bucket = ceph.new_bucket()
    with fault_proxy(ceph.endpoint_url) as proxy:
        store = S3Store(bucket, "", ceph.settings(bucket, endpoint_url=proxy.endpoint_url, part_size_bytes=PART_BYTES))
        proxy.inject(Fault(Action.FLIP_REQUEST, "PUT", contains="partNumber=3"))
        store.put_file("blobs/big", big.path, sha256=big.sha256)
        assert store.get("blobs/big") == big.data
        proxy.inject(Fault(Action.FLIP_REQUEST, "PUT"))
        store.create("a", b"as it was sent")
        assert store.get("a") == b"as it was sent"
        assert proxy.count("PUT", "/a") == 2
        store.close()
