"""The contract of every store: memory, folder and bucket."""

import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from controlplane.errors import DigestMismatchError, InvalidInputError, ObjectExistsError, ObjectNotFoundError
from controlplane.storage.base import ObjectStore
from controlplane.storage.probe import PREFIX, check_store
from tests.storage.conftest import MIB, PART_BYTES, Case, Content, write_content

SMALL = 12
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
WRITERS = 16
ROUNDS = 8


def test_create_succeeds_once_per_key(store: ObjectStore) -> None:
    store.create("chains/a/1.json", b"first")
    with pytest.raises(ObjectExistsError):
        store.create("chains/a/1.json", b"second")
    assert store.get("chains/a/1.json") == b"first"


def test_one_of_sixteen_writers_wins_and_the_others_get_an_error(case: Case) -> None:
    if case.kind == "moto":
        pytest.skip("under load two of its writers may create one key: it looks first, and writes then")
    store = case.store
    barrier = threading.Barrier(WRITERS)

    def write(writer: int, key: str) -> bool:
        barrier.wait()
        try:
            store.create(key, f"writer {writer}".encode())
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        for number in range(ROUNDS):
            key = f"race/{number}"
            won = list(pool.map(write, range(WRITERS), [key] * WRITERS))
            assert won.count(True) == 1
            assert store.get(key) == f"writer {won.index(True)}".encode()


def test_a_deleted_key_is_free_again(store: ObjectStore) -> None:
    store.create("a/b/c", b"1")
    store.delete("a/b/c")
    assert store.head("a/b/c") is None
    store.delete("a/b/c")
    store.create("a/b/c", b"2")
    assert store.get("a/b/c") == b"2"


def test_head_returns_size_and_time(store: ObjectStore) -> None:
    store.create("a/b", b"12345")
    found = store.head("a/b")
    assert found is not None
    assert (found.key, found.size_bytes) == ("a/b", 5)
    assert abs(found.modified_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert store.head("a") is None
    assert store.head("a/b/c") is None


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 4, b"3456"),
        (8, 100, b"89"),
        (0, 0, b""),
        (10, 5, b""),
        (50, None, b""),
    ],
)
def test_ranged_get(store: ObjectStore, start: int, length: int | None, expected: bytes) -> None:
    store.create("digits", b"0123456789")
    assert store.get("digits", start=start, length=length) == expected


def test_a_negative_range_is_refused(store: ObjectStore) -> None:
    store.create("digits", b"0123456789")
    with pytest.raises(InvalidInputError):
        store.get("digits", start=-1)


def test_missing_key_is_reported(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError):
        store.get("no/such")
    with pytest.raises(ObjectNotFoundError):
        store.get("no/such", start=1, length=2)
    with pytest.raises(ObjectNotFoundError):
        store.open("no/such")
    with pytest.raises(ObjectNotFoundError):
        store.get_file("no/such", tmp_path / "out", size_bytes=20 * MIB, sha256="0" * 64)
    assert not any(path.is_file() for path in tmp_path.iterdir())


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../../b", "a/.", "a\x00b", "a\\b", ".incomplete/a"])
def test_key_that_could_leave_its_folder_is_rejected(store: ObjectStore, key: str) -> None:
    with pytest.raises(InvalidInputError):
        store.create(key, b"")
    with pytest.raises(InvalidInputError):
        store.get(key)
    with pytest.raises(InvalidInputError):
        store.delete(key)


def test_listing_is_in_the_order_of_utf8_bytes(store: ObjectStore) -> None:
    keys = ["a-b/x", "a.b/x", "a/x", "a/y/1", "a0", "a/é", "B/x", "a/\U0001f600", "a/\uff5e", "ab"]
    for key in keys:
        store.create(key, b"")
    expected = sorted(keys, key=lambda key: key.encode())
    assert [info.key for info in store.list("")] == expected
    for position, key in enumerate(expected):
        assert [info.key for info in store.list("", start_after=key)] == expected[position + 1 :]
    assert [info.key for info in store.list("a/")] == [key for key in expected if key.startswith("a/")]
    assert [info.key for info in store.list("a")] == [key for key in expected if key.startswith("a")]
    assert [info.key for info in store.list("a/y/", start_after="a/x")] == ["a/y/1"]
    if not store.url.startswith("s3:"):  # a bucket does both itself
        for prefix in ("a", "a-", "a/", "a/y/", *expected):
            for after in ("A", "a/y", "a/yz", "a/z/", "b/", "~", *expected):
                found = [info.key for info in store.list(prefix, start_after=after)]
                assert found == [key for key in expected if key.startswith(prefix) and key > after], (prefix, after)
    assert [info.key for info in store.list("a/", limit=2)] == [key for key in expected if key.startswith("a/")][:2]
    assert list(store.list("a/", limit=0)) == []
    assert list(store.list("nothing/")) == []


