"""Files of staged versions: linked or copied into place, compared with their digests, removed."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from controlplane.checkedfiles import CheckedFiles, clone

# The file systems differ, the source has too many links, or the file system (vfat, some network mounts) has no links.
_LINK_IMPOSSIBLE = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.ENOSYS})


class StagedFiles:
    """Writes and compares the files of one repository.

    Args:
        checked: The records of hashed files. Link operations of this class keep a file's record valid.
    """

    def __init__(self, checked: CheckedFiles) -> None:
        self._checked = checked

    def known(self, path: Path) -> bool:
        """Return whether a file is unchanged since it was last hashed or written here."""
        return self._checked.known(path.stat(follow_symlinks=False)) is not None

    def matches(self, path: Path, sha256: str) -> bool:
        """Return whether the path is a regular file whose SHA-256 begins with ``sha256``."""
        try:
            if not stat.S_ISREG(path.stat(follow_symlinks=False).st_mode):
                return False
            return self._checked.digest(path).startswith(sha256)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def place(self, source: Path, target: Path) -> None:
        """Link a file, or copy it if a link is impossible or would change the times of a loaded version.

        Args:
            source: The file in the blob cache. If it has a second link, a version in this or another server's
                repository uses it.
            target: The new path; it must be free.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_nlink == 1:
            try:
                with self._checked.unchanged(source):
                    os.link(source, target)
            except OSError as error:
                if error.errno not in _LINK_IMPOSSIBLE:
                    raise
            else:
                return
        with source.open("rb") as reader, target.open("xb") as writer:
            known = self._checked.known(os.fstat(reader.fileno()))
            if not clone(reader.fileno(), writer.fileno()):
                shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
            if known is not None and known == self._checked.known(os.fstat(reader.fileno())):
                self._checked.remember(os.fstat(writer.fileno()), known)

    def write(self, target: Path, content: bytes, temporary: Path) -> None:
        """Write a small file durably, by rename.

        Args:
            target: The file.
            content: The new content.
            temporary: A free path on the same file system.
        """
        try:
            with temporary.open("xb") as writer:
                writer.write(content)
                writer.flush()
                os.fsync(writer.fileno())
            if target.is_dir() and not target.is_symlink():
                self.remove(target)
            temporary.replace(target)
            self._checked.remember(target.stat(), hashlib.sha256(content).hexdigest())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def remove(self, path: Path) -> None:
        """Remove a folder or a file; another process may be removing it at the same time."""
        for parent, _, names in [] if path.is_symlink() else os.walk(path):
            for name in names:
                file = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                        self._checked.unlink(file)  # the blob cache's link to the file stays, and so does its record
        while path.is_symlink() or path.exists():
            with contextlib.suppress(FileNotFoundError):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; nothing if the folder is a symbolic link."""
    if folder.is_symlink() or folder.parent.is_symlink():
        return
    for parent, folders, names in os.walk(folder):
        # NFS keeps a removed file that is still open under a different name.
        yield from (Path(parent, name) for name in names if not name.startswith(".nfs"))
        yield from (path for name in folders if (path := Path(parent, name)).is_symlink())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
