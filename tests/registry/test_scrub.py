"""The scrub: what it finds and repairs, what it costs, and that it continues where it stopped."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.domain.damage import Damage
from controlplane.domain.names import Reference
from controlplane.registry.blobs import blob_key
from controlplane.registry.registry import Registry
from controlplane.registry.scrub import Pace, Stopped
from controlplane.storage.filesystem import FilesystemStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import new_registry, publish


def fast() -> Pace:
    return Pace(6e9, 1e15, threading.Event())


def whole_pass(registry: Registry, *, again: bool = False) -> Pace:
    """Run a pass to its end; ``again`` starts one even if the last one has just ended."""
    pace = fast()
    registry.damages.refresh()
    if again:
        assert registry.scrub.step(pace, 0)
    while registry.scrub.step(pace, 86_400):
        pass
    return pace


class Place:
    """A store in a folder, with instances that each have a separate cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores: list[HookedStore] = []
        self.notices: list[tuple[str, Damage]] = []

    def instance(self, name: str = "a") -> Registry:
        store = HookedStore(FilesystemStore(self.folder / "store"))
        self.stores.append(store)
        registry = new_registry(store, self.folder / f"cache-{name}")
        registry.damages.on_notice = lambda reason, damage: self.notices.append((reason, damage))
        return registry

    def object(self, sha256: str) -> Path:
        return self.folder / "store" / blob_key(sha256)

    def damage(self, sha256: str) -> None:
        path = self.object(sha256)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[::-1] + b"!")

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.notices]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def file_of(registry: Registry, model: str, number: int = 1) -> str:
    (file,) = registry.manifest(model, number).files
    return file.sha256


def remove(place: Place, sha256: str) -> None:
    place.object(sha256).unlink()


@pytest.mark.parametrize(("harm", "reason"), [(Place.damage, "BlobDamaged"), (remove, "BlobMissing")])
def test_damaged_files_are_reported_with_every_version_that_needs_them(
    place: Place, tmp_path: Path, harm: Callable[[Place, str], None], reason: str
) -> None:
    registry = place.instance()
    for model in ("first", "second", "whole"):
        publish(registry, tmp_path, b"shared" if model != "whole" else b"other", model=model)
    harm(place, file_of(registry, "first"))
    whole_pass(registry)
    assert set(place.reasons) == {reason}
    (damage,) = registry.damages.record.damages.values()
    assert damage.versions == ("first:1", "second:1")
    assert damage.path == "model.onnx"
    assert registry.damages.of("second:1") == (damage,)
    assert registry.damages.of("whole:1") == ()
    record = registry.damages.record
    assert not record.running
    assert record.finished_blobs == 6  # three manifests, and a file for each version (the shared one twice)


