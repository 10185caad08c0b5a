"""A garbage collector with a clock that is ahead must not remove the blobs of a publish in progress, and the publish
must not be acknowledged without them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.errors import ClockSkewError
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.clock import StoreClock
from controlplane.storage.filesystem import FilesystemStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import artifact, new_registry, require_readable


def test_collector_eight_days_ahead_keeps_blobs_of_a_publish_in_progress(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path / "store")
    paused, go = threading.Event(), threading.Event()

    def slow(operation: str, key: str) -> None:  # a publisher that is slow between its upload and its commit
        if operation == "create" and key.startswith("models/"):
            paused.set()
            assert go.wait(60)

    publisher = new_registry(HookedStore(store, before=slow), tmp_path / "c1")
    ahead = StoreClock(store, machine=lambda: datetime.now(UTC) + timedelta(days=8))
    collector = Registry(
        store, new_registry(store, tmp_path / "c2").cache, head_max_age_seconds=1.0, gc=GcSettings(), clock=ahead
    )
    manifest, files = artifact(tmp_path / "a", model=b"x" * 100_000)
    with ThreadPoolExecutor(1) as pool:
        publish = pool.submit(publisher.publish, "victim", manifest, files, actor="p")
        try:
            assert paused.wait(60)
            with pytest.raises(ClockSkewError):
                collector.collect(dry_run=False)
            # The collector with the correct time sees the intent.
            report = new_registry(store, tmp_path / "c3").collect(dry_run=False, grace_seconds=0)
            assert (report.blobs_deleted, report.kept_by_publish) == (0, 2)
        finally:
            go.set()
        assert publish.result(60).number == 1
    require_readable(collector, "victim")
