"""Which folders are known to survive a power failure, so that a commit forces only its own folder to the disk."""

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from controlplane.storage.localfile import sync_folder

# A commit to any other folder costs some more flushes, nothing else.
_REMEMBERED = 64


class DurableFolders:
    """Forces names in the folders below a root to the disk, and remembers which folders are there to stay.

    A new name is durable when its folder was flushed, and that folder's own name in the one above, up to the root and
    beyond: opening a store may make those above too. That a folder is there says nothing, another process may have made
    it and not have flushed it yet. So a folder counts only after this object has itself flushed all that are above it.

    A folder that was removed and made again is another folder, of the same name and often of the same inode number. The
    remembered ones are therefore held open: an inode that is open is not given to anybody else, so the same number
    means that this very folder, and with it all above it, has been there all the time (nothing here renames folders).

    Args:
        root: The topmost folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held: OrderedDict[Path, int] = OrderedDict()
        # A store that nobody closes gives its descriptors back too.
        self._close = weakref.finalize(self, _close_all, self._held)

    def sync(self, folder: Path) -> None:
        """Make the names in ``folder`` durable, after they were made.

        Raises:
            FileNotFoundError: Somebody removed it, and so what was in it.
            OSError: The disk did not confirm it.
        """
        device = self._root.stat().st_dev
        flushed: dict[Path, int] = {}
        try:
            # From below to above: a folder that is found with a new name in it is not taken away for being empty.
            for place in (folder, *folder.parents):
                if self._is_durable(place):
                    sync_folder(place)
                    break
                if place.stat().st_dev != device:
                    break  # the file system was mounted before the store was made
                try:
                    # Held from before the folder above is flushed, which is to be about this very folder.
                    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except PermissionError:
                    if place in self._root.parents:
                        break  # not ours, so not made by us
                    raise
                flushed[place] = fd
                os.fsync(fd)
        except BaseException:
            _close_all(flushed)
            raise
        self._remember(flushed)

    def close(self) -> None:
        """Forget them all."""
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
                if folder in self._held:  # by another thread, at the same time
                    os.close(self._held.pop(folder))
                self._held[folder] = fd
            while len(self._held) > _REMEMBERED:
                _, fd = self._held.popitem(last=False)
                os.close(fd)


def _close_all(held: dict[Path, int]) -> None:
    while held:
        _, fd = held.popitem()
        os.close(fd)
