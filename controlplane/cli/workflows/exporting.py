"""`export`: writes deployments as a plain Triton model repository on this machine.

Each model is built in `_BUILDING` and gets its place by a rename, so its folder is complete or not there. The first
line of its ``config.pbtxt`` contains a digest of all files, which shows at the next export that they are unchanged and
may be replaced; other folders are never touched.
"""

import base64
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar
from controlplane.cli.references import version_path
from controlplane.cli.workflows.pull import download
from controlplane.client.errors import NotRunningError
from controlplane.client.http import Client, segment
from controlplane.client.models import RepositoryEntry
from controlplane.domain.model_directory import CONFIG_FILE
from controlplane.domain.names import Reference, validate_model_name
from controlplane.errors import ConflictError, ControlPlaneError, InvalidInputError, StoreError

_BUILDING = ".tritonctl-export"
_OLD = "~old"
_TITLE = "# Exported by tritonctl: "
_RULE = "; tritonctl replaces this folder while its files have the digest "


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one deployment.

    Attributes:
        model: The model.
        version: The exported version; None without one.
        result: ``exported``, ``replaced``, ``unchanged``, ``left`` or ``refused``.
        message: What a server needs to serve it, or why it was refused; empty if there is nothing to say.
    """

    model: str
    version: int | None
    result: str
    message: str = ""


def export(client: Client, models: Sequence[str] | None, folder: Path, out: Output) -> list[Row]:
    """Write deployments into a folder, and return a row for each.

    Args:
        client: The control plane.
        models: The deployments; None exports all, and reports the folders of models that are not deployed.
        folder: The model repository; created if it is missing.
        out: Shows the progress.

    Raises:
        InvalidInputError: The folder has content that no export wrote.
        ConflictError: Another export writes into the folder.
        ClientError: A named model is not deployed.
        NotRunningError: The control plane is unreachable.
        StoreError: The folder cannot be written.
    """
    everything = models is None
    names = [item["model"] for item in client.items("/v1/deployments")] if models is None else list(models)
    for name in names:
        validate_model_name(name)
    if not everything:
        for name in names:  # a mistyped name must not leave half an export
            _entry(client, name)
    _require_exports(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _restore(folder)
            rows = [_export_one(client, name, folder, out) for name in dict.fromkeys(names)]
            _clean(folder, keep=any(row.result == "refused" for row in rows))
            return rows + (_left(folder, set(names)) if everything else [])
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}", path=str(folder)) from error


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON."""
    return [asdict(row) for row in rows]


def _entry(client: Client, model: str) -> RepositoryEntry:
    return client.fetch(RepositoryEntry, f"/v1/deployments/{segment(model)}/repository")


