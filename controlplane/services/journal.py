"""Operations that are not in the bucket yet: running ones, and results that could not be written.

Each has one small file in this instance's data folder, whose lock ensures that no other process runs them. Files that
exist at startup were left by a process that was killed.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


class Journal:
    """The files. Errors here never stop an operation: a full disk costs the record, not the work."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, operation_id: str, document: str) -> None:
        """Write an operation's present state."""
        path = self._path(operation_id)
        partial = path.with_suffix(".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(document, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            logger.warning("failed to write operation %s to %s: %s", operation_id, self._folder, error)

    def remove(self, operation_id: str) -> None:
        """Remove an operation, whose final state is in the bucket."""
        try:
            self._path(operation_id).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("failed to remove operation %s from %s: %s", operation_id, self._folder, error)

    def left(self) -> Iterator[str]:
        """Yield the documents found, oldest first."""
        for path in sorted(self._folder.glob("*.json"), reverse=True):  # identifiers count down over time
            with contextlib.suppress(OSError):
                yield path.read_text(encoding="utf-8", errors="replace")

    def _path(self, operation_id: str) -> Path:
        return self._folder / f"{operation_id}.json"
