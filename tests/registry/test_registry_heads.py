import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.names import Reference
from controlplane.errors import CommitConflictError, NotFoundError
from controlplane.registry.cache import BlobCache
from controlplane.registry.chain import Chain, Revision
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.heads import _LOCKS
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import new_registry, publish

OLD = 3600.0


def two_processes(store: ObjectStore, tmp_path: Path, *, head_max_age_seconds: float) -> tuple[Registry, Registry]:
    """Return two registries on one bucket without shared memory, like those of two instances."""
    return (
        new_registry(store, tmp_path / "one", head_max_age_seconds=head_max_age_seconds),
        new_registry(store, tmp_path / "two", head_max_age_seconds=head_max_age_seconds),
    )


def test_recent_head_is_read_without_a_request(tmp_path: Path) -> None:
    store = HookedStore(MemoryStore())
    registry = new_registry(store, tmp_path, head_max_age_seconds=OLD)
    assert registry.peek_model("m") is None
    registry.create_model("m", actor="a")
    store.calls.clear()
    assert registry.get_model("m").name == "m"
    peeked = registry.peek_model("m")
    assert peeked is not None
    assert peeked.name == "m"
    assert store.calls == []


def test_peek_does_not_return_an_old_head(tmp_path: Path) -> None:
    registry = new_registry(MemoryStore(), tmp_path, head_max_age_seconds=0)
    registry.create_model("m", actor="a")
    assert registry.peek_model("m") is None


def test_an_unchanged_old_head_costs_one_request(tmp_path: Path) -> None:
    store = HookedStore(MemoryStore())
    registry = new_registry(store, tmp_path, head_max_age_seconds=0)
    registry.create_model("m", actor="a")
    registry.get_model("m")
    store.calls.clear()
    registry.get_model("m")
    assert [operation for operation, _ in store.calls] == ["list"]


def test_a_process_sees_its_own_commits_at_once(tmp_path: Path, store: ObjectStore) -> None:
    registry = new_registry(store, tmp_path / "cache", head_max_age_seconds=OLD)
    registry.create_model("m", actor="a")
    registry.update_model("m", description="new", actor="a")
    assert registry.get_model("m").description == "new"
    assert publish(registry, tmp_path / "f", b"1").number == 1
    assert registry.resolve(Reference("m")).number == 1


def test_another_process_may_see_an_old_head_but_never_an_old_miss(tmp_path: Path, store: ObjectStore) -> None:
    here, there = two_processes(store, tmp_path, head_max_age_seconds=OLD)
    publish(there, tmp_path / "f", b"1")
    assert here.get_model("m").next_number == 2
    publish(there, tmp_path / "f", b"2", aliases=["champion"])
    assert here.resolve(Reference("m")).number == 1  # an old answer is allowed
    assert here.resolve(Reference("m", version=2)).number == 2  # missing in the old head, so it is looked up
    publish(there, tmp_path / "f", b"3", aliases=["staging"])
    assert here.resolve(Reference("m", alias="staging")).number == 3
    there.create_model("other", actor="a")
    assert here.get_model("other").name == "other"


def test_recreated_model_is_found(tmp_path: Path, store: ObjectStore) -> None:
    here, there = two_processes(store, tmp_path, head_max_age_seconds=OLD)
    there.create_model("m", actor="a")
    there.delete_model("m", actor="a")
    with pytest.raises(NotFoundError):
        here.get_model("m")
    there.create_model("m", actor="a")
    assert here.get_model("m").name == "m"


def test_a_commit_never_trusts_an_old_head(tmp_path: Path, store: ObjectStore) -> None:
    here, there = two_processes(store, tmp_path, head_max_age_seconds=OLD)
    publish(here, tmp_path / "f", b"1")
    there.update_model("m", labels={"team": "vision"}, actor="there")
    assert here.update_model("m", description="d", actor="here").labels == {"team": "vision"}


def test_many_readers_of_an_old_head_cause_few_requests(tmp_path: Path) -> None:
    inner = MemoryStore()
    new_registry(inner, tmp_path / "other").create_model("m", actor="a")
    everyone_asked = threading.Event()

    def wait_for_everyone(operation: str, key: str) -> None:
        everyone_asked.wait(10)

    store = HookedStore(inner, before=wait_for_everyone)
    registry = new_registry(store, tmp_path / "cache", head_max_age_seconds=OLD)
    started = threading.Barrier(17)

    def read() -> str:
        started.wait()
        return registry.get_model("m").name

    with ThreadPoolExecutor(16) as pool:
        readers = [pool.submit(read) for _ in range(16)]
        started.wait()
        everyone_asked.set()
        assert {reader.result() for reader in readers} == {"m"}
    assert [operation for operation, _ in store.calls] == ["list", "get"]


