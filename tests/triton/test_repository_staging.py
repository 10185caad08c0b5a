"""Staging on a real disk: complete or not at all, without copying where links can be made."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.checkedfiles import CheckedFiles
from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.names import candidate_name
from controlplane.errors import InvalidArtifactError, InvalidConfigError, InvalidNameError, StoreError, StoreFullError
from controlplane.triton.layout import layout
from controlplane.triton.repository import ModelRepository

CONFIG = {"name": "m", "backend": "onnxruntime", "version_policy": {"specific": {"versions": [7]}}}


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    (tmp_path / "repository").mkdir()
    return ModelRepository(tmp_path / "repository")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    blob, weights = tmp_path / "blob", tmp_path / "weights"
    blob.write_bytes(b"graph")
    weights.write_bytes(b"weights")
    return {"model.onnx": blob, "parts/weights.bin": weights}


def test_version_is_linked_and_config_written_once(repository: ModelRepository, files: dict[str, Path]) -> None:
    assert repository.stage("m", 7, files, CONFIG)
    version = repository.root / "m" / "7"
    assert (version / "model.onnx").samefile(files["model.onnx"])
    assert (version / "parts" / "weights.bin").read_bytes() == b"weights"
    assert (repository.root / "m" / "config.pbtxt").read_text().startswith('name: "m"')
    assert not repository.stage("m", 7, files, CONFIG)
    assert repository.staged() == {"m": {7}}
    # The one that is loaded keeps its configuration until the new one is loaded.
    repository.stage("m", 8, files, {**CONFIG, "max_batch_size": 4})
    assert "max_batch_size" not in (repository.root / "m" / "config.pbtxt").read_text()
    assert repository.write_config("m", {**CONFIG, "max_batch_size": 4})
    assert "max_batch_size: 4" in (repository.root / "m" / "config.pbtxt").read_text()
    assert not repository.write_config("m", {**CONFIG, "max_batch_size": 4})


def test_candidate_folder_is_renamed_to_its_model(repository: ModelRepository, files: dict[str, Path]) -> None:
    candidate = candidate_name("m")
    repository.stage(candidate, 7, files, {**CONFIG, "name": candidate})
    changed = files["model.onnx"].stat().st_ctime_ns
    assert not repository.stage("m", 7, files, CONFIG)
    assert repository.staged() == {"m": {7}}
    assert files["model.onnx"].stat().st_ctime_ns == changed
    assert (repository.root / "m" / "7" / "model.onnx").samefile(files["model.onnx"])


def test_candidate_with_other_content_is_not_reused(
    repository: ModelRepository, files: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    repository.stage(candidate_name("m"), 7, {"model.onnx": other})
    assert repository.stage("m", 7, files, CONFIG)
    assert (repository.root / "m" / "7" / "model.onnx").read_bytes() == b"graph"


def test_blob_in_use_by_another_version_is_copied(repository: ModelRepository, files: dict[str, Path]) -> None:
    """A further link would change the inode, and Triton would load version 7 again."""
    repository.stage("m", 7, files, CONFIG)
    changed = files["model.onnx"].stat().st_ctime_ns
    repository.stage("m", 8, files, CONFIG)
    assert files["model.onnx"].stat().st_ctime_ns == changed
    assert (repository.root / "m" / "8" / "model.onnx").read_bytes() == b"graph"


def test_staging_in_other_repository_changes_no_change_times(
    repository: ModelRepository, files: dict[str, Path], tmp_path: Path
) -> None:
    """Triton compares change times: it would load the version again."""
    repository.stage("m", 1, files)
    staged = {path: repository.root / "m" / "1" / path for path in files}
    before = {path: file.stat().st_ctime_ns for path, file in staged.items()}
    other = ModelRepository(tmp_path / "other")
    for name in ("m", "m~candidate", "m~tune"):
        other.stage(name, 1, files)
        other.remove_model(name)
    assert {path: file.stat().st_ctime_ns for path, file in staged.items()} == before
    assert all(file.stat().st_nlink == 2 for file in staged.values()), "the blob cache and this repository share them"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP])
def test_files_are_copied_if_linking_fails(
    repository: ModelRepository, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    assert repository.stage("m", 7, files, CONFIG)
    assert (repository.root / "m" / "7" / "model.onnx").read_bytes() == b"graph"


def test_files_are_copied_across_file_systems(files: dict[str, Path], tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    root = memory / f"staging-{os.getpid()}"
    root.mkdir()
    repository = ModelRepository(root)
    try:
        assert repository.stage("m", 7, files, CONFIG)
        assert (root / "m" / "7" / "model.onnx").read_bytes() == b"graph"
        assert repository.remove_model("m")
        assert list(root.iterdir()) == []
    finally:
        repository.clean()
        root.rmdir()


def test_full_disk_leaves_no_files(
    repository: ModelRepository, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def full(source: Path, target: Path) -> None:
        if target.name == "weights.bin":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreFullError, match="no space left"):
        repository.stage("m", 7, files, CONFIG)
    assert repository.staged() == {"m": set()}
    assert not list(repository.root.glob(".incomplete-*"))


def test_missing_source_leaves_no_version(repository: ModelRepository, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        repository.stage("m", 7, {"model.onnx": tmp_path / "nowhere"}, CONFIG)
    assert repository.staged() == {"m": set()}


@pytest.mark.parametrize("step", ["os.link", "os.fsync", "pathlib.Path.rename"])
def test_process_killed_while_staging_leaves_no_version(
    repository: ModelRepository, files: dict[str, Path], step: str
) -> None:
    """SIGKILL at the first link, the first sync, and right before the rename; the next one cleans up and stages."""
    program = f"""
