"""Passed proofs on record: what answered its golden samples, with which configuration, on what.

There is one small object for each, ``proofs/<content>/<rest>.json``. ``<content>`` is the digest of a version's files
and golden samples, so versions of several models with the same bytes share their records. ``<rest>`` is the digest of
the other parts of the key. The body repeats the key for a person; the object's name alone is evidence.
"""

import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from controlplane.errors import ObjectExistsError
from controlplane.storage.base import ObjectStore

PREFIX = "proofs/"
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class ProofKey:
    """Everything that must be the same for a passed proof to count elsewhere.

    Attributes:
        content: `Manifest.content_digest` of the version.
        config_digest: Digest of Triton's configuration without name and version policy.
        backend: Triton's backend with its version.
        device: Kind of the devices: ``cpu``, or the product of the GPUs.
    """

    content: str
    config_digest: str
    backend: str
    device: str

    @property
    def object_key(self) -> str:
        """Return the key of the record in the store."""
        rest = hashlib.sha256("\n".join((self.config_digest, self.backend, self.device)).encode()).hexdigest()
        return f"{PREFIX}{self.content}/{rest}{_SUFFIX}"


class Proofs:
    """Reads and writes the records. Blocks, except for `known`; safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[str, frozenset[str]] = {}
        self._denied: set[str] = set()
        self._guard = threading.Lock()

    def known(self, key: ProofKey) -> bool:
        """Return whether a record is in memory, and no proof failed since in this process. No I/O."""
        return key.object_key in self._known.get(key.content, ()) and key.object_key not in self._denied

    def refresh(self, content: str) -> None:
        """Read the names of the records of a content into memory, in one LIST.

        Raises:
            StoreError: The store failed; nothing is known then.
        """
        with self._guard:
            self._known.pop(content, None)
            self._known[content] = frozenset(info.key for info in self._store.list(f"{PREFIX}{content}/"))

    def put(self, key: ProofKey, *, model: str, version: int, server: str) -> None:
        """Write a record.

        Raises:
            StoreError: The store failed.
        """
        body = {**asdict(key), "model": model, "version": version, "server": server, "at": datetime.now(UTC)}
        with self._guard:
            self._denied.discard(key.object_key)
            with suppress(ObjectExistsError):
                self._store.create(key.object_key, json.dumps(body, indent=2, default=str).encode())
            self._known[key.content] = self._known.get(key.content, frozenset()) | {key.object_key}

    def forget(self, key: ProofKey) -> None:
        """Stop to use a record in this process, until the proof passes again. No I/O."""
        self._denied.add(key.object_key)

    def remove(self, key: ProofKey) -> None:
        """Delete a record.

        Raises:
            StoreError: The store failed.
        """
        with self._guard:
            self.forget(key)
            self._store.delete(key.object_key)