def test_listing_more_than_one_page(store: ObjectStore) -> None:
    keys = [f"many/{number:05d}" for number in range(1030)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.create(key, b""), keys))
    assert [info.key for info in store.list("many/")] == keys
    assert [info.key for info in store.list("many/", limit=1010)] == keys[:1010]
    assert [info.key for info in store.list("many/", start_after=keys[40], limit=3)] == keys[41:44]
    assert list(store.list_folders("")) == ["many"]


def test_folders_are_those_with_objects_below(store: ObjectStore) -> None:
    for key in ("models/a/1", "models/a/2", "models/a-b/1", "models/c/d/e", "models/file", "models0/x/y"):
        store.create(key, b"")
    assert list(store.list_folders("models/")) == ["a-b", "a", "c"]
    assert list(store.list_folders("models/", limit=2)) == ["a-b", "a"]
    assert list(store.list_folders("models/", start_after="a-b")) == ["a", "c"]
    assert list(store.list_folders("models/", start_after="a")) == ["c"]
    assert list(store.list_folders("models/c/")) == ["d"]
    assert list(store.list_folders("")) == ["models", "models0"]
    store.delete("models/c/d/e")
    assert list(store.list_folders("models/")) == ["a-b", "a"]


@pytest.mark.parametrize("size_bytes", [0, 1, 100_000, PART_BYTES, PART_BYTES + 1])
def test_files_are_returned_unchanged(store: ObjectStore, tmp_path: Path, size_bytes: int) -> None:
    content = write_content(tmp_path / "in", size_bytes)
    store.put_file("blobs/x", content.path, sha256=content.sha256)
    found = store.head("blobs/x")
    assert found is not None
    assert found.size_bytes == size_bytes
    store.get_file("blobs/x", tmp_path / "out", size_bytes=size_bytes, sha256=content.sha256)
    assert (tmp_path / "out").read_bytes() == content.data


def test_a_big_file_goes_up_and_down_with_progress(store: ObjectStore, big: Content, tmp_path: Path) -> None:
    up: list[int] = []
    down: list[int] = []
    store.put_file("blobs/big", big.path, sha256=big.sha256, progress=up.append)
    target = tmp_path / "out"
    target.write_bytes(b"what was there before")
    store.get_file("blobs/big", target, size_bytes=big.size_bytes, sha256=big.sha256, progress=down.append)
    assert target.read_bytes() == big.data
    assert sum(up) == sum(down) == big.size_bytes
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out"]


def test_a_file_can_be_put_again(store: ObjectStore, big: Content, tmp_path: Path) -> None:
    for _ in range(2):
        store.put_file("blobs/big", big.path, sha256=big.sha256)
    store.get_file("blobs/big", tmp_path / "out", size_bytes=big.size_bytes, sha256=big.sha256)


def test_streaming(store: ObjectStore, big: Content) -> None:
    store.put_file("blobs/big", big.path, sha256=big.sha256)
    with store.open("blobs/big") as stream:
        assert stream.read(10) == big.data[:10]
        assert stream.read() == big.data[10:]
        assert stream.read() == b""


@pytest.mark.parametrize("size_bytes", [SMALL, 2 * PART_BYTES])
def test_file_that_does_not_match_its_digest_is_not_kept(store: ObjectStore, tmp_path: Path, size_bytes: int) -> None:
    content = write_content(tmp_path / "in", size_bytes)
    with pytest.raises(DigestMismatchError) as caught:
        store.put_file("blobs/x", content.path, sha256="0" * 64)
    assert content.sha256 in caught.value.message
    assert store.head("blobs/x") is None
    assert store.abort_incomplete(datetime.now(UTC) + timedelta(days=1)) == 0


