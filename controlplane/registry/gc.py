"""Garbage collection of unreferenced blobs.

The order of the steps makes it safe to run concurrently with publishes (docs/adr/0002-garbage-collection.md):

1. List the blobs; the candidates are those that no head refers to and that are older than the grace period.
2. Write a marker that names the candidates.
3. List the intents, and then read the heads again (a publisher commits first and removes its intent afterwards); blobs
   that appear in either are no longer candidates.
4. Delete the remaining candidates, as long as the marker is young.
5. Remove the marker.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.model import VersionEntry
from controlplane.errors import NotFoundError, StoreError
from controlplane.registry.blobs import Blobs, blob_key, digest_of
from controlplane.registry.chain_check import require_sound
from controlplane.registry.deployments import Deployments
from controlplane.registry.intents import INTENTS, MARKER_STALE, MARKERS, notes, write_marker
from controlplane.registry.models import Models
from controlplane.registry.versions import Versions
from controlplane.settings import GcSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.clock import StoreClock

logger = logging.getLogger(__name__)

_BATCH = 1000
"""Number of blobs deleted under one marker; limits how long a publisher may have to wait."""

_DELETING_SECONDS = MARKER_STALE.total_seconds() / 2
_PARALLEL_DELETES = 8
_PARALLEL_READS = 8


class GcReport(BaseModel):
    """The result of a collection, or of a dry run."""

    model_config = ConfigDict(frozen=True)

    dry_run: bool = Field(description="Whether this was a dry run, which deletes nothing.")
    blobs_scanned: int = Field(description="Number of blobs in the store.")
    blobs_deleted: int = Field(description="Number of deleted blobs; in a dry run, of blobs that would be deleted.")
    bytes_deleted: int = Field(description="Size of the deleted blobs in bytes.")
    kept_in_use: int = Field(
        description="Number of blobs of live versions and of versions deleted within the grace period."
    )
    kept_by_grace: int = Field(
        description="Number of unreferenced blobs kept because they are younger than the grace period."
    )
    kept_by_publish: int = Field(
        description="Number of blobs kept because a running publish needs them or the time limit was reached."
    )
    intents_removed: int = Field(description="Number of removed intents of abandoned publishes.")
    uploads_aborted: int = Field(description="Number of removed incomplete multipart uploads.")


@runtime_checkable
class _AbortsUploads(Protocol):
    def abort_incomplete(self, begun_before: datetime) -> int: ...


class Collector:
    """Collects garbage. Several collectors may run at once; they delete the same blobs."""

    def __init__(
        self,
        store: ObjectStore,
        blobs: Blobs,
        models: Models,
        versions: Versions,
        deployments: Deployments,
        settings: GcSettings,
        clock: StoreClock,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._models = models
        self._versions = versions
        self._deployments = deployments
        self._settings = settings
        self._clock = clock

    def collect(self, *, dry_run: bool, grace_seconds: float | None = None) -> GcReport:
        """Delete the blobs that nothing refers to.

        Args:
            dry_run: Only report.
            grace_seconds: Minimum age of a blob, and minimum time since the deletion of the versions that refer to it;
                None uses the setting. 0 is safe for a running publish.

        Raises:
            ClockSkewError: This machine's clock and the store's clock differ, so ages cannot be trusted. Nothing is
                deleted.
            StoreError: A manifest cannot be read, or a chain is damaged. Nothing is deleted, because the unreadable
                object may refer to any blob.
        """
        began = time.monotonic()
        now = self._clock.check()
        self._require_sound_chains()
        grace = timedelta(seconds=self._settings.grace_seconds if grace_seconds is None else grace_seconds)
        intents_removed = self._remove_abandoned(now, dry_run=dry_run)
        scanned = list(self._blobs.all())
        referenced = self._referenced(now - grace)
        sizes: dict[str, int] = {}
        in_use = by_grace = 0
        for info in scanned:
            digest = digest_of(info.key)
            if digest is None or digest in referenced:
                in_use += 1
            elif now - info.modified_at < grace:
                by_grace += 1
            else:
                sizes[digest] = info.size_bytes
        candidates = list(sizes)
        deleted: list[str] = []
        for start in range(0, len(candidates), _BATCH):
            deleted += self._delete_batch(candidates[start : start + _BATCH], now - grace, dry_run=dry_run)
        report = GcReport(
            dry_run=dry_run,
            blobs_scanned=len(scanned),
            blobs_deleted=len(deleted),
            bytes_deleted=sum(sizes[digest] for digest in deleted),
            kept_in_use=in_use,
            kept_by_grace=by_grace,
            kept_by_publish=len(candidates) - len(deleted),
            intents_removed=intents_removed,
            uploads_aborted=0 if dry_run else self._abort_uploads(now),
        )
        logger.info("garbage collection in %.2f s: %s", time.monotonic() - began, report)
        return report

    def _require_sound_chains(self) -> None:
        chains = [*self._models.chains(), *self._deployments.chains()]
        with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="gc") as pool:
            for _ in pool.map(require_sound, chains):
                pass

    def _delete_batch(self, digests: Sequence[str], horizon: datetime, *, dry_run: bool) -> Sequence[str]:
        if dry_run:
            return self._still_free(digests, horizon)
        began = time.monotonic()
        marker = write_marker(self._store, digests)
        try:
            doomed = self._still_free(digests, horizon)

            def delete(digest: str) -> bool:
                # Publishers stop waiting for a stale marker, so a slow collector must stop well before that.
                if time.monotonic() - began > _DELETING_SECONDS:
                    return False
                self._blobs.delete(digest)
                return True

            with ThreadPoolExecutor(_PARALLEL_DELETES, thread_name_prefix="gc") as pool:
                return [digest for digest, done in zip(doomed, pool.map(delete, doomed), strict=True) if done]
        finally:
            self._store.delete(marker)

    def _still_free(self, digests: Sequence[str], horizon: datetime) -> Sequence[str]:
        held = frozenset[str]().union(*(note.digests for note in notes(self._store, INTENTS)))
        referenced = self._referenced(horizon)  # must follow the intents: see the module's docstring
        return [digest for digest in digests if digest not in held and digest not in referenced]

    def _referenced(self, horizon: datetime) -> set[str]:
        """Return the digests that versions need: live ones, and those deleted after ``horizon``."""
        referenced: set[str] = set()
        # A crash between a tombstone and the check that follows it can leave a deployment with a deleted version. The
        # blobs of this version are kept, so that the deletion can be reverted.
        needed = {(deployment.spec.model, deployment.spec.version) for deployment in self._deployments.list(fresh=True)}
        heads = list(self._models.all_fresh())
        known = {(head.name, entry.number) for head in heads for entry in head.versions}
        for model, version in sorted(needed - known):
            raise StoreError(
                f"{model} is deployed as version {version}, which models/{model} does not have: the store lost a "
                "revision of the model. Nothing is deleted; run `tritonctl fsck`",
                model=model,
                version=version,
            )
        for head in heads:
            for entry in head.versions:
                gone = entry.deleted and (entry.deleted_at is None or entry.deleted_at <= horizon)
                if gone and (head.name, entry.number) not in needed:
                    continue
                referenced.add(entry.manifest)
                referenced.update(self._blobs_of(head.name, entry))
        return referenced

    def _blobs_of(self, model: str, entry: VersionEntry) -> set[str]:
        try:
            return {blob.sha256 for blob in self._versions.manifest_of(entry).blobs}
        except NotFoundError as error:
            head = self._models.heads.read(model, fresh=True)
            if head is not None and any(now.number == entry.number and now.deleted for now in head.value.versions):
                return set()  # deleted, and collected by another collector, since the head was read
            raise StoreError(
                f"the manifest of {model}:{entry.number} is missing from the store, so the blobs that it needs are "
                f"unknown; restore {blob_key(entry.manifest)}, or delete the version",
                model=model,
                version=entry.number,
            ) from error

    def _remove_abandoned(self, now: datetime, *, dry_run: bool) -> int:
        intent_age = timedelta(seconds=self._settings.upload_max_age_seconds)
        abandoned = [info.key for info in self._store.list(INTENTS) if now - info.modified_at > intent_age]
        stale = [info.key for info in self._store.list(MARKERS) if now - info.modified_at > MARKER_STALE]
        if not dry_run:
            for key in (*abandoned, *stale):
                self._store.delete(key)
        return len(abandoned)

    def _abort_uploads(self, now: datetime) -> int:
        if not isinstance(self._store, _AbortsUploads):
            return 0
        return self._store.abort_incomplete(now - timedelta(seconds=self._settings.upload_max_age_seconds))