def _require_exports(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InvalidInputError(f"{folder} is not a folder")
    for child in sorted(folder.iterdir()):
        if not child.name.startswith(".") and _title(child) is None:
            raise InvalidInputError(
                f"{folder} contains {child.name!r}, which is not an export; choose a new folder, or one that contains "
                "only exports"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another export writes into {folder}; wait until it has finished") from None
        yield
    finally:
        os.close(handle)


def _restore(folder: Path) -> None:
    """Put folders back that an interrupted export had moved out of their place."""
    for old in (folder / _BUILDING).glob(f"*{_OLD}"):
        place = folder / old.name.removesuffix(_OLD)
        if place.exists():
            shutil.rmtree(old)
        else:
            old.rename(place)


def _clean(folder: Path, *, keep: bool) -> None:
    """Remove the folder of unfinished models; with ``keep``, only if it is empty, so that an export can resume."""
    building = folder / _BUILDING
    if not keep:
        shutil.rmtree(building, ignore_errors=True)
    elif building.is_dir() and not any(building.iterdir()):
        building.rmdir()


def _left(folder: Path, names: set[str]) -> list[Row]:
    others = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    message = "the model is not deployed any more; its earlier export was not removed"
    return [Row(name, None, "left", message) for name in others if name not in names]


def _export_one(client: Client, model: str, folder: Path, out: Output) -> Row:
    entry = None
    try:
        entry = _entry(client, model)
        result = _write(client, entry, folder, out)
    except NotRunningError:
        raise
    except ControlPlaneError as error:
        return Row(model, entry.version if entry is not None else None, "refused", error.message)
    return Row(model, entry.version, result, "; ".join(entry.notes))


def _write(client: Client, entry: RepositoryEntry, folder: Path, out: Output) -> str:
    target, building = folder / entry.model, folder / _BUILDING / entry.model
    wanted = {file.path: file.sha256 for file in entry.files if file.path != CONFIG_FILE}
    config = _config(entry)
    body_digest = _digest(wanted, config)
    title = f"{_TITLE}{entry.model}:{entry.version}{_RULE}{body_digest}\n"
    present = target.exists() or target.is_symlink()
    if present:
        have = _untouched(target)
        if have is None:
            raise InvalidInputError(
                f"{target} has other files than tritonctl exported there; move it away, or export to another folder"
            )
        if have == body_digest and _title(target) == title:
            return "unchanged"
    _build(client, entry, building, f"{title}{config}".encode(), out)
    old = building.with_name(entry.model + _OLD)
    if present:
        target.rename(old)
    building.rename(target)
    _sync(folder)
    if present:
        shutil.rmtree(old)
    return "replaced" if present else "exported"


def _config(entry: RepositoryEntry) -> str:
    file = next((file for file in entry.files if file.path == CONFIG_FILE), None)
    if file is None or file.content is None:
        raise InvalidInputError(f"the control plane sent no {CONFIG_FILE} for {entry.model}")
    return base64.b64decode(file.content).decode()


def _build(client: Client, entry: RepositoryEntry, building: Path, config: bytes, out: Output) -> None:
    """Write all files of a model; those that an interrupted export left complete are not downloaded again."""
    _remove_others(building, entry)
    version = Reference(entry.model, version=entry.version)
    with Bar(out) as bar:
        bar.stage(f"exporting {version}", total=sum(file.size_bytes for file in entry.files))
        for file in entry.files:
            path = building / file.path
            if file.path == CONFIG_FILE:
                _put(path, config)
            elif file.content is not None:
                _put(path, base64.b64decode(file.content))
            else:
                source = f"{version_path(version)}/files/{quote(file.source or '')}"
                download(client, source, file, path, bar)
    for parent, _, _ in os.walk(building):
        _sync(Path(parent))


def _remove_others(building: Path, entry: RepositoryEntry) -> None:
    kept = set()
    for file in entry.files:
        path = building / file.path
        kept |= {path, path.with_name(f"{path.name}.{file.sha256[:12]}.incomplete")}
    for parent, _, names in os.walk(building, topdown=False):
        for path in (Path(parent, name) for name in names):
            if path not in kept:
                path.unlink()
        if not any(Path(parent).iterdir()):
            Path(parent).rmdir()


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _title(model: Path) -> str | None:
    """Return the first line of an exported model's configuration; None if the folder is no export."""
    try:
        with (model / CONFIG_FILE).open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError):
        return None
    return first if first.startswith(_TITLE) and _RULE in first else None


def _untouched(model: Path) -> str | None:
    """Return the digest of an exported model's files; None if they are not those that were exported."""
    title = _title(model)
    if title is None or model.is_symlink():
        return None
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(model):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                return None
        for path in (Path(parent, name) for name in names):
            with path.open("rb") as file:
                found[path.relative_to(model).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    del found[CONFIG_FILE]
    config = (model / CONFIG_FILE).read_text("utf-8").removeprefix(title)
    digest = _digest(found, config)
    return digest if title.rstrip("\n").endswith(_RULE + digest) else None


def _digest(files: Mapping[str, str], config: str) -> str:
    """Return the digest of a model's files, given those beside the configuration, and the configuration's text."""
    lines = [f"{digest} {path}\n" for path, digest in sorted(files.items())]
    return hashlib.sha256("".join([*lines, config]).encode()).hexdigest()
