"""Scanning of an artifact on disk: its files and their digests."""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controlplane.domain.manifest import FileEntry
from controlplane.domain.names import validate_file_path
from controlplane.domain.placeholders import HEAD_BYTES, lfs_pointer, web_page
from controlplane.errors import InvalidArtifactError, InvalidNameError
from controlplane.storage.base import ProgressCallback

logger = logging.getLogger(__name__)

MAX_FILES = 10_000
_SKIPPED = frozenset({"__pycache__"})
_MODEL_SUFFIXES = (
    *(".onnx", ".pt", ".pth", ".pt2", ".ts", ".jit", ".torchscript"),
    *(".skops", ".safetensors", ".pkl", ".pickle", ".joblib"),
)
_CHUNK = 4 * 1024 * 1024


def scan(
    path: Path, *, progress: ProgressCallback | None = None, select: Callable[[str], bool] | None = None
) -> list[tuple[FileEntry, Path]]:
    """List the files of an artifact, hashed in parallel, in the order of their paths.

    Hidden files and ``__pycache__`` are excluded. A symbolic link is followed if it stays inside the artifact, or if it
    leads from a snapshot in the Hugging Face cache to a blob of the same repository.

    Args:
        path: A file (the only file of the artifact) or a folder.
        progress: Receives the number of bytes hashed.
        select: Returns whether a file, by its path in the folder, belongs to the artifact; None selects all.

    Raises:
        InvalidArtifactError: The path does not exist, a link leaves the folder, an entry is not a regular file (a
            socket, a device), there are more than `MAX_FILES` files, a file name is not allowed, a file changes while
            it is read, or a file is a placeholder for one that was not downloaded (a Git LFS pointer, a web page with a
            model's name).
    """
    root = path.resolve()
    if not root.exists():
        raise InvalidArtifactError(f"{path} does not exist", path=str(path))
    if root.is_dir():
        found = sorted(item for item in _walk(root, root) if select is None or select(item[0]))
        if not found:
            raise InvalidArtifactError(f"{path} has no files (hidden files are ignored)", path=str(path))
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


def _blobs_beside(root: Path) -> Path | None:
    """Return the blob folder of a snapshot in the Hugging Face cache; None if ``root`` is not in such a snapshot.

    In the cache, ``models--ORG--NAME/snapshots/REVISION/FILE`` is a link to ``models--ORG--NAME/blobs/DIGEST``.
    """
    for folder in (root, *root.parents):
        repository = folder.parent.parent
        if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
            return repository / "blobs"
    return None


def _walk(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    count = 0
    blobs = _blobs_beside(root)
    for parent, folders, names in os.walk(folder):
        for name in list(folders):
            child = Path(parent, name)
            if _skipped(child):
                folders.remove(name)
            elif child.is_symlink():
                raise InvalidArtifactError(
                    f"{child} is a link to a folder; replace it with a copy of the folder", path=str(child)
                )
        for name in names:
            child = Path(parent, name)
            if _skipped(child):
                continue
            target = child.resolve()
            if not target.is_relative_to(root) and (blobs is None or target.parent != blobs):
                raise InvalidArtifactError(
                    f"{child} is a link to {target}, which is outside the artifact; replace it with a copy of the file",
                    path=str(child),
                )
            _require_file(target, str(child))
            count += 1
            if count > MAX_FILES:
                raise InvalidArtifactError(
                    f"{root} has more than {MAX_FILES} files; check that this is the right folder", path=str(root)
                )
            yield child.relative_to(root).as_posix(), target


def _skipped(path: Path) -> bool:
    skipped = path.name.startswith(".") or path.name in _SKIPPED
    if skipped:
        logger.debug("skipped %s", path)
    return skipped


def _require_file(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InvalidArtifactError(f"{name} is a broken link", path=name) from error
    if not stat.S_ISREG(mode):
        raise InvalidArtifactError(f"{name} is not a regular file (it is a device, a socket or a pipe)", path=name)


def _hash(relative: str, path: Path, progress: ProgressCallback | None) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while chunk := file.read(_CHUNK):
                if not size:
                    _refuse_placeholder(relative, chunk[:HEAD_BYTES])
                digest.update(chunk)
                size += len(chunk)
                if progress is not None:
                    progress(len(chunk))
            after = os.fstat(file.fileno())
    except PermissionError as error:
        raise InvalidArtifactError(f"{path} cannot be read: permission denied", path=str(path)) from error
    except FileNotFoundError as error:
        raise InvalidArtifactError(f"{path} was removed while it was read", path=str(path)) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise InvalidArtifactError(
            f"{path} changed while it was read; try again when no other program writes to it", path=str(path)
        )
    return FileEntry(path=relative, sha256=digest.hexdigest(), size_bytes=size)


def _refuse_placeholder(name: str, head: bytes) -> None:
    reason = lfs_pointer(name, head)
    if reason is None and name.lower().endswith(_MODEL_SUFFIXES):
        reason = web_page(name, head)
    if reason is not None:
        raise InvalidArtifactError(reason, path=name)
