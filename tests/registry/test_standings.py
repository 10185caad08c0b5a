"""How deployments stand is kept in parts, by one writer, in few objects."""

from pathlib import Path

import pytest

from controlplane.registry.standings import PREFIX, Standings
from controlplane.storage.filesystem import FilesystemStore


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(tmp_path)


def put(standings: Standings, part: str, **value: object) -> bool:
    return standings.put("vad", part, value, actor="test", reason="test")


def test_parts_do_not_disturb_each_other_and_few_objects_are_kept(store: FilesystemStore) -> None:
    standings = Standings(store)
    assert standings.all() == {}
    for number in range(5):
        assert put(standings, "one", number=number)
        assert put(standings, "other", number=-number)
    expected = {"vad": {"one": {"number": 4}, "other": {"number": -4}}}
    assert standings.all() == expected
    assert Standings(store).all() == expected, "another process sees the same"
    assert len(list(store.list(PREFIX))) == 2


def test_who_is_behind_does_not_overwrite_but_reads_and_goes_on(store: FilesystemStore) -> None:
    old, new = Standings(store), Standings(store)
    assert put(old, "one", by="old")
    assert put(new, "one", by="new")
    assert not put(old, "one", by="late")
    assert old.all() == {"vad": {"one": {"by": "new"}}}
    assert put(old, "other", by="old"), "it has read what there is"
    assert new.all() == {"vad": {"one": {"by": "new"}, "other": {"by": "old"}}}


def test_a_record_that_is_damaged_is_as_none(store: FilesystemStore) -> None:
    standings = Standings(store)
    assert put(standings, "one", number=1)
    (info,) = store.list(PREFIX)
    store.delete(info.key)
    store.create(info.key, b"no revision at all")
    assert Standings(store).all() == {}
