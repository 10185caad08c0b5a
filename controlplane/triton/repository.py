"""Triton's model repository on disk.

::

    <root>/
    ├── .incomplete-…/          something on its way in or out; no model for Triton
    ├── resnet/
    │   ├── config.pbtxt        written by rename
    │   ├── warmup/             data of warm-up requests, named by content
    │   └── 7/model.onnx        a hard link into the blob cache; there by one rename, never changed
    ├── resnet~candidate/…
    └── resnet~tune/…           a copy that settings are tried on; always files of its own

A version's folder is never written to once it is there, and its number is never used for other bytes. Triton loads a
version again, at the next load of its model, when any time stamp in its folder has changed, the inodes' *change* times
included (2.51, measured: see docs/triton.md). So a second link to a file, or the end of one, costs a loaded version a
reload, and anything that appears in the model's folder beside its versions and ``config.pbtxt`` costs all of them one.
That is why work in progress lies in the root, why a proved candidate is renamed and not linked again, and why a blob
that another version here has already is copied.
"""

import contextlib
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.names import (
    CANDIDATE_SUFFIX,
    TUNING_SUFFIX,
    candidate_name,
    validate_file_path,
    validate_model_name,
)
from controlplane.errors import InvalidArtifactError, InvalidConfigError, StoreError, StoreFullError
from controlplane.triton.config_json import to_pbtxt
from controlplane.triton.warmup import FOLDER as WARMUP

logger = logging.getLogger(__name__)

CONFIG = "config.pbtxt"
_INCOMPLETE = ".incomplete-"
# The file systems differ, the source has too many links, or the folder (vfat, some network mounts) has no links.
_LINK_IMPOSSIBLE = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.ENOSYS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def layout(manifest: Manifest) -> dict[str, FileEntry]:
    """Say where in a version's folder each file goes: the model file under the name that Triton's backend looks for.

    External data of an ONNX model lies beside it and keeps its name.

    Raises:
        InvalidArtifactError: Triton cannot serve the format, or which file is the model cannot be told.
    """
    wanted = manifest.format.file_name
    if wanted is None:
        raise InvalidArtifactError(f"Triton cannot run the format {manifest.format}; convert it to onnx or torchscript")
    files = {file.path: file for file in manifest.files}
    main = wanted if wanted in files else _main_file(files, wanted, manifest.attributes.get("main_file"))
    folder = main.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    placed = {path.removeprefix(prefix): file for path, file in files.items() if path not in (main, wanted)}
    placed[wanted] = files[main]
    return placed


def _main_file(files: Mapping[str, FileEntry], wanted: str, named: object) -> str:
    if isinstance(named, str) and named in files:
        return named
    suffixes = (".onnx",) if wanted.endswith(".onnx") else (".pt", ".pth", ".jit", ".ts", ".torchscript")
    candidates = [path for path in files if path.endswith(suffixes)] or (list(files) if len(files) == 1 else [])
    if len(candidates) != 1:
        raise InvalidArtifactError(
            f"which of these files is the model cannot be told: {', '.join(files)}; name it {wanted}"
        )
    return candidates[0]


