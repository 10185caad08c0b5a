"""Folders in which artifacts are put together for a worker: hard links where that is possible, copies elsewhere."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from controlplane.domain.manifest import FileEntry

Locate = Callable[[FileEntry], Path]


class Workspace:
    """Gives out work folders below one root, and removes what a killed process left there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Give an empty folder for the length of the block."""
        path = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self.root))
        try:
            yield path
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, path, ignore_errors=True))


def assemble(target: Path, files: Iterable[FileEntry], locate: Locate) -> dict[str, Path]:
    """Put an artifact together.

    Args:
        target: The folder to fill.
        files: The files.
        locate: Gives a file's content as a local path.

    Returns:
        Local path by SHA-256.
    """
    found: dict[str, Path] = {}
    for file in files:
        source = found.get(file.sha256) or locate(file)
        found[file.sha256] = source
        path = target / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, path)
    return found
