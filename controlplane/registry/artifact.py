"""Reading an artifact from disk: its files, with their digests."""

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controlplane.domain.manifest import FileEntry
from controlplane.domain.names import validate_file_path
from controlplane.errors import InvalidArtifactError, InvalidNameError
from controlplane.storage.base import ProgressCallback

logger = logging.getLogger(__name__)

MAX_FILES = 10_000
_SKIPPED = frozenset({"__pycache__"})
_CHUNK = 4 * 1024 * 1024


def scan(path: Path, *, progress: ProgressCallback | None = None) -> list[tuple[FileEntry, Path]]:
    """List the files of an artifact, hashed in parallel, in the order of their paths.

    Hidden files and ``__pycache__`` are left out. A link is followed as long as it stays inside the artifact.

    Args:
        path: A file (the artifact is that file alone) or a folder.
        progress: Told of the bytes hashed.

    Raises:
        InvalidArtifactError: There is nothing there, a link leaves the folder, something is no file (a socket, a
            device), there are more than `MAX_FILES`, or a name cannot be used.
    """
    root = path.resolve()
    if not root.exists():
        raise InvalidArtifactError(f"{path} does not exist", path=str(path))
    if root.is_dir():
        found = sorted(_walk(root, root))
        if not found:
            raise InvalidArtifactError(f"{path} has no files (hidden ones do not count)", path=str(path))
    else:
        _require_file(root, str(path))
        found = [(path.name, root)]
    for relative, _ in found:
        try:
            validate_file_path(relative)
        except InvalidNameError as error:
            raise InvalidArtifactError(error.message, path=relative) from error
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="scan") as pool:
        entries = list(pool.map(lambda item: _hash(item[0], item[1], progress), found))
    return [(entry, local) for entry, (_, local) in zip(entries, found, strict=True)]


def _walk(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    count = 0
    for parent, folders, names in os.walk(folder):
        for name in list(folders):
            child = Path(parent, name)
            if _skipped(child):
                folders.remove(name)
            elif child.is_symlink():
                raise InvalidArtifactError(
                    f"{child} is a link to a folder; put a copy of the folder there", path=str(child)
                )
        for name in names:
            child = Path(parent, name)
            if _skipped(child):
                continue
            target = child.resolve()
            if not target.is_relative_to(root):
                raise InvalidArtifactError(
                    f"{child} is a link out of the artifact, to {target}; put a copy of the file there",
                    path=str(child),
                )
            _require_file(target, str(child))
            count += 1
            if count > MAX_FILES:
                raise InvalidArtifactError(
                    f"{root} has more than {MAX_FILES} files; is it the right folder?", path=str(root)
                )
            yield child.relative_to(root).as_posix(), target


def _skipped(path: Path) -> bool:
    skipped = path.name.startswith(".") or path.name in _SKIPPED
    if skipped:
        logger.debug("left out %s", path)
    return skipped


def _require_file(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InvalidArtifactError(f"{name} is a link to nothing", path=name) from error
    if not stat.S_ISREG(mode):
        raise InvalidArtifactError(f"{name} is no regular file (a device, a socket or a pipe)", path=name)


def _hash(relative: str, path: Path, progress: ProgressCallback | None) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if progress is not None:
                    progress(len(chunk))
    except PermissionError as error:
        raise InvalidArtifactError(f"{path} cannot be read: permission denied", path=str(path)) from error
    return FileEntry(path=relative, sha256=digest.hexdigest(), size_bytes=size)
