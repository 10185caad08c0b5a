"""The version of the bucket's layout."""

from pathlib import Path
from typing import Any

import pytest

from controlplane.errors import UnsupportedStoreError
from controlplane.registry.head_memory import open_memory, store_id
from controlplane.registry.layout import LAYOUT_KEY, LAYOUT_VERSION, STORE_ID_KEY, check_layout
from controlplane.storage.memory import MemoryStore


def test_new_store_is_marked_and_accepted_again(tmp_path: Path) -> None:
    store = MemoryStore()
    for _ in range(2):
        open_memory(store, tmp_path)
    assert store.get(LAYOUT_KEY) == f"{LAYOUT_VERSION}\n".encode()


def test_store_of_an_older_layout_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    store_id(store)
    with pytest.raises(UnsupportedStoreError, match="layout version 1, but this control plane uses version 2"):
        open_memory(store, tmp_path)
    assert [info.key for info in store.list("")] == [STORE_ID_KEY], "nothing is written"


@pytest.mark.parametrize("text", [b"3\n", b"unreadable"])
def test_store_of_another_layout_is_refused(text: bytes) -> None:
    store = MemoryStore()
    store.create(LAYOUT_KEY, text)
    with pytest.raises(UnsupportedStoreError, match="Use an empty bucket"):
        check_layout(store)


def test_store_that_another_instance_marks_meanwhile_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    listed = store.list

    def mark_first(prefix: str, **options: Any) -> object:
        if prefix == STORE_ID_KEY:
            store.create(LAYOUT_KEY, f"{LAYOUT_VERSION}\n".encode())
            store_id(store)
        return listed(prefix, **options)

    monkeypatch.setattr(store, "list", mark_first)
    check_layout(store)
