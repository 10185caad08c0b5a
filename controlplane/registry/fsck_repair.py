"""Repairs of a damaged store that lose no data: they write content that is known to be correct."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from controlplane.errors import ControlPlaneError, DamagedRevisionError
from controlplane.registry.blobs import Blobs
from controlplane.registry.cache import BlobCache
from controlplane.registry.chain import Chain
from controlplane.registry.head_memory import HeadMemory
from controlplane.storage.base import ObjectInfo
from controlplane.storage.clock import StoreClock


class Repairs:
    """Repairs from local data of this instance: its blob cache, its remembered heads and the manifests it has read.

    Each method returns whether it repaired something.

    Args:
        blobs: The store's blobs.
        cache: Verified copies of blobs on this machine.
        document_of: Returns a manifest's bytes by digest; None if this process does not have them.
        clock: The store's clock.
        note_max_age_seconds: The age above which an unreadable intent or marker cannot be in use.
    """

    def __init__(
        self,
        blobs: Blobs,
        cache: BlobCache,
        document_of: Callable[[str], bytes | None],
        clock: StoreClock,
        *,
        note_max_age_seconds: float,
    ) -> None:
        self._blobs = blobs
        self._cache = cache
        self._document_of = document_of
        self._clock = clock
        self._note_max_age = timedelta(seconds=note_max_age_seconds)

    def blob(self, digest: str) -> bool:
        """Write a missing or damaged blob from the cache."""
        with self._cache.pin({digest}):
            path = self._cache.get(digest)
            if path is None:
                return False
            self._blobs.put_file(path, digest)
        return True

    def manifest(self, digest: str) -> bool:
        """Write a missing or damaged manifest that this process has read before."""
        document = self._document_of(digest)
        if document is None:
            return self.blob(digest)
        with tempfile.NamedTemporaryFile(prefix="manifest-") as file:
            file.write(document)
            file.flush()
            self._blobs.put_file(Path(file.name), digest)
        return True

    def head(self, chain: Chain, memory: HeadMemory | None) -> bool:
        """Write the newest revision again if the object is damaged and this instance remembers the revision."""
        known = memory.get(chain.name) if memory is not None else None
        numbers = chain.numbers()
        if known is None or not numbers or numbers[0] != known.number:
            return False
        try:
            chain.read(known.number)
        except DamagedRevisionError:
            chain.store.delete(chain.key(known.number))
            chain.put_back(known)
            return True
        return False

    def note(self, info: ObjectInfo) -> bool:
        """Remove an unreadable intent or marker that is too old to be in use."""
        try:
            too_old = self._clock.check() - info.modified_at > self._note_max_age
        except ControlPlaneError:
            return False
        if too_old:
            self._blobs.store.delete(info.key)
        return too_old