import os, pathlib, signal
from controlplane.triton.repository import ModelRepository
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
{step} = die
ModelRepository(pathlib.Path({str(repository.root)!r})).stage("m", 7, {{
    "model.onnx": pathlib.Path({str(files["model.onnx"])!r}),
    "parts/weights.bin": pathlib.Path({str(files["parts/weights.bin"])!r}),
}})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert repository.staged() == {"m": set()}
    assert len(repository.clean()) == 1
    assert repository.stage("m", 7, files, CONFIG)
    assert repository.staged() == {"m": {7}}


def test_versions_and_models_are_removed(repository: ModelRepository, files: dict[str, Path]) -> None:
    repository.stage("m", 7, files, CONFIG)
    repository.stage("m", 8, files, CONFIG)
    assert repository.remove_version("m", 7)
    assert not repository.remove_version("m", 7)
    assert repository.staged() == {"m": {8}}
    assert repository.remove_model("m")
    assert not repository.remove_model("m")
    assert list(repository.root.iterdir()) == []
    assert files["model.onnx"].read_bytes() == b"graph"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "m~other", "~candidate"])
def test_names_cannot_leave_the_repository(repository: ModelRepository, files: dict[str, Path], name: str) -> None:
    with pytest.raises(InvalidNameError):
        repository.stage(name, 1, files, CONFIG)
    with pytest.raises(InvalidNameError):
        repository.remove_model(name)


def test_file_paths_cannot_leave_the_version(repository: ModelRepository, files: dict[str, Path]) -> None:
    with pytest.raises(InvalidNameError):
        repository.stage("m", 1, {"../model.onnx": files["model.onnx"]}, CONFIG)


def test_a_config_of_another_model_is_refused(repository: ModelRepository) -> None:
    with pytest.raises(InvalidConfigError, match="names 'm', not 'n'"):
        repository.write_config("n", CONFIG)


def test_only_tritons_version_folders_count(repository: ModelRepository, files: dict[str, Path]) -> None:
    repository.stage("m", 7, files, CONFIG)
    for name in ("007", "7a", "-1", "٣", "warmup"):
        (repository.root / "m" / name).mkdir()
    (repository.root / "m" / "9").write_text("a file")
    assert repository.staged() == {"m": {7}}


def entry(path: str) -> FileEntry:
    return FileEntry(path=path, sha256="0" * 64, size_bytes=1)


def placed(kind: Format, *paths: str, **attributes: str) -> dict[str, str]:
    manifest = Manifest(format=kind, files=tuple(entry(path) for path in paths), attributes=dict(attributes))
    return {target: file.path for target, file in layout(manifest).items()}


def test_layout_renames_model_file_and_keeps_data_beside_it() -> None:
    assert placed(Format.ONNX, "model.onnx", "w.bin") == {"model.onnx": "model.onnx", "w.bin": "w.bin"}
    assert placed(Format.ONNX, "resnet.onnx", "w.bin") == {"model.onnx": "resnet.onnx", "w.bin": "w.bin"}
    assert placed(Format.ONNX, "net/resnet.onnx", "net/w/0") == {"model.onnx": "net/resnet.onnx", "w/0": "net/w/0"}
    assert placed(Format.TORCHSCRIPT, "silero.jit") == {"model.pt": "silero.jit"}
    assert placed(Format.ONNX, "a.onnx", "b.onnx", main_file="b.onnx")["model.onnx"] == "b.onnx"
    with pytest.raises(InvalidArtifactError, match="cannot identify the model among these files: "):
        placed(Format.ONNX, "a.onnx", "b.onnx")
    with pytest.raises(InvalidArtifactError, match="convert it"):
        placed(Format.SKLEARN, "a.skops")
    with pytest.raises(InvalidArtifactError, match="in place of its own backend"):
        placed(Format.ONNX, "model.onnx", "libtriton_onnxruntime.so")


