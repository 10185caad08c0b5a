"""Tracks which folders are known to survive a power failure, so that a commit flushes only its own folder."""

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from controlplane.storage.localfile import sync_folder

# A commit to any other folder costs a few more flushes.
_REMEMBERED = 64


class DurableFolders:
    """Flushes names in the folders below a root to the disk, and remembers which folders are durable.

    A new name is durable when its folder was flushed, and the folder's own name was flushed in its parent, and so on up
    to the root and beyond: opening a store may create the folders above the root too. The existence of a folder proves
    nothing, because another process may have created it and not flushed it yet. So a folder counts as durable only
    after this object has flushed all its parents.

    A folder that was removed and created again is a different folder with the same name and often the same inode
    number. The remembered folders are therefore held open: an open inode is not reused, so an equal number means that
    this folder, and with it all its parents, has existed all the time (no code here renames folders).

    Args:
        root: The topmost folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held: OrderedDict[Path, int] = OrderedDict()
        # Releases the descriptors also if the store is never closed.
        self._close = weakref.finalize(self, _close_all, self._held)

    def sync(self, folder: Path) -> None:
        """Make the names in ``folder`` durable, after they were created.

        Raises:
            FileNotFoundError: Another process removed the folder and its content.
            OSError: The disk did not confirm the flush.
        """
        device = self._root.stat().st_dev
        flushed: dict[Path, int] = {}
        try:
            # From bottom to top: a folder that contains a new name is not empty, so no other process removes it.
            for place in (folder, *folder.parents):
                if self._is_durable(place):
                    sync_folder(place)
                    break
                if place.stat().st_dev != device:
                    break  # the file system was mounted before the store was created
                try:
                    # Held open before the parent is flushed, so that the flush concerns this exact folder.
                    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except PermissionError:
                    if place in self._root.parents:
                        break  # belongs to another user, so this store did not create it
                    raise
                flushed[place] = fd
                os.fsync(fd)
        except BaseException:
            _close_all(flushed)
            raise
        self._remember(flushed)

    def close(self) -> None:
        """Forget all folders and close their descriptors."""
        with self._lock:
            _close_all(self._held)

    def _is_durable(self, folder: Path) -> bool:
        with self._lock:
            fd = self._held.get(folder)
            if fd is None:
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), folder.stat()):
                    self._held.move_to_end(folder)
                    return True
            os.close(self._held.pop(folder))
            return False

    def _remember(self, flushed: dict[Path, int]) -> None:
        with self._lock:
            for folder, fd in flushed.items():
                if folder in self._held:  # by another thread, concurrently
                    os.close(self._held.pop(folder))
                self._held[folder] = fd
            while len(self._held) > _REMEMBERED:
                _, fd = self._held.popitem(last=False)
                os.close(fd)


def _close_all(held: dict[Path, int]) -> None:
    while held:
        _, fd = held.popitem()
        os.close(fd)
