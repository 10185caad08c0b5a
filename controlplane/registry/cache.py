"""The local blob cache: content-addressed files that Triton's repository hard-links.

A file with a second link elsewhere (a staged version) takes no space of its own: removing it here would free nothing,
so it neither counts towards the bound nor is evicted. Nothing here changes such a file's times either, because Triton
loads a version again whose files have another change time.

No file here is the store's own file: a store in a folder gives a copy (docs/adr/0013-copies-and-checks.md).
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
from controlplane.registry.blobs import blob_key
from controlplane.registry.filelock import FileLock
from controlplane.storage.base import ObjectStore, ProgressCallback
from controlplane.storage.localfile import IncompleteFile, remove_abandoned

logger = logging.getLogger(__name__)

_PIN = ".pin"


@contextmanager
def _full_is_told(path: Path) -> Iterator[None]:
    """Say which file has no room, and what to do about it: the error of a write names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreFullError(
            f"no space left for {path} in the blob cache: free some, or lower CONTROLPLANE_CACHE__MAX_BYTES",
            path=str(path),
        ) from error


class BlobCache:
    """Blobs on this machine, shared by threads and processes.

    Args:
        root: Where; several processes may share it.
        max_bytes: The bound, for what only the cache holds. Blobs that are pinned may exceed it.

    Attributes:
        checked: The records of hashed files, for this folder and the model repositories that link from it.
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
        """Return where a blob lies, or would."""
        return self._blobs / sha256[:2] / sha256

    def get(self, sha256: str) -> Path | None:
        """Return a blob's path if it is here and whole; a damaged one is dropped."""
        path = self.path_of(sha256)
        if self._known_good(sha256, path):
            return path
        with self._fetch_lock(sha256):
            return path if self._verify(sha256, path) else None

    def fetch(self, store: ObjectStore, entry: FileEntry, progress: ProgressCallback | None = None) -> Path:
        """Return a local, verified, read-only path of a blob; downloaded once, however many ask.

        Without `pin` the file may be evicted any time.

        Raises:
            NotFoundError: The store has no such blob.
            DigestMismatchError: The store's content is not what was published.
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
        """Keep blobs, present or yet to come, from being evicted for the length of a block, by any process."""
        path = self._locks / f"{uuid.uuid4().hex}{_PIN}"
        pinned = FileLock(path)
        # Evictions are held up while the pin is written: whoever evicts next reads it, and what was evicted before is
        # seen to be missing by the fetch that follows.
        with self._eviction_lock(shared=True), _full_is_told(path):
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
        """Move a file in (copied where it lies on another file system). It is hashed when it is first asked for."""
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
        """Remove a blob, if it is here."""
        with contextlib.suppress(FileNotFoundError):
            self.checked.unlink(self.path_of(sha256))

    def used_bytes(self) -> int:
        """Return what the bound is held against: the size of blobs that have no link elsewhere."""
        return sum(size for _, size, _ in self._evictable())

    def _download(self, store: ObjectStore, entry: FileEntry, path: Path, progress: ProgressCallback | None) -> None:
        self._make_room(entry.size_bytes, keep=entry.sha256)
        try:
            with _full_is_told(path):
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
        """Hash a file unless its record is valid; drop it if it is damaged. Under the fetch lock."""
        if self._known_good(sha256, path):
            return True
        try:
            digest = self.checked.digest(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.ELOOP:  # a symbolic link is not what was put here
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
        """Read the pins of every process, and remove those of processes that died. Under the eviction lock."""
        pinned: set[str] = set()
        for path in self._locks.glob(f"*{_PIN}"):
            lock = FileLock(path)
            if lock.try_acquire():
                lock.release()
            else:
                with contextlib.suppress(FileNotFoundError):  # let go since we looked
                    pinned.update(path.read_text().split())
        return pinned

    def _evictable(self) -> Iterator[tuple[int, int, Path]]:
        """Yield last use, size and path of what only the cache holds."""
        for folder in self._blobs.iterdir():
            with os.scandir(folder) as items:
                for item in items:
                    # What is still being written is hidden; what vanishes meanwhile was evicted by somebody else.
                    with contextlib.suppress(FileNotFoundError):
                        stat = item.stat(follow_symlinks=False)
                        if stat.st_nlink == 1 and not item.name.startswith("."):
                            yield stat.st_atime_ns, stat.st_size, Path(item.path)

    def _fetch_lock(self, sha256: str) -> FileLock:
        return FileLock(self._locks / f"{sha256}.fetch")

    def _eviction_lock(self, *, shared: bool = False) -> FileLock:
        return FileLock(self._locks / "eviction", shared=shared)
