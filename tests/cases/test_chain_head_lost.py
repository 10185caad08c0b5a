"""The newest revision object vanishes (restore from a backup, failover to an asynchronously replicated bucket, a
lifecycle rule, a person) while one instance has it cached: no acknowledged change is undone without an error."""

from pathlib import Path

import pytest

from controlplane.errors import StoreWentBackwardsError
from controlplane.storage.filesystem import FilesystemStore
from tests.support.registries import new_registry


def test_instance_with_lost_head_does_not_undo_a_later_commit(tmp_path: Path) -> None:
    root = tmp_path / "store"

    a = new_registry(FilesystemStore(root), tmp_path / "a")
    a.create_model("net", description="v1", actor="A")
    a.update_model("net", description="v2", actor="A")
    sorted((root / "models/net/revisions").iterdir())[0].unlink()
    b = new_registry(FilesystemStore(root), tmp_path / "b")
    assert b.get_model("net").description == "v1"  # started after the loss, without a memory of the lost head
    b.update_model("net", labels={"owner": "B"}, actor="B")
    with pytest.raises(StoreWentBackwardsError):
        a.get_model("net")
    with pytest.raises(StoreWentBackwardsError):
        a.update_model("net", description="v3", actor="A")
    c = new_registry(FilesystemStore(root), tmp_path / "c")
    newest, oldest = c.history("net")
    assert newest.body["labels"] == {"owner": "B"}
    assert newest.parent_commit_id == oldest.commit_id
