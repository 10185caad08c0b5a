"""Triton's model repository on disk.

::

    <root>/
    ├── .incomplete-…/          a folder that is being created or removed; not a model for Triton
    ├── resnet/
    │   ├── config.pbtxt        written by rename
    │   ├── warmup/             data of warm-up requests, named by content
    │   ├── labels.txt          a file of the format triton, which all loaded versions share
    │   └── 7/model.onnx        a hard link into the blob cache; created by one rename, never changed
    ├── resnet~candidate/…
    └── resnet~tune/…           a copy for trying settings; always separate files

A version's folder is never modified after its creation, and its number is never reused for other bytes. Triton reloads
a version, at the next load of its model, if any time stamp in its folder has changed, including the *change* times of
inodes (2.51: docs/internals/triton.md). So adding or removing a second link to a file makes Triton reload a loaded
version, and any new entry in the model's folder beside its versions and ``config.pbtxt`` makes it reload all of them.
Therefore work in progress is kept in the root, a proved candidate is renamed and not linked again, and a blob that a
version already has, in this or another server's repository, is copied.

Triton, and the code of a model, may be able to write to the repository. So before a load `RepositoryFolder.check`
compares its content with the version's manifest, using the records of hashed files: files that have not changed are not
read.
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
from controlplane.domain.manifest import FileEntry
from controlplane.domain.names import (
    CANDIDATE_SUFFIX,
    TUNING_SUFFIX,
    candidate_name,
    validate_file_path,
    validate_model_name,
)
from controlplane.errors import InvalidConfigError, StoreError, StoreFullError
from controlplane.triton.config_json import to_pbtxt
from controlplane.triton.staged_files import StagedFiles, files_below, sync_folder
from controlplane.triton.warmup import FOLDER as WARMUP

logger = logging.getLogger(__name__)

CONFIG = "config.pbtxt"
_INCOMPLETE = ".incomplete-"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class RepositoryFolder:
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
            files: Local files by their path in that folder, as returned by `layout`.
            config: Written as ``config.pbtxt`` if the model has none yet. An existing one stays until `write_config`,
                so that a server that restarts in the meantime finds the previous configuration.
            warmup: Files of the warm-up request, by name.

        Returns:
            Whether the version was added; False if it already existed, either under its own name or as the candidate,
                whose folder is then renamed.

        Raises:
            StoreFullError: The disk is full; nothing is left behind.
            StoreError: The repository is not writable.
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
                # Another process may have staged the same version first; then it exists.
                if target.is_dir():
                    return False
                raise
        return True

    def has(self, triton_name: str, version: int) -> bool:
        """Return whether a version is staged, intact or not."""
        return (self._model(triton_name) / str(version)).exists()

    def check(self, triton_name: str, version: int, files: Mapping[str, FileEntry]) -> list[str]:
        """Compare a version's folder with its expected content. Only files that are new or changed are read.

        Args:
            triton_name: The model's name in Triton.
            version: The version.
            files: The version's files by their path in that folder, as returned by `layout`.

        Returns:
            One message for each wrong file; empty if the folder contains exactly these files.

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
        """Replace a version's folder by one with these files. If the process is killed, one folder or none remains.

        Raises:
            StoreFullError: The disk is full; the folder is unchanged.
            StoreError: The repository is not writable.
        """
        model = self._model(triton_name)
        with _translated(model / str(version)):
            model.mkdir(parents=True, exist_ok=True)
            self._put(triton_name, version, files, replace=True)

    def renew(self, triton_name: str, versions: Iterable[int]) -> None:
        """Make versions look newer, so that the next load reloads them.

        Triton ignores a load that changes nothing, even if the model's process has died. A newer ``config.pbtxt`` has
        no effect if the load carries its configuration; a newer version folder does.

        Raises:
            StoreError: The repository is not writable.
        """
        for version in versions:
            folder = self._model(triton_name) / str(version)
            with _translated(folder), contextlib.suppress(FileNotFoundError):
                os.utime(folder)

    def has_warmup(self, triton_name: str, names: Iterable[str]) -> bool:
        """Return whether all files of a warm-up request are in the model's folder, with the content of their names."""
        folder = self._model(triton_name) / WARMUP
        return all(self._files.matches(folder / name, name) for name in names)

    def add_warmup(self, triton_name: str, files: Mapping[str, bytes]) -> None:
        """Put the files of a warm-up request into the model's folder; intact files stay unchanged.

        A new file makes Triton reload every version of the model at its next load. So use this only before a load that
        changes the configuration, which reloads them anyway.

        Raises:
            StoreFullError: The disk is full.
            StoreError: The repository is not writable.
        """
        model = self._model(triton_name)
        with _translated(model):
            model.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                self._write_warmup(model, name, content)

    def lacks_shared(self, triton_name: str, files: Mapping[str, FileEntry]) -> list[str]:
        """Return the paths of files beside the version folders that are missing or changed."""
        model = self._model(triton_name)
        return [path for path, entry in files.items() if not self._files.matches(model / path, entry.sha256)]

    def put_shared(self, triton_name: str, files: Mapping[str, Path]) -> None:
        """Put files beside the version folders; a file that a kill left incomplete is found by its digest.

        Triton then reloads every version of the model at its next load. So use this only before a load that changes
        the configuration, which reloads them anyway. Other files stay, because they do no harm.

        Args:
            triton_name: The model's name in Triton.
            files: Local files by their path in the model's folder.

        Raises:
            StoreFullError: The disk is full.
            StoreError: The repository is not writable.
        """
        model = self._model(triton_name)
        for path, source in files.items():
            target = model / validate_file_path(path)
            with _translated(target):
                self._clear(model, target)
                self._files.place(source, target)
                sync_folder(target.parent)

    def _clear(self, model: Path, target: Path) -> None:
        """Remove what is in the place of a file: an old file, a folder, or a link or file in place of its folders."""
        for folder in reversed(target.parents):
            if folder != model and folder.is_relative_to(model) and (folder.is_symlink() or folder.is_file()):
                self._files.remove(folder)
        self._files.remove(target)

    def write_config(self, triton_name: str, config: Mapping[str, Any]) -> bool:
        """Replace ``config.pbtxt`` by rename; return whether it changed.

        A file with the same content is not written, so its modification time stays: Triton treats a newer file as a new
        configuration.

        Raises:
            InvalidConfigError: The configuration is not valid, or names another model.
            StoreFullError: The disk is full.
            StoreError: The repository is not writable.
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
        """Write ``config.pbtxt`` again unless it is as this control plane wrote it; return whether it changed.

        Triton does not read the file at a load that carries a configuration, but it does at a manual load without one.

        Raises:
            InvalidConfigError: The configuration is not valid, or names another model.
            StoreFullError: The disk is full.
            StoreError: The repository is not writable.
        """
        path = self._model(triton_name) / CONFIG
        with _translated(path), contextlib.suppress(FileNotFoundError):
            if self._files.known(path):
                return False
        return self.write_config(triton_name, config)

    def staged(self) -> dict[str, set[int]]:
        """Return the complete versions in the repository, by Triton name; includes models without versions."""
        found: dict[str, set[int]] = {}
        with contextlib.suppress(FileNotFoundError):
            for model in self.root.iterdir():
                if model.is_dir() and not model.name.startswith("."):
                    found[model.name] = {int(path.name) for path in model.iterdir() if _is_version(path)}
        return found

    def remove_version(self, triton_name: str, version: int) -> bool:
        """Remove a version, by one rename; return whether it existed. It must not be loaded."""
        target = self._model(triton_name) / str(version)
        with _translated(target):
            return self._move_out(target)

    def remove_model(self, triton_name: str) -> bool:
        """Remove a model, by one rename; return whether it existed. It must not be loaded."""
        model = self._model(triton_name)
        with _translated(model):
            return self._move_out(model)

    def clean(self) -> list[Path]:
        """Remove and return the leftovers of a crash; call this before anything is staged."""
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
        """Build a version's folder and rename it to its path; with ``replace``, first remove the existing folder."""
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
        """Remove ``path``, by one rename; return whether it existed."""
        if path.parent != self.root and path.parent.is_symlink():
            path.parent.unlink()  # the link may lead anywhere: its target is not ours to remove
            return True
        leaving = self._incomplete("-".join(path.relative_to(self.root).parts))
        try:
            path.rename(leaving)
        except FileNotFoundError:
            return False
        self._files.remove(leaving)
        return True

    def _promote(self, triton_name: str, version: int, files: Mapping[str, Path]) -> bool:
        """Rename a staged candidate's version to its model's own name; return whether the version is in place."""
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
    """Return whether a path is a version folder by Triton's rule: a number without a leading zero."""
    return path.name.isascii() and path.name.isdigit() and not path.name.startswith("0") and path.is_dir()


def _same_files(folder: Path, files: Mapping[str, Path]) -> bool:
    """Return whether a version's folder contains these files: the same inodes, or copies of the same size."""
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
