"""The change feed and the sweep show other processes' commits at a cost that does not grow with the chains."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSpec
from controlplane.errors import CommitConflictError, StoreUnavailableError, StoreWentBackwardsError
from controlplane.registry import changes
from controlplane.registry.changes import PREFIX, ChangeFeed, ChangeLog, Entry
from controlplane.registry.registry import Registry
from controlplane.storage.base import ObjectStore
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import new_registry, publish


class Killed(BaseException):
    """Simulates that the process is killed."""


def reader_of(store: ObjectStore, tmp_path: Path, name: str = "reader") -> Registry:
    """Return a registry that follows the feed and uses it for plain reads."""
    registry = new_registry(store, tmp_path / name, head_max_age_seconds=0.0)
    registry.deployments.read_all()
    registry.model_sweep.run()
    return registry


def deploy(registry: Registry, model: str, *, reason: str = "test") -> None:
    try:
        before = registry.deployments.get(model, fresh=True)
    except Exception:  # noqa: BLE001 - not deployed yet
        before = None
    spec = DeploymentSpec(model=model, reference=f"{model}:1", version=1)
    if before is not None:
        spec = before.spec.with_changes(loaded=not before.spec.loaded)
    registry.deployments.put(spec, after=before, actor="tests", reason=reason)


def fill(registry: Registry, tmp_path: Path, count: int) -> None:
    for number in range(count):
        publish(registry, tmp_path / f"m{number}", b"x", model=f"m{number}")
        deploy(registry, f"m{number}")


def test_commit_of_another_process_is_seen_by_one_poll(store: ObjectStore, tmp_path: Path) -> None:
    writer = new_registry(store, tmp_path / "writer")
    fill(writer, tmp_path, 3)
    reader = reader_of(store, tmp_path)
    deploy(writer, "m1")
    publish(writer, tmp_path / "new", b"y", model="m2", aliases=["champion"])
    listener = reader.feed.listen()
    reader.feed.poll()
    assert listener.take() == {"deployments/m1", "models/m2"}
    assert [one.number for one in reader.deployments.list()] == [1, 2, 1]
    assert reader.get_model("m2").aliases == {"champion": 2}


def test_list_costs_the_same_with_few_and_many_deployments(tmp_path: Path) -> None:
    costs = []
    for count in (5, 50):
        store = HookedStore(MemoryStore())
        fill(new_registry(store, tmp_path / f"w{count}"), tmp_path / str(count), count)
        reader = reader_of(store, tmp_path, f"r{count}")
        store.calls.clear()
        assert len(reader.deployments.list()) == count
        costs.append(len(store.calls))
    assert costs[0] == costs[1] <= count


def test_plain_read_costs_a_poll_and_a_missing_deployment_no_more(tmp_path: Path) -> None:
    store = HookedStore(MemoryStore())
    fill(new_registry(store, tmp_path / "w"), tmp_path, 20)
    reader = reader_of(store, tmp_path)
    store.calls.clear()
    reader.deployments.get("m7")
    assert [call for call, key in store.calls] == ["list"]
    store.calls.clear()
    with pytest.raises(Exception, match="did you mean 'm"):
        reader.deployments.get("m77")
    assert len(store.calls) < 10


@pytest.mark.parametrize("committed", [False, True])
def test_writer_killed_around_its_commit_leaves_at_most_an_entry(tmp_path: Path, *, committed: bool) -> None:
    inner = MemoryStore()
    fill(new_registry(inner, tmp_path / "w"), tmp_path, 1)
    reader = reader_of(inner, tmp_path)

    def kill(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("deployments/"):
            raise Killed

    hooks: dict[str, Callable[[str, str], None]] = {"after" if committed else "before": kill}
    dying = new_registry(HookedStore(inner, **hooks), tmp_path / "d")
    with suppress(Killed):
        deploy(dying, "m0")
    reader.feed.poll()
    assert reader.deployments.get("m0").number == (2 if committed else 1)
    # The commit may still arrive. Until then, the registry checks the chain; after that, it stops checking.
    assert reader.is_settled("deployments/m0") is committed
    deploy(new_registry(inner, tmp_path / "w2"), "m0")
    assert reader.deployments.get("m0").number == (3 if committed else 2)
    assert reader.is_settled("deployments/m0")


def test_commit_that_comes_after_its_entry_was_polled_is_seen(tmp_path: Path) -> None:
    inner = MemoryStore()
    fill(new_registry(inner, tmp_path / "w"), tmp_path, 1)
    reader = reader_of(inner, tmp_path)
    numbers: list[int] = []

    def look(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("deployments/"):
            reader.feed.poll()
            numbers.append(reader.deployments.get("m0").number)

    deploy(new_registry(HookedStore(inner, before=look, after=look), tmp_path / "s"), "m0")
    assert numbers == [1, 2]


def test_slow_commit_is_announced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = HookedStore(MemoryStore())
    registry = new_registry(store, tmp_path / "w")
    fill(registry, tmp_path, 1)
    now = [changes.steady()]
    monkeypatch.setattr(changes, "steady", lambda: now[0])

    def take_time(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("deployments/"):
            now[0] += changes.SLOW_SECONDS + 1

    store.after = take_time
    store.calls.clear()
    deploy(registry, "m0")
    written = [key.split("/")[0] for operation, key in store.calls if operation == "create"]
    assert written == ["changes", "deployments", "changes"]


def test_nothing_is_committed_if_the_entry_cannot_be_written(tmp_path: Path) -> None:
    def refuse(operation: str, key: str) -> None:
        if operation == "create" and key.startswith(PREFIX):
            raise StoreUnavailableError("away")

    store = HookedStore(MemoryStore())
    registry = new_registry(store, tmp_path / "w")
    fill(registry, tmp_path, 1)
    store.before = refuse
    with pytest.raises(StoreUnavailableError):
        deploy(registry, "m0")
    store.before = lambda *_: None
    assert registry.deployments.get("m0", fresh=True).number == 1


@pytest.mark.parametrize("off_seconds", [-20, 20])
def test_entries_of_a_clock_that_is_off_are_seen(off_seconds: float) -> None:
    store = MemoryStore()
    feed = ChangeFeed(store, lambda: datetime.now(UTC), "reader00")
    feed.poll()
    skewed = ChangeLog(store, lambda: datetime.now(UTC) + timedelta(seconds=off_seconds))
    listener = feed.listen()
    for number in (1, 2):
        skewed.announce("models/net", number)
        feed.poll()
        assert listener.take() == {"models/net"}
    feed.poll()
    assert listener.take() == set()


def test_old_entries_are_collected_and_young_ones_stay(store: ObjectStore) -> None:
    old = ChangeLog(store, lambda: datetime.now(UTC) - timedelta(seconds=changes.KEPT_SECONDS + 60))
    young = ChangeLog(store, lambda: datetime.now(UTC))
    for number in range(3):
        old.announce("models/net", number)
    young.announce("models/net", 4)
    assert young.collect() == 3
    assert [Entry.of(info.key) for info in store.list(PREFIX)] == [Entry("models/net", 4, young.writer)]
    assert young.collect() == 0


def test_all_old_entries_are_collected_however_many(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_COLLECTED_AT_ONCE", 2)
    old = ChangeLog(store, lambda: datetime.now(UTC) - timedelta(seconds=changes.KEPT_SECONDS + 60))
    for number in range(7):
        old.announce("holds/net", number)
    assert ChangeLog(store, lambda: datetime.now(UTC)).collect() == 7
    assert list(store.list(PREFIX)) == []


class ListsDeleted(MemoryStore):
    """Still lists what was deleted, as an eventually consistent store may."""

    def delete(self, key: str) -> None:
        pass


def test_collection_ends_on_a_store_that_lists_deleted_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_COLLECTED_AT_ONCE", 2)
    store = ListsDeleted()
    old = ChangeLog(store, lambda: datetime.now(UTC) - timedelta(seconds=changes.KEPT_SECONDS + 60))
    for number in range(5):
        old.announce("holds/net", number)
    assert ChangeLog(store, lambda: datetime.now(UTC)).collect() == 4, "two listings of the same page"


def test_sweep_finds_commit_without_entry_and_names_it(store: ObjectStore, tmp_path: Path) -> None:
    writer = new_registry(store, tmp_path / "writer")
    fill(writer, tmp_path, 3)
    reader = reader_of(store, tmp_path)
    reader.feed.poll()
    listener = reader.feed.listen()
    deploy(writer, "m1")
    for info in list(store.list(PREFIX)):
        store.delete(info.key)
    assert reader.deployments.get("m1").number == 1
    reader.deployments.read_all()
    assert listener.take() == {"deployments/m1"}
    assert reader.deployments.get("m1").number == 2


def test_sweep_finds_lost_revisions_and_lost_chains(store: ObjectStore, tmp_path: Path) -> None:
    writer = new_registry(store, tmp_path / "writer")
    fill(writer, tmp_path, 3)
    deploy(writer, "m1")
    reader = reader_of(store, tmp_path)
    newest = next(store.list("deployments/m1/", limit=1)).key
    store.delete(newest)
    for info in list(store.list("deployments/m2/")):
        store.delete(info.key)
    reader.deployments.read_all()
    unreadable: dict[str, str] = {}
    assert [one.spec.model for one in reader.deployments.list(unreadable=unreadable)] == ["m0"]
    assert sorted(unreadable) == ["m1", "m2"]
    with pytest.raises(StoreWentBackwardsError):
        new_registry(store, tmp_path / "other").deployments.get("m1")


def test_commit_on_a_chain_that_went_backwards_is_refused_at_its_entry(store: ObjectStore, tmp_path: Path) -> None:
    writer = new_registry(store, tmp_path / "writer")
    fill(writer, tmp_path, 1)
    deploy(writer, "m0")
    reader = reader_of(store, tmp_path)
    store.delete(next(store.list("deployments/m0/", limit=1)).key)
    deploy(new_registry(store, tmp_path / "new"), "m0")  # this registry has never seen the lost revision
    reader.feed.poll()
    with pytest.raises(StoreWentBackwardsError):
        reader.deployments.get("m0")


def test_sweep_costs_a_request_for_many_chains_and_skips_long_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.registry.sweep.PAGE", 10)
    store = HookedStore(MemoryStore())
    writer = new_registry(store, tmp_path / "w")
    fill(writer, tmp_path, 12)
    for _ in range(40):
        deploy(writer, "m3")
    reader = reader_of(store, tmp_path)
    store.calls.clear()
    reader.deployments.read_all()
    pages = [key for operation, key in store.calls if operation == "list" and key == "deployments/"]
    assert len(pages) <= 4
    assert not [key for operation, key in store.calls if operation == "get"]


def test_restarted_instance_reads_no_head_that_it_remembers(tmp_path: Path) -> None:
    store = HookedStore(MemoryStore())
    fill(new_registry(store, tmp_path / "w"), tmp_path, 8)
    for _ in range(2):
        store.calls.clear()
        again = new_registry(store, tmp_path / "r", heads=tmp_path / "heads")
        again.deployments.read_all()
    assert [key for operation, key in store.calls if operation == "get"] == ["layout", "store-id"]
    assert len(again.deployments.list()) == 8


def test_reader_starts_over_after_a_gap_without_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    writer = new_registry(store, tmp_path / "w")
    fill(writer, tmp_path, 2)
    reader = reader_of(store, tmp_path)
    generation = reader.feed.generation
    deploy(writer, "m0")
    for info in list(store.list(PREFIX)):  # as if they were collected during the gap
        store.delete(info.key)
    before = changes.steady()
    for module in ("changes", "heads", "sweep"):
        monkeypatch.setattr(f"controlplane.registry.{module}.steady", lambda: before + changes.KEPT_SECONDS)
    assert [one.number for one in reader.deployments.list()] == [2, 1]
    assert reader.feed.generation == generation + 1


def test_two_writers_race_and_both_readers_agree(store: ObjectStore, tmp_path: Path) -> None:
    first, second = new_registry(store, tmp_path / "1"), new_registry(store, tmp_path / "2")
    fill(first, tmp_path, 1)
    for registry in (first, second):
        registry.deployments.read_all()
    before = first.deployments.get("m0", fresh=True)
    spec = before.spec.with_changes(loaded=not before.spec.loaded)
    first.deployments.put(spec, after=before, actor="1", reason="first")
    with pytest.raises(CommitConflictError):
        second.deployments.put(spec, after=before, actor="2", reason="second")
    for registry in (first, second):
        registry.feed.poll()
        assert registry.deployments.get("m0").reason == "first"
        assert registry.is_settled("deployments/m0")
