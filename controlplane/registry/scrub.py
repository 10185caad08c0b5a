"""The scrub: a slow background check that compares every referenced blob with its digest and makes possible repairs.

A pass visits the models in the order of their names. It reads the manifest of each live version, and reads each blob
that a manifest names once. `Pace` limits requests and bytes. The position is committed periodically, so another
instance, or this one after a restart, continues the pass.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from controlplane.domain.damage import ScrubRecord
from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.model import VersionEntry
from controlplane.errors import ControlPlaneError, DigestMismatchError, NotFoundError, StoreUnavailableError
from controlplane.registry.blobs import Blobs, BlobState
from controlplane.registry.cache import BlobCache
from controlplane.registry.damages import Damages
from controlplane.registry.models import Models
from controlplane.registry.versions import Versions

logger = logging.getLogger(__name__)

_NAMES_READ = 100
_SAVE_SECONDS = 300.0


class Stopped(Exception):  # noqa: N818 - no error: the scrub was asked to stop
    """The scrub was requested to stop."""


class Pace:
    """Limits the rate of requests and the rate of bytes by waiting.

    Args:
        requests_per_minute: Maximum rate of requests to the store.
        bytes_per_second: Maximum rate of bytes read from it.
        stop: Ends every wait.
    """

    def __init__(self, requests_per_minute: float, bytes_per_second: float, stop: threading.Event) -> None:
        self._request_seconds = 60.0 / requests_per_minute
        self._byte_seconds = 1.0 / bytes_per_second
        self._stop = stop
        self._free_at = time.monotonic()
        self.requests = 0
        self.bytes = 0

    def request(self, count: int = 1) -> None:
        """Wait until ``count`` requests may be sent.

        Raises:
            Stopped: The scrub was requested to stop.
        """
        self.requests += count
        self._spend(count * self._request_seconds)

    def read(self, size_bytes: int) -> None:
        """Wait until the next read may start, after a read of ``size_bytes``.

        Raises:
            Stopped: The scrub was requested to stop.
        """
        self.bytes += size_bytes
        self._spend(size_bytes * self._byte_seconds)

    def _spend(self, seconds: float) -> None:
        now = time.monotonic()
        wait, self._free_at = self._free_at - now, max(self._free_at, now) + seconds
        if self._stop.wait(max(wait, 0.0)) or self._stop.is_set():
            raise Stopped


class Scrub:
    """The scrub of one store. Blocks; used by one thread at a time."""

    def __init__(self, models: Models, versions: Versions, blobs: Blobs, cache: BlobCache, damages: Damages) -> None:
        self._models = models
        self._versions = versions
        self._blobs = blobs
        self._cache = cache
        self._damages = damages
        self._checked: set[str] = set()
        self._names: list[str] = []
        self._saved_at = 0.0
        # Progress since the committed position: the last model that was checked, and the pass's blobs and bytes up to
        # it.
        self._ahead: tuple[str, int, int] | None = None

    def step(self, pace: Pace, interval_seconds: float) -> bool:
        """Check the next model; return whether there was one.

        Args:
            pace: Limits the load on the store.
            interval_seconds: Time from the start of one pass to the start of the next.

        Raises:
            Stopped: The scrub was requested to stop; the position is still before the model.
            StoreError: The store failed; the state of the blobs is unknown.
        """
        record = self._damages.record
        if not record.running:
            now = datetime.now(UTC)
            if record.started_at is not None and now - record.started_at < timedelta(seconds=interval_seconds):
                return False
            self._checked.clear()
            self._names.clear()
            record = record.model_copy(update={"started_at": now, "after": "", "blobs": 0, "bytes": 0})
            self._damages.edit(lambda _: record)
            self._saved_at = time.monotonic()
        if not self._names:
            pace.request()
            after = self._ahead[0] if self._ahead is not None else record.after
            self._names = list(self._models.names(after=after, limit=_NAMES_READ))
        if not self._names:
            self._finish()
            return True
        before = pace.bytes
        blobs = self._check_model(self._names[0], pace)
        name = self._names.pop(0)
        self._advance(name, blobs, pace.bytes - before)
        return True

    def save(self) -> None:
        """Commit the position, so that the next instance continues there.

        Raises:
            StoreError: The store failed.
        """
        self._saved_at = time.monotonic()
        if self._ahead is not None:
            update = dict(zip(("after", "blobs", "bytes"), self._ahead, strict=True))
            self._damages.edit(lambda record: record.model_copy(update=update))
            self._ahead = None

    def repair(self, sha256: str) -> bool:
        """Write a blob again from this machine's cache, if the cache has it intact; return whether it is intact now.

        Raises:
            StoreError: The store failed.
        """
        with self._cache.pin([sha256]):
            path = self._cache.get(sha256)
            if path is None:
                return False
            self._blobs.put_file(path, sha256)
        return self._blobs.inspect(sha256) is BlobState.INTACT

    def repair_known(self) -> None:
        """Repair blobs that any instance found damaged and that this machine's cache contains.

        Raises:
            StoreError: The store failed.
        """
        for sha256 in list(self._damages.record.damages):
            if self.repair(sha256):
                self._damages.repaired(sha256)

    def _advance(self, name: str, blobs: int, size_bytes: int) -> None:
        record = self._damages.record
        _, blobs_before, bytes_before = self._ahead or (record.after, record.blobs, record.bytes)
        self._ahead = (name, blobs_before + blobs, bytes_before + size_bytes)
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            self.save()

    def _finish(self) -> None:
        self.save()

        def finished(record: ScrubRecord) -> ScrubRecord:
            # Damage that this pass did not find again no longer belongs to a live version.
            started = record.started_at or datetime.now(UTC)
            left = {key: damage for key, damage in record.damages.items() if damage.seen_at >= started}
            return record.model_copy(
                update={
                    "finished_at": datetime.now(UTC),
                    "finished_blobs": record.blobs,
                    "finished_bytes": record.bytes,
                    "after": "",
                    "damages": left,
                }
            )

        record = self._damages.edit(finished)
        logger.info(
            "scrub finished: %d blobs, %d bytes, %d damaged or missing",
            record.finished_blobs,
            record.finished_bytes,
            len(record.damages),
        )

    def _check_model(self, name: str, pace: Pace) -> int:
        """Check the blobs of a model's live versions; return how many were read."""
        pace.request(2)
        try:
            head = self._models.get(name, fresh=True)
        except NotFoundError:
            return 0
        except StoreUnavailableError:
            raise
        except ControlPlaneError as error:
            logger.warning("scrub: failed to read the revisions of %s (see `tritonctl doctor`): %s", name, error)
            return 0
        count = 0
        for entry in head.live_versions:
            count += self._check_version(name, entry, pace)
        return count

    def _check_version(self, name: str, entry: VersionEntry, pace: Pace) -> int:
        manifest = self._check_manifest(name, entry, pace)
        count = 1
        for blob in manifest.blobs if manifest is not None else ():
            if blob.sha256 not in self._checked or self._damages.is_known(blob.sha256):
                self._check_blob(name, entry, blob, pace)
                self._checked.add(blob.sha256)
                count += 1
        return count

    def _check_manifest(self, name: str, entry: VersionEntry, pace: Pace) -> Manifest | None:
        """Read a version's manifest from the store; repair a damaged one if this process has it in memory."""
        known = self._versions.known_manifest(entry)
        data = known.model_dump_json(indent=2).encode() if known is not None else b""
        size_bytes = len(data) if hashlib.sha256(data).hexdigest() == entry.manifest else None
        file = FileEntry(path="manifest", sha256=entry.manifest, size_bytes=size_bytes or 0)
        pace.request()
        state = self._blobs.inspect(entry.manifest, None, pace.read)
        if state is not BlobState.INTACT and size_bytes is not None:
            self._blobs.put_bytes(data)
            state = self._blobs.inspect(entry.manifest)
        self._judge(name, entry, file, state)
        if state is not BlobState.INTACT:
            return known
        try:
            pace.request(0 if known is not None else 1)
            return self._versions.manifest_of(entry)
        except (DigestMismatchError, NotFoundError):
            return known

    def _check_blob(self, name: str, entry: VersionEntry, file: FileEntry, pace: Pace) -> None:
        pace.request()
        state = self._blobs.inspect(file.sha256, file.size_bytes, pace.read)
        if state is BlobState.DAMAGED:
            pace.request()  # bytes that were corrupted in transit are correct on the next read
            state = self._blobs.inspect(file.sha256, file.size_bytes, pace.read)
        if state is not BlobState.INTACT and self.repair(file.sha256):
            logger.warning("scrub: blob %s of %s:%d was repaired from the cache", file.sha256, name, entry.number)
            self._damages.found(
                file.sha256, missing=state is BlobState.MISSING, path=file.path, version=f"{name}:{entry.number}"
            )
            state = BlobState.INTACT
        self._judge(name, entry, file, state)

    def _judge(self, name: str, entry: VersionEntry, file: FileEntry, state: BlobState) -> None:
        if state is BlobState.INTACT:
            self._damages.repaired(file.sha256)
        elif not self._is_gone(name, entry):
            self._damages.found(
                file.sha256, missing=state is BlobState.MISSING, path=file.path, version=f"{name}:{entry.number}"
            )

    def _is_gone(self, name: str, entry: VersionEntry) -> bool:
        """Return whether a version was deleted since its head was read; its blobs may then be collected."""
        try:
            live: Collection[VersionEntry] = self._models.get(name, fresh=True).live_versions
        except NotFoundError:
            return True
        return all(other.number != entry.number for other in live)
