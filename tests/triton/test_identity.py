"""The id of an embedded server, and the lock on its model repository."""

import shutil
from pathlib import Path

import pytest

from controlplane.errors import ConflictError
from controlplane.triton.embedded.identity import IDENTITY_FILE, repository_lock, server_id


def test_an_id_stays_with_its_folder(tmp_path: Path) -> None:
    first = server_id("embedded", tmp_path)
    assert first.startswith("embedded-")
    assert server_id("embedded", tmp_path) == first
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert server_id("embedded", moved) == first


def test_copied_folder_gets_another_id(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    first = server_id("embedded", folder)
    shutil.copytree(folder, tmp_path / "copy")
    copied = server_id("embedded", tmp_path / "copy")
    assert copied != first
    assert server_id("embedded", tmp_path / "copy") == copied
    assert server_id("embedded", folder) == first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": "x"}', '{"token": "x", "inode": "y"}'])
def test_a_damaged_file_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / IDENTITY_FILE).write_text(content)
    assert server_id("embedded", tmp_path) == server_id("embedded", tmp_path)


def test_two_servers_cannot_have_one_repository(tmp_path: Path) -> None:
    with (
        repository_lock(tmp_path),
        pytest.raises(ConflictError, match="another control plane or agent uses the model repository"),
        repository_lock(tmp_path),
    ):
        pass
    with repository_lock(tmp_path):
        pass
