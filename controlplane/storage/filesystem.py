"""A store in a folder: the default on a single machine, safe for several processes on it."""

import contextlib
import itertools
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from controlplane.checkedfiles import clone
from controlplane.errors import (
    CommitOutcomeUnknownError,
    InvalidInputError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
)
from controlplane.folders import make_private
from controlplane.storage import localfile
from controlplane.storage.base import ObjectInfo, PresignedPut, ProgressCallback
from controlplane.storage.digest import check_digest, check_size, copy_and_hash, hash_file
from controlplane.storage.durable import DurableFolders
from controlplane.storage.keys import INCOMPLETE_FOLDER, check_folder, check_key, check_prefix, check_range, order

# An object is never modified in place, and has no other name outside the store: a reader gets a copy.
_OBJECT_MODE = 0o444


class FilesystemStore:
    """An `ObjectStore` in which each object is a file with the same path.

    A create consists of a temporary file, ``fsync``, ``link`` (which fails if the name is taken, atomically between
    processes) and ``fsync`` of the folder, and of its parents unless they are known to be durable. This gives the same
    guarantee as S3's ``If-None-Match: *``. The folder must be on a local file system with hard links.

    Args:
        root: The folder; if it does not exist, it is created with access for this user only.

    Raises:
        StoreAccessError: The folder is not writable.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._incomplete = self._root / INCOMPLETE_FOLDER
        self._durable = DurableFolders(self._root)
        with localfile.translated(f"open the store {self._root}"):
            make_private(self._root)
            self._incomplete.mkdir(parents=True, exist_ok=True)
            localfile.remove_abandoned(self._incomplete)

    @property
    def url(self) -> str:
        """Return ``file:///…``."""
        return self._root.as_uri()

    def create(self, key: str, data: bytes) -> None:
        """See `ObjectStore.create`."""
        target = self._path(key)
        if self.head(key):  # saves the two flushes if the key is taken
            raise ObjectExistsError(f"Object {key!r} already exists.", key=key)
        with (
            localfile.translated(f"write object {key!r}"),
            localfile.IncompleteFile(self._incomplete, mode=_OBJECT_MODE) as file,
        ):
            if data:  # an empty object is only a name, which the folder's flush makes durable
                localfile.write_all(file.fd, data, 0)
                file.sync()
            try:
                self._publish(key, target, file.link_to)
            except FileExistsError as error:
                raise ObjectExistsError(f"Object {key!r} already exists.", key=key) from error
            try:
                self._sync(target)
            except OSError as error:
                raise CommitOutcomeUnknownError(
                    f"Object {key!r} was written, but flushing it to disk failed: {error.strerror}.", key=key
                ) from error

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """See `ObjectStore.get`."""
        check_range(start, length)
        with self.open(key) as file, localfile.translated(f"read object {key!r}"):
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        return self._info(key, self._path(key))

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        check_prefix(prefix)
        if limit is not None and limit <= 0:
            return
        count = 0
        folder, _, _ = prefix.rpartition("/")
        for key in self._walk(folder + "/" if folder else "", prefix, start_after):
            info = self._info(key, f"{self._root}/{key}")
            if info is None:
                continue  # removed since the folder was read
            yield info
            count += 1
            if count == limit:
                return

    def list_folders(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `ObjectStore.list_folders`."""
        check_folder(prefix)
        if limit is not None and limit <= 0:
            return
        count = 0
        names = self._names(prefix)
        begin = bisect_right(names, order(start_after + "/"), key=order) if start_after else 0
        for name in itertools.islice(names, begin, None):
            if not name.endswith("/"):
                continue
            if next(self._walk(prefix + name, "", ""), None) is None:
                continue  # empty: its last object was removed, or its first is being written
            yield name[:-1]
            count += 1
            if count == limit:
                return

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        target = self._path(key)
        with localfile.translated(f"delete object {key!r}"):
            try:
                target.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
            with contextlib.suppress(FileNotFoundError):  # removed by another process's `delete`
                localfile.sync_folder(target.parent)
            for folder in self._folders_above(target):
                # Fails, as intended, if the folder contains another object.
                try:
                    folder.rmdir()
                except OSError:
                    return

    def put_file(self, key: str, source: Path, *, sha256: str, progress: ProgressCallback | None = None) -> None:
        """See `ObjectStore.put_file`."""
        target = self._path(key)
        with (
            localfile.translated(f"copy {source} to object {key!r}"),
            source.open("rb", buffering=0) as reader,
            localfile.IncompleteFile(self._incomplete, mode=_OBJECT_MODE) as file,
        ):
            found = _copy(reader.fileno(), file, os.fstat(reader.fileno()).st_size, progress)
            check_digest(key, expected=sha256, found=found)
            file.sync()
            self._publish(key, target, file.replace)
            self._sync(target)

    def get_file(
        self, key: str, target: Path, *, size_bytes: int, sha256: str, progress: ProgressCallback | None = None
    ) -> None:
        """See `ObjectStore.get_file`. The copy shares its blocks with the object if the file system supports it."""
        with self.open(key) as reader, localfile.translated(f"copy object {key!r} to {target}"):
            check_size(key, expected=size_bytes, found=os.fstat(reader.fileno()).st_size)
            with localfile.IncompleteFile(target.parent) as file:
                found = _copy(reader.fileno(), file, size_bytes, progress)
                check_digest(key, expected=sha256, found=found)
                file.set_mode()
                file.replace(target)

    def open(self, key: str) -> BinaryIO:
        """See `ObjectStore.open`."""
        path = self._path(key)
        with localfile.translated(f"read object {key!r}"):
            try:
                return path.open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise ObjectNotFoundError(f"Object {key!r} does not exist in {self.url}.", key=key) from error

    def presign_put(
        self,
        key: str,
        *,
        size_bytes: int,  # noqa: ARG002
        expires_seconds: int,  # noqa: ARG002
    ) -> PresignedPut | None:
        """Return None: a folder has no URLs to write to."""
        check_key(key)
        return None

    def complete_presigned(self, key: str, upload_id: str) -> None:  # noqa: ARG002
        """See `ObjectStore.complete_presigned`; always invalid here."""
        raise InvalidInputError(
            f"{self.url} does not support presigned uploads, so there is none to complete.", key=key
        )

    def move(self, source: str, target: str) -> None:  # noqa: ARG002
        """See `ObjectStore.move`; never needed here."""
        raise InvalidInputError(f"{self.url} does not support presigned uploads, so there is none to move.", key=source)

    def abort_incomplete(self, begun_before: datetime) -> int:  # noqa: ARG002
        """See `ObjectStore.abort_incomplete`. Incomplete files are detected by their lock, not by their age."""
        with localfile.translated(f"clean {self._incomplete}"):
            return localfile.remove_abandoned(self._incomplete)

    def close(self) -> None:
        """See `ObjectStore.close`."""
        self._durable.close()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _publish(self, key: str, target: Path, publish: Callable[[Path], None]) -> None:
        while True:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
                self._check_above(key, target, error)
                continue  # a concurrent `delete` removed the empty folder in between
            try:
                publish(target)
            except FileNotFoundError:
                if not self._incomplete.is_dir():
                    raise StoreUnavailableError(f"The store's folder {self._root} no longer exists.") from None
            except (FileExistsError, IsADirectoryError) as error:
                if target.is_dir():
                    raise _below_another(key) from error
                raise
            else:
                return

    def _check_above(self, key: str, target: Path, error: OSError) -> None:
        if any(folder.exists() and not folder.is_dir() for folder in self._folders_above(target)):
            raise _below_another(key) from error
        if not self._incomplete.is_dir():
            raise StoreUnavailableError(f"The store's folder {self._root} no longer exists.") from error

    def _sync(self, target: Path) -> None:
        # The object may have been deleted since, together with its folder; then there is nothing to flush.
        with contextlib.suppress(FileNotFoundError):
            self._durable.sync(target.parent)

    def _folders_above(self, target: Path) -> Iterator[Path]:
        for folder in target.parents:
            if folder == self._root:
                return
            yield folder

    def _names(self, folder: str) -> Sequence[str]:
        """Return the names in a folder, folders with a trailing ``/``, in the order of the keys below them."""
        try:
            with os.scandir(self._root / folder) as entries:
                names = [entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise localfile.store_error(error, f"list {folder!r}") from error
        if not folder:
            names = [name for name in names if name != INCOMPLETE_FOLDER + "/"]
        # With the trailing "/" a folder sorts as its keys do: "a-b/x" comes before "a/x".
        names.sort(key=order)
        return names

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[str]:
        """Yield the keys below ``folder`` (empty, or with a trailing ``/``) in order.

        Args:
            folder: The folder; ``prefix`` begins with it, or it begins with ``prefix``.
            prefix: The prefix of the keys.
            start_after: The keys come after this one.
        """
        names, rest, begin = self._names(folder), prefix[len(folder) :], 0
        if rest:
            begin = bisect_left(names, order(rest), key=order)
        if start_after.startswith(folder):
            first, slash, _ = start_after[len(folder) :].partition("/")
            # The folder that contains `start_after` may contain later keys.
            after = bisect_left(names, order(first + "/"), key=order) if slash else bisect_right(
                names, order(first), key=order
            )  # fmt: skip
            begin = max(begin, after)
        elif order(start_after) > order(folder):
            return
        for name in itertools.islice(names, begin, None):
            if not name.startswith(rest):
                return
            if name.endswith("/"):
                yield from self._walk(folder + name, prefix, start_after)
            else:
                yield folder + name

    def _info(self, key: str, path: Path | str) -> ObjectInfo | None:
        try:
            found = os.stat(path)  # noqa: PTH116 - `Path` costs more than the request, for thousands of names
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise localfile.store_error(error, f"inspect object {key!r}") from error
        if stat.S_ISDIR(found.st_mode):
            return None
        tag = f"{found.st_ino:x}-{found.st_mtime_ns:x}"
        return ObjectInfo(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC), tag)


def _below_another(key: str) -> InvalidInputError:
    return InvalidInputError(
        f"Object {key!r} cannot be written: in a folder, a key cannot be below another key.", key=key
    )


def _copy(source: int, file: localfile.IncompleteFile, size_bytes: int, progress: ProgressCallback | None) -> str:
    """Copy an open file into ``file`` and return the SHA-256 of the copy."""
    if clone(source, file.fd):
        return hash_file(file.fd, progress=progress)[0]
    file.reserve(size_bytes)
    found, copied = copy_and_hash(source, file.fd, progress=progress)
    os.ftruncate(file.fd, copied)  # removes the rest of the reservation if the file became shorter in the meantime
    return found
