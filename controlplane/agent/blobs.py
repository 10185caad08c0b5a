"""The agent's way to the blobs: its cache, and the store that it opens when it needs it."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from controlplane.domain.manifest import Manifest
from controlplane.errors import DigestMismatchError
from controlplane.registry.cache import BlobCache
from controlplane.settings import Settings
from controlplane.storage.base import ObjectStore
from controlplane.storage.factory import open_store


class Blobs:
    """Gives the files of versions. Thread-safe. It only reads the store, and only blobs.

    An agent whose store is unreachable starts and keeps what it has, so the store is opened at the first fetch.

    Args:
        settings: The store and the cache.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening = threading.Lock()
        self._store: ObjectStore | None = None
        self.cache = BlobCache(settings.cache.path or settings.data_dir / "cache", settings.cache.max_bytes)

    @contextmanager
    def checkout(self, manifest: Manifest) -> Iterator[Mapping[str, Path]]:
        """Yield a version's files as local, verified paths; no file is evicted inside the block.

        Raises:
            NotFoundError: The store has lost a blob.
            DigestMismatchError: The store's copy is damaged, confirmed by a second read.
            StoreError: The store or the disk failed.
        """
        with self.cache.pin({file.sha256 for file in manifest.files}):
            files = {}
            for file in manifest.files:
                path = self.cache.get(file.sha256)
                if path is None:
                    try:
                        path = self.cache.fetch(self.opened(), file)
                    except DigestMismatchError:  # perhaps corrupted in transit
                        path = self.cache.fetch(self.opened(), file)
                files[file.path] = path
            yield files

    def close(self) -> None:
        """Close the store."""
        with self._opening:
            if self._store is not None:
                self._store.close()
                self._store = None

    def opened(self) -> ObjectStore:
        """Return the store.

        Raises:
            StoreError: It cannot be opened.
        """
        with self._opening:
            if self._store is None:
                self._store = open_store(self._settings.store, self._settings.data_dir)
            return self._store
