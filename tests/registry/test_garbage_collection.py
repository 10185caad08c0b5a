"""Garbage collection during publishes: published versions stay readable, and unneeded blobs are deleted."""

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSpec
from controlplane.errors import StoreError
from controlplane.registry.blobs import blob_key
from controlplane.registry.cache import BlobCache
from controlplane.registry.intents import MARKER_STALE, write_marker
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.base import ObjectInfo, ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import artifact, new_registry, publish, require_readable


def collect(registry: Registry) -> int:
    return registry.collect(dry_run=False, grace_seconds=0).blobs_deleted


def blobs(store: ObjectStore) -> set[str]:
    return {info.key.rpartition("/")[2] for info in store.list("blobs/")}


def test_unreferenced_blobs_are_collected(registry: Registry, store: ObjectStore, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"one")
    publish(registry, tmp_path, b"two")
    shared, files = artifact(tmp_path / "s", model=b"two", weights=b"only in three")
    registry.publish("m", shared, files, actor="a")
    before = blobs(store)
    registry.delete_version("m", 3, actor="a")
    report = registry.collect(dry_run=True, grace_seconds=0)
    assert (report.blobs_scanned, report.blobs_deleted, report.kept_in_use) == (6, 2, 4)
    assert blobs(store) == before
    report = registry.collect(dry_run=False, grace_seconds=0)
    assert report.blobs_deleted == 2
    assert report.bytes_deleted > len(b"only in three")
    assert len(before - blobs(store)) == 2
    require_readable(registry, "m")
    assert collect(registry) == 0
    assert list(store.list("gc/")) == []


def test_blobs_younger_than_the_grace_period_are_kept(registry: Registry, store: ObjectStore, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"one")
    registry.delete_version("m", 1, actor="a")
    registry.blobs.put_bytes(b"left by a crashed publish")
    report = registry.collect(dry_run=False)  # the default grace period is a day
    assert (report.blobs_deleted, report.kept_by_grace, report.kept_in_use) == (0, 1, 2)
    assert registry.collect(dry_run=False, grace_seconds=3600).blobs_deleted == 0
    assert collect(registry) == 3


def test_old_blobs_of_a_recently_deleted_version_are_kept(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path / "store")
    registry = new_registry(store, tmp_path / "cache")
    publish(registry, tmp_path, b"one")
    for info in store.list("blobs/"):
        os.utime(tmp_path / "store" / info.key, (1e9, 1e9))
    registry.delete_version("m", 1, actor="a")
    assert registry.collect(dry_run=False, grace_seconds=3600).blobs_deleted == 0
    assert collect(registry) == 2


def test_blobs_of_a_deleted_model_are_collected(registry: Registry, store: ObjectStore, tmp_path: Path) -> None:
    publish(registry, tmp_path, b"one")
    registry.delete_model("m", actor="a")
    collect(registry)
    assert blobs(store) == set()


def test_held_blobs_are_kept_until_release(registry: Registry, store: ObjectStore) -> None:
    held = registry.blobs.put_bytes(b"uploaded by a client, to be published soon")
    key = registry.hold_blobs([held], "upload")
    report = registry.collect(dry_run=False, grace_seconds=0)
    assert (report.blobs_deleted, report.kept_by_publish) == (0, 1)
    registry.release_blobs(key)
    assert collect(registry) == 1


def test_abandoned_hold_expires(store: ObjectStore, tmp_path: Path) -> None:
    registry = Registry(
        store, BlobCache(tmp_path / "c", 0), head_max_age_seconds=0, gc=GcSettings(upload_max_age_seconds=1e-6)
    )
    registry.hold_blobs([registry.blobs.put_bytes(b"x")], "upload that never came back")
    assert registry.collect(dry_run=True, grace_seconds=0).intents_removed == 1
    assert len(list(store.list("publishing/"))) == 1
    report = registry.collect(dry_run=False, grace_seconds=0)
    assert (report.intents_removed, report.blobs_deleted) == (1, 1)
    assert list(store.list("publishing/")) == []


