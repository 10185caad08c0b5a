"""The condition log of deployments: stored in parts, by one writer, in few objects."""

from pathlib import Path

import pytest

from controlplane.registry.chain import Chain
from controlplane.registry.condition_log import PREFIX, ConditionLog
from controlplane.storage.filesystem import FilesystemStore


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(tmp_path)


def put(condition_log: ConditionLog, part: str, **value: object) -> bool:
    return condition_log.put("vad", part, value, actor="test", reason="test")


def test_parts_are_independent_and_few_objects_are_kept(store: FilesystemStore) -> None:
    condition_log = ConditionLog(store)
    assert condition_log.all() == {}
    for number in range(5):
        assert put(condition_log, "one", number=number)
        assert put(condition_log, "other", number=-number)
    expected = {"vad": {"one": {"number": 4}, "other": {"number": -4}}}
    assert condition_log.all() == expected
    assert ConditionLog(store).all() == expected, "another process sees the same"
    assert len(list(store.list(PREFIX))) == 2


def test_outdated_writer_reads_again_instead_of_overwriting(store: FilesystemStore) -> None:
    old, new = ConditionLog(store), ConditionLog(store)
    assert put(old, "one", by="old")
    assert put(new, "one", by="new")
    assert not put(old, "one", by="late")
    assert old.all() == {"vad": {"one": {"by": "new"}}}
    assert put(old, "other", by="old"), "it has read what there is"
    assert new.all() == {"vad": {"one": {"by": "new"}, "other": {"by": "old"}}}


@pytest.mark.parametrize("commits", [1, 3])
def test_damaged_record_counts_as_missing_and_is_written_again(store: FilesystemStore, commits: int) -> None:
    condition_log = ConditionLog(store)
    for number in range(commits):
        assert put(condition_log, "one", number=number)
    info = next(iter(store.list(PREFIX)))
    store.delete(info.key)
    store.create(info.key, b"no revision at all")
    later = ConditionLog(store)
    assert later.all() == {}
    assert put(later, "one", number=7)
    assert put(later, "other", number=8)
    expected = {"vad": {"one": {"number": 7}, "other": {"number": 8}}}
    assert later.all() == expected
    assert ConditionLog(store).all() == expected, "another process sees the same"


def test_record_damaged_after_a_write_is_written_again(store: FilesystemStore) -> None:
    condition_log = ConditionLog(store)
    assert put(condition_log, "one", number=1)
    assert put(condition_log, "other", number=2)
    store.create(Chain(store, f"{PREFIX}vad/").key(3), b"no revision at all")
    assert put(condition_log, "one", number=3)
    assert ConditionLog(store).all() == {"vad": {"one": {"number": 3}, "other": {"number": 2}}}


def test_removed_record_is_started_again(store: FilesystemStore) -> None:
    condition_log = ConditionLog(store)
    assert put(condition_log, "one", number=1)
    assert put(condition_log, "other", number=2)
    condition_log.remove("vad")
    assert list(store.list(PREFIX)) == []
    assert put(condition_log, "one", number=3)
    assert ConditionLog(store).all() == {"vad": {"one": {"number": 3}}}
    condition_log.remove("never-there")