class ModelRepository:
    """One server's model repository. Thread-safe for different models; one model has one writer at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(
        self,
        triton_name: str,
        version: int,
        files: Mapping[str, Path],
        config: Mapping[str, Any] | None = None,
        *,
        warmup: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Put a version into the repository, completely or not at all.

        Args:
            triton_name: The model's name in Triton.
            version: The version's number, which is its folder.
            files: Local files by their path in that folder, as `layout` has them.
            config: Written as ``config.pbtxt`` where the model has none yet. A model that is there keeps its own
                until `write_config`, so that a server that restarts meanwhile finds what it had.
            warmup: Files of the warm-up request, by name.

        Returns:
            Whether the version was put there; False when it was there already, as itself or as the candidate, whose
            folder it then takes over.

        Raises:
            StoreFullError: The disk is full; nothing is left behind.
            StoreError: The repository cannot be written.
        """
        model = self._model(triton_name)
        target = model / str(version)
        for path in files:
            validate_file_path(path)
        with _translated(target):
            model.mkdir(parents=True, exist_ok=True)
            self.add_warmup(triton_name, warmup or {})
            if config is not None and not (model / CONFIG).exists():
                self.write_config(triton_name, config)
            if target.is_dir() or self._promote(triton_name, version, files):
                return False
            building = self._incomplete(f"{triton_name}-{version}")
            # A tuned copy goes while its model stays: it must not share a file even with what is still a candidate.
            taken = self._inodes(candidates=triton_name.endswith(TUNING_SUFFIX))
            try:
                building.mkdir()
                for path, source in files.items():
                    _place(source, building / path, taken)
                for folder, _, _ in os.walk(building):
                    _sync_folder(Path(folder))
                building.rename(target)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                # Somebody else may have put the same version there first: then it is there.
                if target.is_dir():
                    return False
                raise
            _sync_folder(model)
        return True

    def renew(self, triton_name: str, versions: Iterable[int]) -> None:
        """Make versions look newer, so that the next load does load them again.

        Triton takes a load that changes nothing for done, also when the model's process has died. A newer
        ``config.pbtxt`` does not count where the load carries its configuration; a newer version folder does.

        Raises:
            StoreError: The repository cannot be written.
        """
        for version in versions:
            folder = self._model(triton_name) / str(version)
            with _translated(folder), contextlib.suppress(FileNotFoundError):
                os.utime(folder)

    def has_warmup(self, triton_name: str, names: Iterable[str]) -> bool:
        """Whether the files of a warm-up request are all in the model's folder."""
        folder = self._model(triton_name) / WARMUP
        return all((folder / name).is_file() for name in names)

    def add_warmup(self, triton_name: str, files: Mapping[str, bytes]) -> None:
        """Put the files of a warm-up request into the model's folder; those that are there stay as they are.

        A new one costs every version of the model a reload at its next load. So it is for a load that changes the
        configuration, which reloads them anyway.

        Raises:
            StoreFullError: The disk is full.
            StoreError: The repository cannot be written.
        """
        model = self._model(triton_name)
        with _translated(model):
            model.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                self._write_warmup(model, name, content)

    def write_config(self, triton_name: str, config: Mapping[str, Any]) -> bool:
        """Replace ``config.pbtxt`` by rename; returns whether it changed.

        A file that says the same already is left alone, with its modification time: Triton takes a newer file for a
        new configuration.

        Raises:
            InvalidConfigError: The configuration is not valid, or names another model.
            StoreFullError: The disk is full.
            StoreError: The repository cannot be written.
        """
        if config.get("name") != triton_name:
            raise InvalidConfigError(
                f"the configuration names {config.get('name')!r}, not {triton_name!r}", field="name"
            )
        model = self._model(triton_name)
        text = to_pbtxt(config).encode()
        with _translated(model / CONFIG):
            with contextlib.suppress(FileNotFoundError):
                if (model / CONFIG).read_bytes() == text:
                    return False
            model.mkdir(parents=True, exist_ok=True)
            self._write_file(model / CONFIG, text)
        return True

    def staged(self) -> dict[str, set[int]]:
        """The complete versions that are there, by Triton name; models without one are listed, too."""
        found: dict[str, set[int]] = {}
        with contextlib.suppress(FileNotFoundError):
            for model in self.root.iterdir():
                if model.is_dir() and not model.name.startswith("."):
                    found[model.name] = {int(path.name) for path in model.iterdir() if _is_version(path)}
        return found

    def remove_version(self, triton_name: str, version: int) -> bool:
        """Take a version out, by one rename; returns whether it was there. It must not be loaded."""
        model = self._model(triton_name)
        leaving = self._incomplete(f"{triton_name}-{version}")
        with _translated(model / str(version)):
            try:
                (model / str(version)).rename(leaving)
            except FileNotFoundError:
                return False
            _remove_tree(leaving)
        return True

    def remove_model(self, triton_name: str) -> bool:
        """Take a model out, by one rename; returns whether it was there. It must not be loaded."""
        model = self._model(triton_name)
        leaving = self._incomplete(triton_name)
        with _translated(model):
            try:
                model.rename(leaving)
            except FileNotFoundError:
                return False
            _remove_tree(leaving)
        return True

    def clean(self) -> list[Path]:
        """Remove what a crash left half-way in or out; call it before anything is staged. Returns what it removed."""
        with _translated(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            left = list(self.root.glob(f"{_INCOMPLETE}*"))
            for path in left:
                if path.is_dir():
                    _remove_tree(path)
                else:
                    path.unlink(missing_ok=True)
        if left:
            logger.info("removed %d leftovers of an interrupted staging from %s", len(left), self.root)
        return left

    def _model(self, triton_name: str) -> Path:
        validate_model_name(triton_name.removesuffix(CANDIDATE_SUFFIX).removesuffix(TUNING_SUFFIX))
        return self.root / triton_name

    def _incomplete(self, what: str) -> Path:
        return self.root / f"{_INCOMPLETE}{what}-{uuid.uuid4().hex[:8]}"

    def _promote(self, triton_name: str, version: int, files: Mapping[str, Path]) -> bool:
        """Rename a staged candidate's version to its model's own name."""
        candidate = self.root / candidate_name(triton_name) / str(version)
        target = self.root / triton_name / str(version)
        if not candidate.is_dir() or not _same_files(candidate, files):
            return False
        try:
            candidate.rename(target)
        except OSError:
            return target.is_dir()
        _sync_folder(target.parent)
        if not self.staged().get(candidate.parent.name):
            self.remove_model(candidate.parent.name)
        return True

    def _inodes(self, *, candidates: bool) -> set[tuple[int, int]]:
        """What the versions here consist of.

        Candidates count only where it is asked for: theirs come and go before a load that matters.
        """
        found: set[tuple[int, int]] = set()
        for name, versions in self.staged().items():
            if candidates or not name.endswith(CANDIDATE_SUFFIX):
                for version in versions:
                    for folder, _, names in os.walk(self.root / name / str(version)):
                        found.update(_inode(Path(folder, name)) for name in names)
        return found

    def _write_warmup(self, model: Path, name: str, content: bytes) -> None:
        validate_file_path(name)
        target = model / WARMUP / name
        if not target.exists():  # named by content
            target.parent.mkdir(exist_ok=True)
            self._write_file(target, content)

    def _write_file(self, target: Path, content: bytes) -> None:
        temporary = self._incomplete(target.name)
        try:
            with temporary.open("xb") as writer:
                writer.write(content)
                writer.flush()
                os.fsync(writer.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def _is_version(path: Path) -> bool:
    """Triton's own rule: a number without a leading zero."""
    return path.name.isascii() and path.name.isdigit() and not path.name.startswith("0") and path.is_dir()


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _same_files(folder: Path, files: Mapping[str, Path]) -> bool:
    """Whether a version's folder holds these files: the same inodes, or copies of the same size."""
    try:
        return all((folder / path).stat().st_size == source.stat().st_size for path, source in files.items())
    except FileNotFoundError:
        return False


def _place(source: Path, target: Path, taken: Collection[tuple[int, int]]) -> None:
    """Link a file, or copy it where links cannot be made or would touch a version that is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if _inode(source) not in taken:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _LINK_IMPOSSIBLE:
                raise
        else:
            return
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    """Remove a folder that another process may be removing, too: whoever cleans after a crash removes what it finds."""
    while path.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(
                f"no space left for {path}: free some, or move the model repository", path=str(path)
            ) from error
        raise StoreError(f"the model repository cannot be written at {path}: {error}", path=str(path)) from error
