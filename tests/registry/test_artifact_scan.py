import hashlib
import os
import socket
from collections.abc import Callable, Iterator
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


def test_empty_file_is_part_of_the_artifact(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    ((entry, _),) = scan(tmp_path)
    assert entry.size_bytes == 0


def test_missing_or_empty_artifact_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifactError, match="does not exist"):
        scan(tmp_path / "nothing")
    (tmp_path / ".hidden").touch()
    with pytest.raises(InvalidArtifactError, match="no files"):
        scan(tmp_path)


def test_links_out_of_the_artifact_are_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (tmp_path / "artifact-secret").write_bytes(b"secret")  # its name begins with the folder's name
    link = folder / "model.onnx"
    for target in ("/etc/passwd", "../artifact-secret"):
        link.symlink_to(target)
        with pytest.raises(InvalidArtifactError, match="outside the artifact"):
            scan(folder)
        link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(InvalidArtifactError, match="broken link"):
        scan(folder)


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    with pytest.raises(InvalidArtifactError, match="link to a folder"):
        scan(tmp_path)


def test_device_socket_and_pipe_are_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArtifactError, match="not a regular file"):
        scan(tmp_path)
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(InvalidArtifactError, match="not a regular file"):
            scan(tmp_path)
    with pytest.raises(InvalidArtifactError, match="not a regular file"):
        scan(Path("/dev/null"))


def test_invalid_file_names_are_rejected(tmp_path: Path) -> None:
    for name in ("new\nline", "back\\slash"):
        path = tmp_path / name
        path.touch()
        with pytest.raises(InvalidArtifactError, match="not a valid file name"):
            scan(tmp_path)
        path.unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.bin")).touch()
    with pytest.raises(InvalidArtifactError, match="not a valid file name"):
        scan(tmp_path)


def test_a_folder_of_very_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "MAX_FILES", 3)
    for number in range(3):
        (tmp_path / f"{number}").touch()
    assert len(scan(tmp_path)) == 3
    (tmp_path / "4").touch()
    with pytest.raises(InvalidArtifactError, match="more than 3 files"):
        scan(tmp_path)


def snapshot(folder: Path) -> Path:
    """Create a repository in the layout of Hugging Face's cache (`huggingface_hub`)."""
    repository = folder / "hub" / "models--org--net"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "abc").write_bytes(b"graph")
    (repository / "blobs" / "def").write_bytes(b"weights")
    found = repository / "snapshots" / "0a1b"
    (found / "onnx").mkdir(parents=True)
    (found / "model.onnx").symlink_to("../../blobs/abc")
    (found / "onnx" / "model.onnx.data").symlink_to("../../../blobs/def")
    return found


def test_snapshot_of_hugging_faces_cache_is_read_through_its_links(tmp_path: Path) -> None:
    found = snapshot(tmp_path)
    assert [entry.path for entry, _ in scan(found)] == ["model.onnx", "onnx/model.onnx.data"]
    assert [entry.path for entry, _ in scan(found / "onnx")] == ["model.onnx.data"]
    assert [entry.path for entry, _ in scan(found / "model.onnx")] == ["model.onnx"]


def test_link_from_a_snapshot_to_anything_but_its_blobs_is_refused(tmp_path: Path) -> None:
    found = snapshot(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    (found.parents[1] / "blobs" / "deep").mkdir()
    (found.parents[1] / "blobs" / "deep" / "file").write_bytes(b"")
    for target in (tmp_path / "secret", "../../blobs/deep/file", "/etc/passwd"):
        (found / "other").symlink_to(target)
        with pytest.raises(InvalidArtifactError, match="outside the artifact"):
            scan(found)
        (found / "other").unlink()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4096\n"


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(POINTER)
    with pytest.raises(InvalidArtifactError, match=r"model\.onnx is a Git LFS pointer.*4096 bytes.*git lfs pull"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf\n <html lang='en'>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML document"),
    ],
)
def test_web_page_instead_of_a_model_is_named(tmp_path: Path, head: bytes, what: str) -> None:
    (tmp_path / "model.pt").write_bytes(head)
    with pytest.raises(InvalidArtifactError, match=f"is {what}, not a model"):
        scan(tmp_path)
    (tmp_path / "model.pt").rename(tmp_path / "README.html")  # this name allows an HTML page
    assert len(scan(tmp_path)) == 1


def test_file_changed_or_removed_while_read_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for change in (lambda: path.write_bytes(b"longer content"), lambda: path.write_bytes(b"short")):
        path.write_bytes(b"content")
        changes = iter([change])

        def progress(_count: int, changes: Iterator[Callable[[], object]] = changes) -> None:
            for one in changes:
                one()

        with pytest.raises(InvalidArtifactError, match="changed while it was read"):
            scan(path, progress=progress)
