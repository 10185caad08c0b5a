"""A machine whose clock is wrong or jumps must not cause the loss of acknowledged data."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.errors import ClockSkewError, StoreError, StoreUnavailableError
from controlplane.registry.holds import ModelHolds
from controlplane.registry.intents import INTENTS
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.clock import PREFIX, StoreClock
from controlplane.storage.filesystem import FilesystemStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import artifact, new_registry, publish, require_readable


def clock_off_by(store: ObjectStore, **off: float) -> StoreClock:
    return StoreClock(store, machine=lambda: datetime.now(UTC) + timedelta(**off))


def registry_off_by(store: ObjectStore, cache: Path, **off: float) -> Registry:
    """Return a registry on a machine whose clock is wrong."""
    plain = new_registry(store, cache)
    return Registry(store, plain.cache, head_max_age_seconds=0.0, gc=GcSettings(), clock=clock_off_by(store, **off))


def test_time_comes_from_the_store_and_not_from_the_machine(bucket: ObjectStore) -> None:
    clock = clock_off_by(bucket, days=8)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=30)
    assert abs(clock.peek() - datetime.now(UTC)) < timedelta(seconds=30)
    skew = clock.measure()
    assert abs(skew.seconds - 8 * 86_400) < 30
    assert not skew.within(60)
    assert StoreClock(bucket).measure().within(60)
    assert list(bucket.list(PREFIX)) == []


@pytest.mark.parametrize("days", [8, -8])
def test_machine_with_a_wrong_clock_collects_nothing(bucket: ObjectStore, tmp_path: Path, days: float) -> None:
    registry = registry_off_by(bucket, tmp_path / "c", days=days)
    registry.blobs.put_bytes(b"garbage")
    side = "ahead of" if days > 0 else "behind"
    with pytest.raises(ClockSkewError, match=rf"clock is 6912\d\d s {side} the clock of the store .*NTP"):
        registry.collect(dry_run=False, grace_seconds=0)
    assert new_registry(bucket, tmp_path / "d").collect(dry_run=True, grace_seconds=0).blobs_deleted == 1


def test_clock_measurement_is_kept_and_does_not_jump(store: ObjectStore) -> None:
    now = [1000.0]
    hooked = HookedStore(store)
    clock = StoreClock(hooked, steady=lambda: now[0])
    first = clock.now()
    now[0] += 60
    assert clock.now() - first == timedelta(seconds=60)
    assert [operation for operation, _ in hooked.calls] == ["create", "list", "delete"]


def test_a_check_is_not_earlier_than_an_object_that_exists(store: ObjectStore) -> None:
    def slow_answer(operation: str, key: str) -> None:
        if operation == "create":
            time.sleep(0.15)  # half counts as transfer to the store: the clock is behind

    hooked = HookedStore(store, after=slow_answer)
    clock = StoreClock(hooked)
    clock.now()
    hooked.after = lambda *_: None
    hooked.create("written/just-now", b"")
    info = hooked.head("written/just-now")
    assert info is not None
    assert clock.check() >= info.modified_at


def test_last_clock_measurement_is_kept_while_the_store_is_unavailable(store: ObjectStore) -> None:
    now = [1000.0]

    def away(operation: str, key: str) -> None:
        raise StoreUnavailableError("away")

    hooked = HookedStore(store)
    clock = StoreClock(hooked, steady=lambda: now[0])
    with pytest.raises(StoreUnavailableError):
        StoreClock(HookedStore(store, before=away)).now()
    first = clock.now()
    hooked.before = away
    now[0] += 10_000
    assert clock.now() - first == timedelta(seconds=10_000)


def age(root: Path, prefix: str, days: float) -> int:
    """Age the objects of a folder store as if the clock of its machine had jumped ahead by ``days``."""
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    aged = [path for path in (root / prefix).rglob("*") if path.is_file()]
    for path in aged:
        os.utime(path, (then, then))
    return len(aged)


def publish_while(root: Path, cache: Path, meanwhile: Callable[[], object], *, local: bool = True) -> Registry:
    """Publish m:1, and call ``meanwhile`` between the upload and the commit."""
    done: list[object] = []

    def before(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("models/") and not done:
            done.append(meanwhile())

    store = FilesystemStore(root)
    registry = new_registry(HookedStore(store, before=before), cache)
    manifest, files = artifact(cache.parent / "artifact", model=b"x" * 100_000)
    if not local:  # the client uploaded them to the bucket directly
        for digest, path in files.items():
            registry.blobs.put_file(path, digest)
        files = {}
    registry.publish("m", manifest, files, actor="tests", aliases=["champion"])
    assert done
    return registry


def test_publish_writes_collected_blobs_again(tmp_path: Path) -> None:
    """The clock and the files of one machine always agree, so only the publisher can detect the loss."""
    root = tmp_path / "store"

    def jump_and_collect() -> None:
        assert age(root, INTENTS, 8) == 1
        assert age(root, "blobs", 8) == 2
        report = new_registry(FilesystemStore(root), tmp_path / "c2").collect(dry_run=False)
        assert (report.intents_removed, report.blobs_deleted) == (1, 2)

    registry = publish_while(root, tmp_path / "c1", jump_and_collect)
    require_readable(registry, "m")
    assert registry.get_model("m").aliases == {"champion": 1}
    assert list(FilesystemStore(root).list(INTENTS)) == []


def test_publish_fails_without_a_version_if_its_blobs_are_lost(tmp_path: Path) -> None:
    root = tmp_path / "store"

    def jump_and_collect() -> None:
        age(root, INTENTS, 8)
        age(root, "blobs", 8)
        new_registry(FilesystemStore(root), tmp_path / "c2").collect(dry_run=False)

    with pytest.raises(StoreError, match=r"m:1 was not published: .*Check the clocks of the machines"):
        publish_while(root, tmp_path / "c1", jump_and_collect, local=False)
    registry = new_registry(FilesystemStore(root), tmp_path / "c3")
    head = registry.get_model("m")
    assert (head.live_versions, head.aliases) == ((), {})
    assert publish(registry, tmp_path / "f", b"again").number == 2


def test_deletion_time_of_a_version_comes_from_the_store(tmp_path: Path) -> None:
    """With the machine's time, a clock that is behind would end the grace period at once."""
    store = FilesystemStore(tmp_path / "store")
    registry = registry_off_by(store, tmp_path / "c", days=-8)
    publish(registry, tmp_path / "f", b"1")
    registry.delete_version("m", 1, actor="a")
    entry = registry.get_model("m").versions[0]
    assert entry.deleted_at is not None
    assert abs(entry.deleted_at - datetime.now(UTC)) < timedelta(minutes=5)


def test_hold_expires_by_the_clock_of_the_store(bucket: ObjectStore) -> None:
    taken = ModelHolds(bucket, clock=clock_off_by(bucket, days=-8).now).acquire("m", seconds=600)
    ahead = ModelHolds(bucket, clock=clock_off_by(bucket, days=8).now)
    assert ahead.list() == (taken,)
    assert ahead.sweep() == 0
    assert ahead.renew("m", taken.id, seconds=600).id == taken.id