def test_slow_reader_does_not_replace_a_newer_head(tmp_path: Path) -> None:
    inner = MemoryStore()
    here, there = two_processes(inner, tmp_path, head_max_age_seconds=OLD)
    there.create_model("m", actor="a")
    reading, may_go_on = threading.Event(), threading.Event()

    def hold_back(operation: str, key: str) -> None:
        if operation == "get" and not reading.is_set():
            reading.set()
            may_go_on.wait(10)

    slow = HookedStore(inner, after=hold_back)
    here = new_registry(slow, tmp_path / "slow", head_max_age_seconds=OLD)
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(here.get_model, "m")
        assert reading.wait(10)
        there.update_model("m", description="newer", actor="a")
        may_go_on.set()
        assert old.result().description == ""
    assert here.update_model("m", labels={"a": "b"}, actor="a").description == "newer"
    assert here.get_model("m").description == "newer"


def test_concurrent_edits_are_all_applied(tmp_path: Path, store: ObjectStore) -> None:
    registries = [new_registry(store, tmp_path / str(number), head_max_age_seconds=OLD) for number in range(8)]
    publish(registries[0], tmp_path / "f", b"1")

    def point(number: int) -> None:
        registries[number].set_alias("m", f"alias{number}", 1, actor=str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(point, range(8)))
    assert new_registry(store, tmp_path / "new").get_model("m").aliases == {f"alias{n}": 1 for n in range(8)}


def test_edit_that_always_conflicts_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.registry.heads.EDIT_TRIES", 4)
    inner = MemoryStore()
    other = new_registry(inner, tmp_path / "other")
    other.create_model("m", actor="a")
    count = iter(range(1000))

    def overtake(operation: str, key: str) -> None:
        if operation == "create":
            other.update_model("m", description=f"{next(count)}", actor="other")

    registry = new_registry(HookedStore(inner, before=overtake), tmp_path / "cache")
    with pytest.raises(CommitConflictError, match="in 4 attempts"):
        registry.update_model("m", labels={"x": "y"}, actor="a")


def deploy(registry: Registry, folder: Path, name: str) -> None:
    publish(registry, folder / name, name.encode(), model=name)
    spec = DeploymentSpec(model=name, reference=f"{name}:1", version=1, settings=DeploymentSettings(priority=3))
    registry.deployments.put(spec, after=None, actor="a", reason="")


def test_many_deployments_share_equal_settings_and_are_kept_once(tmp_path: Path) -> None:
    store = MemoryStore()
    first, second = two_processes(store, tmp_path, head_max_age_seconds=OLD)
    for name in ("m1", "m2", "m3"):
        deploy(first, tmp_path, name)
    found = second.deployments.list()
    assert [one.spec.settings.priority for one in found] == [3, 3, 3]
    assert len({id(one.spec.settings) for one in found}) == 1, "one object for all"
    heads = second.deployments._heads
    for name in ("m1", "m2", "m3"):
        head = heads.known(name)
        assert head is not None
        assert not isinstance(head.revision.body, dict), "the parsed value is the only copy"
        key = Chain(store, f"deployments/{name}/revisions/").key(1)
        assert Revision.from_json(head.revision.to_json(), key) == Revision.from_json(store.get(key), key)


def test_head_with_fields_of_a_newer_release_is_kept_as_it_was_written(tmp_path: Path) -> None:
    store = MemoryStore()
    registry = new_registry(store, tmp_path, head_max_age_seconds=OLD)
    registry.create_model("m", actor="a")
    key = Chain(store, "models/m/revisions/").key(1)
    written = Revision.from_json(store.get(key), key)
    newer = replace(written, body={**written.body, "of_a_newer_release": [1, 2]})
    store.delete(key)
    store.create(key, newer.to_json())
    other = new_registry(store, tmp_path / "other", head_max_age_seconds=OLD)
    assert other.get_model("m").name == "m"
    head = other._models.heads.known("m")
    assert head is not None
    assert Revision.from_json(head.revision.to_json(), key) == newer


class BlockedMemory(HeadMemory):
    """A local memory whose disk does not answer for one chain."""

    def __init__(self, root: Path, chain: str) -> None:
        super().__init__(root)
        self.chain = chain
        self.entered, self.released = threading.Event(), threading.Event()

    def put(self, chain: str, revision: Revision) -> None:
        if chain == self.chain:
            self.entered.set()
            assert self.released.wait(60)
        super().put(chain, revision)


def test_slow_local_record_of_a_head_stops_no_other_read(tmp_path: Path) -> None:
    store = MemoryStore()
    other = next(name for name in map("other{}".format, range(1000)) if hash(name) % _LOCKS != hash("slow") % _LOCKS)
    writer = new_registry(store, tmp_path / "writer", head_max_age_seconds=OLD)
    for name in ("slow", other):
        writer.create_model(name, actor="a")
    memory = BlockedMemory(tmp_path / "memory", "models/slow")
    cache = BlobCache(tmp_path / "reader", 1 << 20)
    registry = Registry(store, cache, head_max_age_seconds=OLD, gc=GcSettings(), memory=memory)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(registry.get_model, "slow")
        try:
            assert memory.entered.wait(60)
            assert registry.get_model(other).name == other
            assert not slow.done()
        finally:
            memory.released.set()
        assert slow.result(60).name == "slow"
    assert memory.names() == sorted([f"models/{other}", "models/slow"])
