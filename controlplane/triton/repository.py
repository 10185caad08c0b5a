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
included (2.51: docs/internals/triton.md). So a second link to a file, or the end of one, costs a loaded version
a reload, and anything that appears in the model's folder beside its versions and ``config.pbtxt`` reloads all of them.
That is why work in progress lies in the root, why a proved candidate is renamed and not linked again, and why a blob
that a version has already, here or in another server's repository, is copied.

Triton, and the code that a model brings, may be able to write here. So before a load `ModelRepository.check` compares
what is here with the version's manifest, from the records of hashed files: without reading a file that has not changed.
"""

import contextlib
import errno
import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from controlplane.checkedfiles import CheckedFiles
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
from controlplane.triton.staged_files import StagedFiles, files_below, sync_folder
from controlplane.triton.warmup import FOLDER as WARMUP

logger = logging.getLogger(__name__)

CONFIG = "config.pbtxt"
_INCOMPLETE = ".incomplete-"
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
    """One server's model repository. Thread-safe for different models; one model has one writer at a time.

    Args:
        root: The folder.
        checked: The records of hashed files; those of the blob cache, so that a linked file is not hashed again. None
            keeps records in memory.
    """

    def __init__(self, root: Path, checked: CheckedFiles | None = None) -> None:
        self.root = root
        self._files = StagedFiles(checked or CheckedFiles())

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
            try:
                self._put(triton_name, version, files)
            except BaseException:
                # Another process may have put the same version there first: then it is there.
                if target.is_dir():
                    return False
                raise
        return True

    def has(self, triton_name: str, version: int) -> bool:
        """Whether a version is staged, intact or not."""
        return (self._model(triton_name) / str(version)).exists()

    def check(self, triton_name: str, version: int, files: Mapping[str, FileEntry]) -> list[str]:
        """Compare a version's folder with what should be in it. A file is read only if it has changed or is new here.

        Args:
            triton_name: The model's name in Triton.
            version: The version.
            files: The version's files by their path in that folder, as `layout` has them.

        Returns:
            What is wrong, one text for each file; empty where the folder holds exactly these files.

        Raises:
            StoreError: The repository cannot be read.
        """
        folder = self._model(triton_name) / str(version)
        with _translated(folder):
            found = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
            wrong = [f"{name} does not belong to the version" for name in sorted(found.keys() - files.keys())]
            for name, entry in files.items():
                if name not in found:
                    wrong.append(f"{name} is missing")
                elif not self._files.matches(found[name], entry.sha256):
                    wrong.append(f"{name} was changed")
        return wrong

    def restage(self, triton_name: str, version: int, files: Mapping[str, Path]) -> None:
        """Replace a version's folder by one with these files. A process that is killed here leaves one, or none.

        Raises:
            StoreFullError: The disk is full; the folder is as it was.
            StoreError: The repository cannot be written.
        """
        model = self._model(triton_name)
        with _translated(model / str(version)):
            model.mkdir(parents=True, exist_ok=True)
            self._put(triton_name, version, files, replace=True)

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
        """Whether the files of a warm-up request are all in the model's folder, with the content they are named by."""
        folder = self._model(triton_name) / WARMUP
        return all(self._files.matches(folder / name, name) for name in names)

    def add_warmup(self, triton_name: str, files: Mapping[str, bytes]) -> None:
        """Put the files of a warm-up request into the model's folder; those that are intact stay as they are.

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
            if self._files.matches(model / CONFIG, hashlib.sha256(text).hexdigest()):
                return False
            model.mkdir(parents=True, exist_ok=True)
            self._files.write(model / CONFIG, text, self._incomplete(CONFIG))
        return True

    def restore_config(self, triton_name: str, config: Mapping[str, Any]) -> bool:
        """Write ``config.pbtxt`` again unless it is as this control plane wrote it; returns whether it changed.

        Triton does not read it at a load that carries a configuration, but it does so where one is loaded by hand.

        Raises:
            InvalidConfigError: The configuration is not valid, or names another model.
            StoreFullError: The disk is full.
            StoreError: The repository cannot be written.
        """
        path = self._model(triton_name) / CONFIG
        with _translated(path), contextlib.suppress(FileNotFoundError):
            if self._files.known(path):
                return False
        return self.write_config(triton_name, config)

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
        target = self._model(triton_name) / str(version)
        with _translated(target):
            return self._move_out(target)

    def remove_model(self, triton_name: str) -> bool:
        """Take a model out, by one rename; returns whether it was there. It must not be loaded."""
        model = self._model(triton_name)
        with _translated(model):
            return self._move_out(model)

    def clean(self) -> list[Path]:
        """Remove what a crash left half-way in or out; call it before anything is staged. Returns what it removed."""
        with _translated(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            left = list(self.root.glob(f"{_INCOMPLETE}*"))
            for path in left:
                self._files.remove(path)
        if left:
            logger.info("removed %d leftovers of an interrupted staging from %s", len(left), self.root)
        return left

    def _model(self, triton_name: str) -> Path:
        validate_model_name(triton_name.removesuffix(CANDIDATE_SUFFIX).removesuffix(TUNING_SUFFIX))
        return self.root / triton_name

    def _incomplete(self, what: str) -> Path:
        return self.root / f"{_INCOMPLETE}{what}-{uuid.uuid4().hex[:8]}"

    def _put(self, triton_name: str, version: int, files: Mapping[str, Path], *, replace: bool = False) -> None:
        """Build a version's folder and rename it into its place; with ``replace`` what is there is moved out before."""
        target = self.root / triton_name / str(version)
        building = self._incomplete(f"{triton_name}-{version}")
        try:
            building.mkdir()
            for path, source in files.items():
                self._files.place(source, building / path)
            for folder, _, _ in os.walk(building):
                sync_folder(Path(folder))
            if replace:
                self._move_out(target)
                target.parent.mkdir(exist_ok=True)
            building.rename(target)
        except BaseException:
            self._files.remove(building)
            raise
        sync_folder(target.parent)

    def _move_out(self, path: Path) -> bool:
        """Remove what is at ``path``, by one rename; return whether anything was there."""
        if path.parent != self.root and path.parent.is_symlink():
            path.parent.unlink()  # it may lead anywhere: nothing behind it is ours to remove
            return True
        leaving = self._incomplete("-".join(path.relative_to(self.root).parts))
        try:
            path.rename(leaving)
        except FileNotFoundError:
            return False
        self._files.remove(leaving)
        return True

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
        sync_folder(target.parent)
        if not self.staged().get(candidate.parent.name):
            self.remove_model(candidate.parent.name)
        return True

    def _write_warmup(self, model: Path, name: str, content: bytes) -> None:
        validate_file_path(name)
        target = model / WARMUP / name
        if not self._files.matches(target, name):  # named by content
            target.parent.mkdir(exist_ok=True)
            self._files.write(target, content, self._incomplete(name))


def _is_version(path: Path) -> bool:
    """Triton's own rule: a number without a leading zero."""
    return path.name.isascii() and path.name.isdigit() and not path.name.startswith("0") and path.is_dir()


def _same_files(folder: Path, files: Mapping[str, Path]) -> bool:
    """Whether a version's folder holds these files: the same inodes, or copies of the same size."""
    try:
        return all((folder / path).stat().st_size == source.stat().st_size for path, source in files.items())
    except FileNotFoundError:
        return False


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
