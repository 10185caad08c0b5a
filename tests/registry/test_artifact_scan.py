import hashlib
import os
import socket
from pathlib import Path

import pytest

from controlplane.errors import InvalidArtifactError
from controlplane.registry import artifact
from controlplane.registry.artifact import scan


def test_a_file_is_an_artifact_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"content")
    hashed: list[int] = []
    ((entry, local),) = scan(path, progress=hashed.append)
    assert (entry.path, entry.size_bytes) == ("model.onnx", 7)
    assert entry.sha256 == hashlib.sha256(b"content").hexdigest()
    assert local.read_bytes() == b"content"
    assert sum(hashed) == 7


def test_a_linked_file_keeps_the_name_it_was_given_by(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "model.onnx").symlink_to("blob")
    ((entry, _),) = scan(tmp_path / "model.onnx")
    assert entry.path == "model.onnx"


def test_a_folder_is_listed_in_order_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("model.onnx", "data/b.bin", "data/a.bin", ".DS_Store", ".git/HEAD", "__pycache__/x.pyc", "data/.x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    assert [entry.path for entry, _ in scan(tmp_path)] == ["data/a.bin", "data/b.bin", "model.onnx"]
    for entry, local in scan(tmp_path):
        assert hashlib.sha256(local.read_bytes()).hexdigest() == entry.sha256


def test_a_link_inside_the_artifact_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "b.bin").symlink_to("a.bin")
    assert [entry.path for entry, _ in scan(tmp_path)] == ["a.bin", "b.bin"]


def test_a_file_of_no_bytes_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    ((entry, _),) = scan(tmp_path)
    assert entry.size_bytes == 0


def test_what_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifactError, match="does not exist"):
        scan(tmp_path / "nothing")
    (tmp_path / ".hidden").touch()
    with pytest.raises(InvalidArtifactError, match="no files"):
        scan(tmp_path)


def test_links_that_leave_the_artifact_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (tmp_path / "artifact-secret").write_bytes(b"secret")  # shares the folder's name as a prefix
    link = folder / "model.onnx"
    for target in ("/etc/passwd", "../artifact-secret"):
        link.symlink_to(target)
        with pytest.raises(InvalidArtifactError, match="out of the artifact"):
            scan(folder)
        link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(InvalidArtifactError, match="link to nothing"):
        scan(folder)


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    with pytest.raises(InvalidArtifactError, match="link to a folder"):
        scan(tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArtifactError, match="no regular file"):
        scan(tmp_path)
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(InvalidArtifactError, match="no regular file"):
            scan(tmp_path)
    with pytest.raises(InvalidArtifactError, match="no regular file"):
        scan(Path("/dev/null"))


def test_names_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    for name in ("new\nline", "back\\slash"):
        path = tmp_path / name
        path.touch()
        with pytest.raises(InvalidArtifactError, match="no valid file name"):
            scan(tmp_path)
        path.unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.bin")).touch()
    with pytest.raises(InvalidArtifactError, match="no valid file name"):
        scan(tmp_path)


def test_a_folder_of_very_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "MAX_FILES", 3)
    for number in range(3):
        (tmp_path / f"{number}").touch()
    assert len(scan(tmp_path)) == 3
    (tmp_path / "4").touch()
    with pytest.raises(InvalidArtifactError, match="more than 3 files"):
        scan(tmp_path)
