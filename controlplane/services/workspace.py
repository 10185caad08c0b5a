"""Folders in which artifacts are assembled for a worker.

A worker may run the artifact's code, which can write to these files. So a file of the blob cache, which is shared with
Triton's model repository, is copied (a clone if the file system supports them). A file of an upload is linked: it is
hashed again when it is written to the store.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from controlplane.checkedfiles import clone
from controlplane.domain.manifest import FileEntry


class Workspace:
    """Provides work folders below one root, and removes those that a killed process left there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Provide an empty folder for the duration of the block."""
        path = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self.root))
        try:
            yield path
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, path, ignore_errors=True))


def assemble(
    target: Path,
    files: Iterable[FileEntry],
    fetch: Callable[[FileEntry], Path],
    uploaded: Callable[[FileEntry], Path | None] = lambda _file: None,
) -> dict[str, Path]:
    """Assemble an artifact.

    Args:
        target: The folder to fill.
        files: The files.
        fetch: Returns a file's content as a local path that is shared with other readers.
        uploaded: Returns it as a path of an upload; None if it was not uploaded.

    Returns:
        Local path by SHA-256.
    """
    found: dict[str, Path] = {}
    for file in files:
        path = target / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        source = uploaded(file)
        if source is not None:
            try:
                os.link(source, path)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, path)
        else:
            source = fetch(file)
            _copy(source, path)
        found[file.sha256] = source
    return found


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        if not clone(reader.fileno(), writer.fileno()):
            shutil.copyfileobj(reader, writer, 1 << 20)
