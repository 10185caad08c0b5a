"""Local blob cache: content-addressed files that Triton's repository hard-links.

A file that has a second link elsewhere (a staged version) takes no extra space. Removing it here would free nothing, so
it does not count towards the size limit and is not evicted. The cache does not change the times of such a file either,
because Triton reloads a version whose files have a new change time.

No file in the cache is the store's own file: a store in a folder returns a copy (docs/adr/0013-copies-and-checks.md).
"""

import contextlib
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.checkedfiles import CheckedFiles, mark_used
from controlplane.domain.manifest import FileEntry
from controlplane.errors import NotFoundError, ObjectNotFoundError, StoreFullError
from controlplane.filelock import FileLock
from controlplane.registry.blobs import blob_key
from controlplane.storage.base import ObjectStore, ProgressCallback
from controlplane.storage.localfile import IncompleteFile, remove_abandoned

logger = logging.getLogger(__name__)

_PIN = ".pin"


@contextmanager
def _report_full_disk(path: Path) -> Iterator[None]:
    """Add the path and the required action to a disk-full error; the error of a write names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreFullError(
            f"no space left for {path} in the blob cache; free disk space or lower CONTROLPLANE_CACHE__MAX_BYTES",
            path=str(path),
        ) from error


class BlobCache:
    """A cache of blobs on this machine, shared by threads and processes.

    Args:
        root: The cache folder; several processes may share it.
        max_bytes: The size limit for blobs that only the cache holds. Pinned blobs may exceed it.

    Attributes:
        checked: The records of hashed files, for this folder and for the model repositories that link from it.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._blobs = root / "sha256"
        self._locks = root / "locks"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._locks.mkdir(exist_ok=True)
        self.checked = CheckedFiles(root)

    def path_of(self, sha256: str) -> Path:
        """Return the path of a blob, whether it is present or not."""
        return self._blobs / sha256[:2] / sha256

    def get(self, sha256: str) -> Path | None:
        """Return a blob's path if it is present and intact; remove a damaged blob."""
        path = self.path_of(sha256)
        if self._known_good(sha256, path):
            return path
        with self._fetch_lock(sha256):
            return path if self._verify(sha256, path) else None

    def fetch(self, store: ObjectStore, entry: FileEntry, progress: ProgressCallback | None = None) -> Path:
        """Return a local, verified, read-only path of a blob; concurrent callers share one download.

        A file that is not pinned (`pin`) can be evicted at any time.

        Raises:
            NotFoundError: The store does not have the blob.
            DigestMismatchError: The content in the store does not match the published digest.
        """
        path = self.path_of(entry.sha256)
        if not self._known_good(entry.sha256, path):
            with self._fetch_lock(entry.sha256):
                if not self._verify(entry.sha256, path):
                    self._download(store, entry, path, progress)
                    return path
        if progress is not None:
            progress(entry.size_bytes)
        return path

    @contextmanager
    def pin(self, digests: Collection[str]) -> Iterator[None]:
        """Prevent the eviction of blobs, present or future, by any process for the duration of the block."""
        path = self._locks / f"{uuid.uuid4().hex}{_PIN}"
        pinned = FileLock(path)
        # Evictions are blocked while the pin is written. A later eviction reads the pin, and the following fetch
        # notices a blob that was evicted earlier.
        with self._eviction_lock(shared=True), _report_full_disk(path):
            pinned.acquire()
            try:
                path.write_text("\n".join(sorted(set(digests))))
            except OSError:
                pinned.release()
                raise
        try:
            yield
        finally:
            pinned.release()

    def adopt(self, path: Path, sha256: str) -> Path:
        """Move a file into the cache (or copy it across file systems). It is hashed when it is first requested."""
        target = self.path_of(sha256)
        with self._fetch_lock(sha256):
            if self._verify(sha256, target):
                path.unlink()
                return target
            self._make_room(path.stat().st_size, keep=sha256)
            target.parent.mkdir(exist_ok=True)
            path.chmod(0o444)
            try:
                path.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with IncompleteFile(target.parent, mode=0o444) as partial:
                    shutil.copyfile(path, partial.path)
                    partial.sync()
                    partial.replace(target)
                path.unlink()
        return target

    def drop(self, sha256: str) -> None:
        """Remove a blob if it is present."""
        with contextlib.suppress(FileNotFoundError):
            self.checked.unlink(self.path_of(sha256))

    def used_bytes(self) -> int:
        """Return the size of all blobs that have no link elsewhere, to compare with the limit."""
        return sum(size for _, size, _ in self._evictable())

    def _download(self, store: ObjectStore, entry: FileEntry, path: Path, progress: ProgressCallback | None) -> None:
        self._make_room(entry.size_bytes, keep=entry.sha256)
        try:
            with _report_full_disk(path):
                path.parent.mkdir(exist_ok=True)
                store.get_file(
                    blob_key(entry.sha256), path, size_bytes=entry.size_bytes, sha256=entry.sha256, progress=progress
                )
        except ObjectNotFoundError as error:
            raise NotFoundError(
                f"the store has no blob {entry.sha256} ({entry.path})", sha256=entry.sha256, path=entry.path
            ) from error
        path.chmod(0o444)
        self.checked.remember(path.stat(), entry.sha256)

    def _known_good(self, sha256: str, path: Path) -> bool:
        try:
            status = path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        good = self.checked.known(status) == sha256
        if good and status.st_nlink == 1:
            self._touch(path)
        return good

    def _verify(self, sha256: str, path: Path) -> bool:
        """Hash a file unless its record is valid; remove it if it is damaged. Requires the fetch lock."""
        if self._known_good(sha256, path):
            return True
        try:
            digest = self.checked.digest(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.ELOOP:  # a symbolic link was not written by the cache
                raise
            digest = ""
        if digest != sha256:
            logger.warning("dropped damaged blob %s from the cache", sha256)
            self.drop(sha256)
            return False
        if path.stat().st_nlink == 1:
            self._touch(path)
        return True

    def _touch(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError), self.checked.unchanged(path) as fd:
            mark_used(fd)

    def _make_room(self, size_bytes: int, *, keep: str) -> None:
        with self._eviction_lock():
            for folder in self._blobs.iterdir():
                remove_abandoned(folder)
            entries = sorted(self._evictable())
            excess = sum(size for _, size, _ in entries) + size_bytes - self._max_bytes
            if excess <= 0:
                return
            pinned = self._pinned() | {keep}
            for _, size, path in entries:
                if excess <= 0:
                    return
                if path.name not in pinned:
                    self.drop(path.name)
                    logger.info("evicted blob %s from the cache", path.name)
                    excess -= size

    def _pinned(self) -> set[str]:
        """Read the pins of all processes and remove those of dead processes. Requires the eviction lock."""
        pinned: set[str] = set()
        for path in self._locks.glob(f"*{_PIN}"):
            lock = FileLock(path)
            if lock.try_acquire():
                lock.release()
            else:
                with contextlib.suppress(FileNotFoundError):  # released since the listing
                    pinned.update(path.read_text().split())
        return pinned

    def _evictable(self) -> Iterator[tuple[int, int, Path]]:
        """Yield the last use, size and path of each blob that only the cache holds."""
        for folder in self._blobs.iterdir():
            with os.scandir(folder) as items:
                for item in items:
                    # Files that are being written are hidden; a file that disappears in the meantime was evicted by
                    # another process.
                    with contextlib.suppress(FileNotFoundError):
                        stat = item.stat(follow_symlinks=False)
                        if stat.st_nlink == 1 and not item.name.startswith("."):
                            yield stat.st_atime_ns, stat.st_size, Path(item.path)

    def _fetch_lock(self, sha256: str) -> FileLock:
        return FileLock(self._locks / f"{sha256}.fetch")

    def _eviction_lock(self, *, shared: bool = False) -> FileLock:
        return FileLock(self._locks / "eviction", shared=shared)