def test_blobs_of_a_deployed_tombstone_are_kept(store: ObjectStore, tmp_path: Path) -> None:
    """A process that is killed between the tombstone and the check after it can leave this state."""
    other = new_registry(store, tmp_path / "other")
    publish(other, tmp_path, b"1")

    class Killed(BaseException):
        pass

    def deploy_and_die(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("models/"):
            spec = DeploymentSpec(model="m", reference="m:1", version=1)
            other.deployments.put(spec, after=None, actor="a", reason="r")

    def die(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("models/"):
            raise Killed

    with pytest.raises(Killed):
        new_registry(HookedStore(store, before=deploy_and_die, after=die), tmp_path / "c").delete_version(
            "m", 1, actor="a"
        )
    for info in store.list("publishing/"):
        store.delete(info.key)
    assert collect(other) == 0


def test_missing_manifest_blocks_collection(store: ObjectStore, tmp_path: Path) -> None:
    registry = new_registry(store, tmp_path / "c")
    entry = publish(registry, tmp_path, b"1")
    registry.blobs.put_bytes(b"garbage")
    store.delete(blob_key(entry.manifest))
    registry = new_registry(store, tmp_path / "c")
    with pytest.raises(StoreError, match="m:1"):
        collect(registry)
    assert len(blobs(store)) == 2
    registry.delete_version("m", 1, actor="a")
    assert collect(registry) == 2


# The two sides of the protocol, step by step


def test_collector_sees_publish_that_began_before_its_listing(tmp_path: Path) -> None:
    store = MemoryStore()
    other = new_registry(store, tmp_path / "other")
    old = other.blobs.put_bytes(b"left by a crashed publish")

    def begin(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("gc/"):
            other.hold_blobs([old], "publish")  # after the choice of candidates, before the marker

    assert collect(new_registry(HookedStore(store, before=begin), tmp_path / "c")) == 0
    assert old in blobs(store)


def test_collector_sees_publish_that_ended_before_its_listing(tmp_path: Path) -> None:
    store = MemoryStore()
    other = new_registry(store, tmp_path / "other")
    manifest, files = artifact(tmp_path / "a", model=b"left by a crashed publish")
    other.blobs.put_bytes(b"left by a crashed publish")

    def publish_now(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("gc/"):
            other.publish("m", manifest, files, actor="a")

    assert collect(new_registry(HookedStore(store, before=publish_now), tmp_path / "c")) == 0
    require_readable(other, "m")


def test_collector_sees_publish_that_ended_between_its_listings(tmp_path: Path) -> None:
    """A publish commits and then removes its intent, so the collector must list the intents before the heads."""
    store = MemoryStore()
    manifest, files = artifact(tmp_path / "a", model=b"content")
    uploaded, may_commit, finished = threading.Event(), threading.Event(), threading.Event()
    looks: list[str] = []

    def publisher(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("models/"):
            uploaded.set()
            may_commit.wait(10)

    def collector(operation: str, key: str) -> None:
        if key in {"publishing/", "models/"} and list(store.list("gc/")):
            looks.append(key)
            may_commit.set()
            assert finished.wait(10)

    with ThreadPoolExecutor(1) as pool:
        registry = new_registry(HookedStore(store, before=publisher), tmp_path / "p")
        published = pool.submit(registry.publish, "m", manifest, files, actor="a")
        published.add_done_callback(lambda _: finished.set())
        assert uploaded.wait(10)
        assert collect(new_registry(HookedStore(store, after=collector), tmp_path / "c")) == 0
        published.result()
    assert len(looks) == 2
    require_readable(registry, "m")


def test_publisher_waits_for_a_marker_then_uploads_collected_blobs(tmp_path: Path) -> None:
    store = MemoryStore()
    content = b"left by a crashed publish"
    manifest, files = artifact(tmp_path / "a", model=content)
    new_registry(store, tmp_path / "x").blobs.put_bytes(content)
    met_marker = threading.Event()
    order: list[str] = []

    def collector(operation: str, key: str) -> None:
        if operation == "delete" and key.startswith("blobs/"):
            assert met_marker.wait(10)  # deletes only once the publisher has seen the marker
        if operation == "delete" and not key.startswith("probe/"):
            order.append(f"delete {key.partition('/')[0]}")

    def publisher(operation: str, key: str) -> None:
        if operation == "get" and key.startswith("gc/"):
            met_marker.set()
        if operation == "put_file":
            order.append("upload")

    marked = threading.Event()

    def started(operation: str, key: str) -> None:
        if operation == "list" and key == "publishing/" and list(store.list("gc/")):
            marked.set()  # the list of intents is empty

    with ThreadPoolExecutor(1) as pool:
        gc = new_registry(HookedStore(store, before=collector, after=started), tmp_path / "c")
        collected = pool.submit(collect, gc)
        assert marked.wait(10)
        registry = new_registry(HookedStore(store, after=publisher, before=publisher), tmp_path / "p")
        registry.publish("m", manifest, files, actor="a")
        assert collected.result() == 1
    assert order[:2] == ["delete blobs", "delete gc"]
    assert order[2] == "upload"
    require_readable(registry, "m")


class _Aged(HookedStore):
    """A store that reports garbage-collection markers as older than they are, by ``age``."""

    def __init__(self, store: ObjectStore, age: timedelta) -> None:
        super().__init__(store)
        self.age = age

    def list(self, prefix, *, start_after="", limit=None):
        for info in super().list(prefix, start_after=start_after, limit=limit):
            aged = info.modified_at - self.age if info.key.startswith("gc/") else info.modified_at
            yield ObjectInfo(info.key, info.size_bytes, aged)


def test_marker_of_a_dead_collector_blocks_no_publish(store: ObjectStore, tmp_path: Path) -> None:
    manifest, files = artifact(tmp_path / "a", model=b"1")
    write_marker(store, [manifest.files[0].sha256])
    aged = _Aged(store, MARKER_STALE + timedelta(seconds=1))
    registry = new_registry(aged, tmp_path / "c")
    assert registry.publish("m", manifest, files, actor="a").number == 1
    collect(registry)
    assert list(store.list("gc/")) == []
    require_readable(registry, "m")


def test_a_slow_collector_stops_before_its_marker_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.registry.gc._DELETING_SECONDS", 0.0)
    store = MemoryStore()
    registry = new_registry(store, tmp_path)
    registry.blobs.put_bytes(b"garbage")
    assert collect(registry) == 0
    assert list(store.list("gc/")) == []


def test_large_collections_are_done_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.registry.gc._BATCH", 7)
    store = HookedStore(MemoryStore())
    registry = new_registry(store, tmp_path)
    for number in range(20):
        registry.blobs.put_bytes(str(number).encode())
    assert collect(registry) == 20
    assert len([key for operation, key in store.calls if operation == "create" and key.startswith("gc/")]) == 3


# All of it together


def churn(registry: Registry, folder: Path, model: str, rounds: int) -> None:
    """Publish and delete a few contents repeatedly, so that blobs are shared, unused and needed again."""
    chance = random.Random(model)
    for _ in range(rounds):
        whose = chance.choice([model, "shared"])
        publish(registry, folder, f"{whose} {chance.randrange(3)}".encode(), model=model)
        require_readable(registry, model)
        for entry in registry.get_model(model).live_versions[:-2]:
            registry.delete_version(model, entry.number, actor="a")


def test_publishers_and_collectors_in_threads(store: ObjectStore, tmp_path: Path) -> None:
    stop = threading.Event()

    def run_collector(number: int) -> int:
        registry, deleted = new_registry(store, tmp_path / f"gc{number}"), 0
        while True:
            last = stop.is_set()  # run once more after the publishers have ended
            deleted += collect(registry)
            if last:
                return deleted

    with ThreadPoolExecutor(5) as pool:
        collectors = [pool.submit(run_collector, number) for number in range(2)]
        publishers = [
            pool.submit(churn, new_registry(store, tmp_path / f"c{n}"), tmp_path / f"f{n}", f"m{n}", 12)
            for n in range(3)
        ]
        try:
            for publisher in publishers:
                publisher.result()
        finally:
            stop.set()
        assert sum(collector.result() for collector in collectors) > 0
    registry = new_registry(store, tmp_path / "reader")
    for number in range(3):
        require_readable(registry, f"m{number}")
        assert registry.get_model(f"m{number}").next_number == 13


_COLLECT_UNTIL_TOLD = """
import select, sys
from pathlib import Path
from controlplane.storage.filesystem import FilesystemStore
from tests.support.registries import new_registry

folder = Path(sys.argv[1])
registry = new_registry(FilesystemStore(folder / "store"), folder / "gc")
print("ready", flush=True)
deleted, last = 0, False
while not last:
    last = bool(select.select([sys.stdin], [], [], 0)[0])
    deleted += registry.collect(dry_run=False, grace_seconds=0).blobs_deleted
print(deleted)
"""


def test_publishers_and_collectors_in_processes(tmp_path: Path) -> None:
    collector = subprocess.Popen(
        [sys.executable, "-c", _COLLECT_UNTIL_TOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert collector.stdout is not None
        assert collector.stdout.readline() == "ready\n"
        registry = new_registry(FilesystemStore(tmp_path / "store"), tmp_path / "cache")
        churn(registry, tmp_path / "f", "m", 25)
    finally:
        output, _ = collector.communicate("stop\n")
    assert collector.returncode == 0
    assert int(output) > 0
    require_readable(registry, "m")


def test_ages_use_the_clock_of_the_store(tmp_path: Path) -> None:
    """The clock of a filesystem store is the modification times of its files."""
    store = FilesystemStore(tmp_path / "store")
    registry = new_registry(store, tmp_path / "cache")
    digest = registry.blobs.put_bytes(b"old garbage")
    yesterday = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    os.utime(tmp_path / "store" / blob_key(digest), (yesterday, yesterday))
    registry.blobs.put_bytes(b"new garbage")
    report = registry.collect(dry_run=False)
    assert (report.blobs_deleted, report.kept_by_grace) == (1, 1)