def test_damaged_manifest_is_restored_from_a_known_copy(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    publish(registry, tmp_path, b"content")
    manifest = registry.resolve(Reference.parse("m:1")).manifest
    whole = registry.read_blob(manifest)
    place.damage(manifest)
    stranger = place.instance("b")
    whole_pass(stranger)
    assert place.reasons == ["BlobDamaged"]
    assert place.notices[0][1].path == "manifest"
    knower = place.instance("c")
    place.object(manifest).write_bytes(whole)
    knower.manifest("m", 1)  # it is now in memory
    place.damage(manifest)
    whole_pass(knower, again=True)
    assert registry.read_blob(manifest) == whole
    assert knower.damages.record.damages == {}
    assert place.reasons == ["BlobDamaged", "BlobRepaired"]


def test_damage_is_repaired_from_the_cache_of_this_or_another_instance(place: Place, tmp_path: Path) -> None:
    mine, other = place.instance("mine"), place.instance("other")
    publish(mine, tmp_path, b"content")
    (file,) = mine.manifest("m", 1).files
    with mine.checkout(mine.manifest("m", 1)):
        pass
    place.damage(file.sha256)
    whole_pass(other)  # this instance has no copy
    assert place.reasons == ["BlobDamaged"]
    mine.damages.refresh()
    mine.scrub.repair_known()
    assert place.reasons == ["BlobDamaged", "BlobRepaired"]
    assert place.object(file.sha256).read_bytes() == b"content"
    place.notices.clear()
    place.damage(file.sha256)
    whole_pass(mine, again=True)
    assert place.reasons == ["BlobDamaged", "BlobRepaired"]
    assert place.object(file.sha256).read_bytes() == b"content"
    assert other.damages.refresh().damages == {}


def test_damaged_copy_in_the_cache_repairs_nothing(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    publish(registry, tmp_path, b"content")
    (file,) = registry.manifest("m", 1).files
    path = registry.fetch(file)
    path.chmod(0o644)
    path.write_bytes(b"CONTENT")
    place.damage(file.sha256)
    whole_pass(registry)
    assert list(registry.damages.record.damages) == [file.sha256]


def test_publishing_the_same_content_repairs_known_damage(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    publish(registry, tmp_path, b"content")
    sha256 = file_of(registry, "m")
    place.damage(sha256)
    whole_pass(registry)
    publish(registry, tmp_path, b"content", model="n")
    assert place.reasons == ["BlobDamaged", "BlobRepaired"]
    assert place.object(sha256).read_bytes() == b"content"
    assert registry.damages.record.damages == {}


def test_pass_is_continued_where_it_stopped(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    for number in range(6):
        publish(registry, tmp_path, f"{number}".encode(), model=f"m{number}")
    pace = fast()
    for _ in range(3):
        assert registry.scrub.step(pace, 86_400)
    registry.scrub.save()
    successor = place.instance("b")
    place.stores[-1].calls.clear()
    whole_pass(successor)
    opened = {key for operation, key in place.stores[-1].calls if operation == "open"}
    assert opened >= {blob_key(file_of(successor, f"m{number}")) for number in (3, 4, 5)}
    assert not opened & {blob_key(file_of(successor, f"m{number}")) for number in (0, 1, 2)}
    record = successor.damages.record
    assert (record.finished_blobs, record.after) == (12, "")


def test_finished_pass_costs_nothing_until_the_next_one_is_due(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    publish(registry, tmp_path, b"content")
    whole_pass(registry)
    place.stores[-1].calls.clear()
    assert not registry.scrub.step(fast(), 86_400)
    assert place.stores[-1].calls == []
    assert registry.scrub.step(fast(), 0)


def test_every_request_of_a_pass_is_counted_by_its_pace(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    for number in range(4):
        publish(registry, tmp_path, f"{number}".encode(), model=f"m{number}")
    stranger = place.instance("b")
    store = place.stores[-1]
    pace = whole_pass(stranger)
    asked = [key for _, key in store.calls if not key.startswith("scrub/")]
    assert pace.requests >= len(asked)
    assert pace.requests <= len(asked) + 8


class Waits(threading.Event):
    """An event that records the time of its waits without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds += timeout or 0.0
        return self.is_set()


def test_pace_keeps_both_rates() -> None:
    stop = Waits()
    pace = Pace(60, 1000, stop)
    for _ in range(10):
        pace.request()
    assert stop.seconds > 40  # time stands still, so each wait covers all earlier requests
    before = stop.seconds
    pace.read(100_000)
    pace.read(1)
    assert stop.seconds - before > 100
    stop.set()
    with pytest.raises(Stopped):
        pace.request()


def test_damage_of_a_deleted_version_is_removed_from_the_record(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    publish(registry, tmp_path, b"one")
    publish(registry, tmp_path, b"two")
    place.damage(file_of(registry, "m", 1))
    whole_pass(registry)
    assert len(registry.damages.record.damages) == 1
    registry.delete_version("m", 1, actor="tests")
    whole_pass(registry, again=True)
    assert registry.damages.record.damages == {}


def test_version_deleted_during_the_scrub_is_not_damage(place: Place, tmp_path: Path) -> None:
    registry, other = place.instance(), place.instance("b")
    publish(registry, tmp_path, b"one")
    sha256 = file_of(registry, "m")
    store = place.stores[0]

    def collect(operation: str, key: str) -> None:
        if (operation, key) == ("open", blob_key(sha256)):
            other.delete_version("m", 1, actor="tests")
            place.object(sha256).unlink()

    store.before = collect
    whole_pass(registry)
    assert registry.damages.record.damages == {}
    assert place.notices == []


def test_damaged_scrub_record_is_started_again(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    publish(registry, tmp_path, b"content")
    whole_pass(registry)
    for path in (tmp_path / "store" / "scrub").iterdir():
        path.chmod(0o644)
        path.write_text("{")
    successor = place.instance("b")
    whole_pass(successor)
    assert successor.damages.record.finished_blobs == 2


def test_fetch_of_a_damaged_blob_is_recorded(place: Place, tmp_path: Path) -> None:
    registry = place.instance()
    publish(registry, tmp_path, b"content")
    (file,) = registry.manifest("m", 1).files
    place.damage(file.sha256)
    with pytest.raises(Exception, match=r"has 8 bytes instead of 7|has SHA-256"):
        registry.fetch(file)
    assert place.reasons == ["BlobDamaged"]
    assert registry.damages.is_known(file.sha256)