def test_concurrent_cleanups_do_not_fail(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    for number in range(40):
        folder = tmp_path / f".incomplete-{number}" / "deep" / "deeper"
        folder.mkdir(parents=True)
        for name in range(10):
            (folder / f"{name}").touch()
    with ThreadPoolExecutor(4) as pool:
        for cleaning in [pool.submit(repository.clean) for _ in range(4)]:
            cleaning.result()
    assert list(tmp_path.iterdir()) == []


# What is here is compared with what was published


def published(files: dict[str, Path]) -> dict[str, FileEntry]:
    return {
        path: FileEntry(
            path=path,
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            size_bytes=source.stat().st_size,
        )
        for path, source in files.items()
    }


def _write(version: Path) -> None:
    file = version / "model.onnx"
    before = file.stat()
    with file.open("r+b") as writer:
        writer.write(b"G")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _remove(version: Path) -> None:
    (version / "parts" / "weights.bin").unlink()


def _add(version: Path) -> None:
    (version / "model.py").write_text("import os")


def _link_away(version: Path) -> None:
    (version / "model.onnx").unlink()
    (version / "model.onnx").symlink_to("/etc/hostname")


def _fifo(version: Path) -> None:
    (version / "model.onnx").unlink()
    os.mkfifo(version / "model.onnx")


def _folder_link(version: Path) -> None:
    version.rename(version.with_name("elsewhere"))
    version.symlink_to(version.with_name("elsewhere"))


def _model_link(version: Path) -> None:
    outside = version.parents[2] / "outside"
    version.parent.rename(outside)
    version.parent.symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (_write, ["model.onnx was changed"]),
        (_remove, ["parts/weights.bin is missing"]),
        (_add, ["model.py does not belong to the version"]),
        (_link_away, ["model.onnx was changed"]),
        (_fifo, ["model.onnx was changed"]),
        (_folder_link, ["model.onnx is missing", "parts/weights.bin is missing"]),
        (_model_link, ["model.onnx is missing", "parts/weights.bin is missing"]),
    ],
)
def test_changed_version_is_found_and_staged_again(
    repository: ModelRepository, files: dict[str, Path], change: Callable[[Path], None], wrong: list[str]
) -> None:
    expected = published(files)
    contents = {path: source.read_bytes() for path, source in files.items()}
    repository.stage("m", 7, files, CONFIG)
    assert repository.check("m", 7, expected) == []
    version = repository.root / "m" / "7"
    change(version)
    assert repository.check("m", 7, expected) == wrong
    # The staged file and the cache's are one: both may be damaged, and the cache fetches its own again.
    for path, source in files.items():
        source.unlink()
        source.write_bytes(contents[path])
    repository.restage("m", 7, files)
    assert repository.check("m", 7, expected) == []
    assert not (repository.root / "m").is_symlink()
    outside = repository.root.parent / "outside" / "7"
    assert outside.is_dir() == (change is _model_link)  # nothing behind a link was removed
    assert not list(repository.root.glob(".incomplete-*"))


def test_unchanged_version_is_hashed_once(files: dict[str, Path], tmp_path: Path) -> None:
    checked = CheckedFiles(tmp_path)
    repository = ModelRepository(tmp_path / "repository", checked)
    expected = published(files)
    for source in files.values():
        checked.digest(source)
    first = checked.hashed_bytes
    for _ in range(3):
        repository.stage(candidate_name("m"), 7, files)
        repository.stage("m", 7, files, CONFIG)  # the candidate, renamed
        repository.stage("m", 8, files)  # copies: the files are taken
        for version in (7, 8):
            assert repository.check("m", version, expected) == []
        repository.remove_version("m", 7)
        repository.remove_model("m")
    assert checked.hashed_bytes == first
    assert all(checked.known(source.stat()) for source in files.values())


def test_changed_warmup_data_and_config_are_written_again(repository: ModelRepository, files: dict[str, Path]) -> None:
    data = {hashlib.sha256(b"data").hexdigest()[:32]: b"data"}
    repository.stage("m", 7, files, CONFIG, warmup=data)
    (name,) = data
    assert repository.has_warmup("m", [name])
    model = repository.root / "m"
    (model / "warmup" / name).write_bytes(b"DATA")
    assert not repository.has_warmup("m", [name])
    repository.add_warmup("m", data)
    assert (model / "warmup" / name).read_bytes() == b"data"
    text = (model / "config.pbtxt").read_text()
    later = {**CONFIG, "max_batch_size": 4}
    assert not repository.restore_config("m", later)  # ours: it stays until it is written on purpose
    (model / "config.pbtxt").write_text('name: "m"\nbackend: "python"\n')
    assert repository.restore_config("m", CONFIG)
    assert (model / "config.pbtxt").read_text() == text
