"""Damaged and missing blobs, and the position of the scrub: one small pruned chain, ``scrub/``."""

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from pydantic import ValidationError

from controlplane.domain.damage import Damage, ScrubRecord
from controlplane.errors import CommitConflictError, DamagedRevisionError, StoreError, StoreWentBackwardsError
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "scrub/"
_KEPT = 2
_TRIES = 5
_DAMAGES_KEPT = 1000
"""Maximum number of damaged blobs that are recorded; further ones only appear in events and the log."""

Notice = Callable[[str, Damage], None]


def _ignore(_reason: str, _damage: Damage) -> None:
    pass


class Damages:
    """Reads and commits the records of damaged blobs. Blocks; safe to use from several threads.

    Attributes:
        on_notice: Called with a reason (BlobDamaged, BlobMissing, BlobRepaired) when this process changes a blob's
            state.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._chain = Chain(store, PREFIX, pruned=True)
        self._known: Revision | None = None
        self._record = ScrubRecord()
        self._guard = threading.Lock()
        self.on_notice: Notice = _ignore

    @property
    def record(self) -> ScrubRecord:
        """Return the record that was last read or written. No I/O."""
        return self._record

    def of(self, reference: str) -> tuple[Damage, ...]:
        """Return the damage of the blobs of a version (``name:7``), as last read. No I/O."""
        return tuple(damage for damage in self._record.damages.values() if reference in damage.versions)

    def is_known(self, sha256: str) -> bool:
        """Return whether a blob is known to be damaged or missing. No I/O."""
        return sha256 in self._record.damages

    def refresh(self) -> ScrubRecord:
        """Read what other instances wrote. One request if nothing changed.

        Raises:
            StoreError: The store failed.
        """
        with self._guard:
            self._read()
            return self._record

    def edit(self, change: Callable[[ScrubRecord], ScrubRecord]) -> ScrubRecord:
        """Commit a changed record; ``change`` is applied again if another instance committed first.

        Raises:
            StoreError: The store failed.
        """
        with self._guard:
            for _ in range(_TRIES):
                changed = change(self._record)
                if changed == self._record:
                    return changed
                try:
                    self._known = self._chain.append(
                        changed.model_dump(mode="json"), after=self._known, actor="scrub", reason="scrub"
                    )
                except CommitConflictError:
                    self._read()
                    continue
                self._record = changed
                if self._known.number > _KEPT:
                    self._chain.prune(_KEPT)
                return changed
        raise StoreError(
            "failed to update the scrub record: other instances changed it repeatedly; it is updated later"
        )

    def found(self, sha256: str, *, missing: bool, path: str, version: str = "") -> Damage:
        """Record that a blob is damaged or missing. If the store fails, the notice is still sent."""
        now = datetime.now(UTC)

        def merged(record: ScrubRecord) -> Damage:
            before = record.damages.get(sha256)
            versions = set(before.versions if before else ()) | ({version} if version else set())
            return Damage(
                sha256=sha256,
                missing=missing,
                path=before.path if before and not version else path,
                versions=tuple(sorted(versions)),
                found_at=before.found_at if before else now,
                seen_at=now,
            )

        def change(record: ScrubRecord) -> ScrubRecord:
            if sha256 not in record.damages and len(record.damages) >= _DAMAGES_KEPT:
                return record
            return record.model_copy(update={"damages": {**record.damages, sha256: merged(record)}})

        before = self._record.damages.get(sha256)
        damage = merged(self._record)
        self._commit(change)
        if before is None or before.missing != missing or before.versions != damage.versions:
            self.on_notice(damage.reason, damage)
        return damage

    def repaired(self, sha256: str) -> None:
        """Record that a blob is intact again."""
        damage = self._record.damages.get(sha256)
        if damage is None:
            return
        self._commit(lambda record: _without(record, [sha256]))
        self.on_notice("BlobRepaired", damage)

    def _commit(self, change: Callable[[ScrubRecord], ScrubRecord]) -> None:
        try:
            self.edit(change)
        except StoreError as error:
            logger.warning("failed to record the state of a damaged blob: %s", error)

    def _read(self) -> None:
        try:
            self._known = self._chain.refresh(self._known)
            self._record = ScrubRecord.model_validate(self._known.body) if self._known else ScrubRecord()
        except (DamagedRevisionError, StoreWentBackwardsError, ValidationError) as error:
            logger.warning("the scrub record is unreadable and is started again: %s", error)
            for info in list(self._store.list(PREFIX)):
                self._store.delete(info.key)
            self._known, self._record = None, ScrubRecord()


def _without(record: ScrubRecord, digests: list[str]) -> ScrubRecord:
    left: Mapping[str, Damage] = {key: damage for key, damage in record.damages.items() if key not in digests}
    return record.model_copy(update={"damages": left})