@pytest.mark.parametrize("size_bytes", [SMALL, 3 * PART_BYTES])
@pytest.mark.parametrize("damage", ["one bit", "cut short", "too long"])
def test_damaged_bytes_are_detected_and_leave_no_file(case: Case, tmp_path: Path, size_bytes: int, damage: str) -> None:
    content = write_content(tmp_path / "in", size_bytes)
    case.store.put_file("blobs/x", content.path, sha256=content.sha256)
    middle = size_bytes // 2
    damaged = {
        "one bit": content.data[:middle] + bytes([content.data[middle] ^ 1]) + content.data[middle + 1 :],
        "cut short": content.data[:-1],
        "too long": content.data + b"x",
    }[damage]
    case.damage("blobs/x", damaged)
    with pytest.raises(DigestMismatchError):
        case.store.get_file("blobs/x", tmp_path / "out", size_bytes=size_bytes, sha256=content.sha256)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in"]


def test_files_are_moved_in_constant_memory(case: Case, tmp_path: Path) -> None:
    if case.kind == "memory":
        pytest.skip("a store in memory holds what it is given")
    content_path = tmp_path / "in"
    content = write_content(content_path, 160 * MIB)
    size_bytes, sha256 = content.size_bytes, content.sha256
    del content
    tracemalloc.start()
    try:
        case.store.put_file("blobs/x", content_path, sha256=sha256)
        case.store.get_file("blobs/x", tmp_path / "out", size_bytes=size_bytes, sha256=sha256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Four parts of 5 MiB in transfer, two waiting, and the needs of HTTP and of other threads of the tests.
    assert peak < 80 * MIB


def test_presigned_parts_need_only_http(case: Case, big: Content) -> None:
    presigned = case.store.presign_put("blobs/big", size_bytes=big.size_bytes, expires_seconds=600)
    if case.kind in {"memory", "filesystem"}:
        assert presigned is None
        with pytest.raises(InvalidInputError):
            case.store.complete_presigned("blobs/big", "x")
        return
    assert presigned is not None
    assert len(presigned.urls) == 9
    assert presigned.expires_at > datetime.now(UTC) + timedelta(seconds=500)
    size = presigned.part_size_bytes
    with httpx.Client(trust_env=False) as client:
        for number, url in enumerate(presigned.urls):
            client.put(url, content=big.data[number * size : (number + 1) * size]).raise_for_status()
        assert case.store.head("blobs/big") is None
        case.store.complete_presigned("blobs/big", presigned.upload_id)
        assert case.store.get("blobs/big") == big.data
        # After the check, no URL can change the object.
        client.put(presigned.urls[0], content=b"something else")
    assert case.store.get("blobs/big") == big.data
    with pytest.raises(ObjectNotFoundError):
        case.store.complete_presigned("blobs/big", presigned.upload_id)


@pytest.mark.parametrize("size_bytes", [0, SMALL])
def test_a_small_object_is_one_presigned_part(case: Case, size_bytes: int) -> None:
    presigned = case.store.presign_put("blobs/s", size_bytes=size_bytes, expires_seconds=600)
    if presigned is None:
        pytest.skip("this store has no presigned uploads")
    (url,) = presigned.urls
    data = os.urandom(size_bytes)
    httpx.put(url, content=data, trust_env=False).raise_for_status()
    case.store.complete_presigned("blobs/s", presigned.upload_id)
    assert case.store.get("blobs/s") == data


def test_unfinished_uploads_are_dropped_when_they_are_old(case: Case) -> None:
    first = case.store.presign_put("blobs/a", size_bytes=SMALL, expires_seconds=600)
    if first is None:
        pytest.skip("this store has no presigned uploads")
    case.store.presign_put("blobs/b", size_bytes=SMALL, expires_seconds=600)
    if case.kind != "moto":  # moto reports that every upload began in 2010
        assert case.store.abort_incomplete(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert case.store.abort_incomplete(datetime.now(UTC) + timedelta(days=1)) == 2
    assert case.store.abort_incomplete(datetime.now(UTC) + timedelta(days=1)) == 0
    with pytest.raises(ObjectNotFoundError):
        case.store.complete_presigned("blobs/a", first.upload_id)


def test_the_probe_accepts_it_and_cleans_up(store: ObjectStore) -> None:
    check_store(store)
    assert list(store.list(PREFIX)) == []
