"""The registry: one interface to models, versions, aliases, blobs and deployments.

Synchronous and safe to use from several threads. Reads may be ``head_max_age_seconds`` old, but a miss is always
verified in the store before it is reported. Commits always read the store. A process sees its own commits at once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.model import ModelHead, VersionEntry
from controlplane.domain.names import Reference
from controlplane.domain.samples import Sample, decode_samples
from controlplane.errors import DigestMismatchError, NotFoundError, StoreWentBackwardsError
from controlplane.registry import aliases as alias_edits
from controlplane.registry import intents, lost
from controlplane.registry.blobs import Blobs, BlobState
from controlplane.registry.cache import BlobCache
from controlplane.registry.chain import Revision
from controlplane.registry.changes import ChangeFeed, ChangeLog
from controlplane.registry.condition_log import ConditionLog
from controlplane.registry.cordons import CordonStore
from controlplane.registry.damages import Damages
from controlplane.registry.deployments import Deployments
from controlplane.registry.findings import FsckReport
from controlplane.registry.footprints import Footprints
from controlplane.registry.fsck import Fsck, chain_named
from controlplane.registry.fsck_repair import Repairs
from controlplane.registry.gc import Collector, GcReport
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.holds import ModelHolds
from controlplane.registry.keys import ApiKeys
from controlplane.registry.models import KIND as MODELS
from controlplane.registry.models import Models
from controlplane.registry.proofs import Proofs
from controlplane.registry.publish import Publisher
from controlplane.registry.recorded_samples import RecordedSamples
from controlplane.registry.reports import Reports
from controlplane.registry.scrub import Scrub
from controlplane.registry.signatures import Signatures
from controlplane.registry.sweep import Sweep
from controlplane.registry.versions import Versions
from controlplane.settings import GcSettings, SigningSettings
from controlplane.storage.base import ObjectStore, ProgressCallback
from controlplane.storage.clock import StoreClock


class Registry:
    """Facade over the modules of this package, which document the details and errors of each method.

    Attributes:
        store: The bucket.
        cache: The local blob cache.
        clock: The store's clock.
        blobs: The blobs in the bucket.
        deployments: The desired states.
        footprints: Measured footprints of versions.
        reports: Qualification reports of versions.
        proofs: Passed proofs on record.
        recorded: Samples that were recorded after publication.
        holds: Client holds on models.
        keys: API keys.
        cordons: Servers that take no new replicas.
        signatures: Signatures of versions, and which versions may be deployed.
        damages: Records of damaged and missing blobs.
        scrub: The search for damaged blobs.
        changes: Announces commits.
        feed: Reads announcements.
        model_sweep: Passes over the heads of all models.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: BlobCache,
        *,
        head_max_age_seconds: float,
        gc: GcSettings,
        signing: SigningSettings | None = None,
        memory: HeadMemory | None = None,
        clock: StoreClock | None = None,
    ) -> None:
        self.store = store
        self.cache = cache
        self._memory = memory
        self._gc = gc
        self.clock = clock or StoreClock(store)
        self.blobs = Blobs(store)
        self.changes = ChangeLog(store, self.clock.now)
        self.feed = ChangeFeed(store, self.clock.peek, self.changes.writer)
        self._models = Models(
            store, head_max_age_seconds=head_max_age_seconds, changes=self.changes, feed=self.feed, memory=memory
        )
        self.deployments = Deployments(
            store,
            self._models,
            head_max_age_seconds=head_max_age_seconds,
            changes=self.changes,
            feed=self.feed,
            memory=memory,
        )
        self.model_sweep = Sweep(store, MODELS, self._models.heads, self.feed)
        self._versions = Versions(store, self._models, self.blobs, self.deployments)
        self.footprints = Footprints(store)
        self.reports = Reports(store)
        self.proofs = Proofs(store)
        self.recorded = RecordedSamples(store)
        self.condition_log = ConditionLog(store)
        self.holds = ModelHolds(store, clock=self.clock.now, changes=self.changes, feed=self.feed)
        self.keys = ApiKeys(store, clock=self.clock.now, changes=self.changes, feed=self.feed, memory=memory)
        self.cordons = CordonStore(store, clock=self.clock.now, changes=self.changes, feed=self.feed, memory=memory)
        self.signatures = Signatures(store, signing or SigningSettings())
        self.damages = Damages(store)
        self.scrub = Scrub(self._models, self._versions, self.blobs, cache, self.damages)
        self._publisher = Publisher(store, self._models, self.blobs, self.damages)
        self._collector = Collector(store, self.blobs, self._models, self._versions, self.deployments, gc, self.clock)

    def is_settled(self, chain: str) -> bool:
        """Return whether the head in memory reflects all announcements so far; see `HeadCache.is_settled`. No I/O."""
        kind, _, name = chain.partition("/")
        return self._models.heads.is_settled(name) if kind == MODELS else self.deployments.is_settled(name)

    # Models

    def list_models(self, *, after: str = "", limit: int = 100) -> list[ModelHead]:
        """Return at most ``limit`` live models after the name ``after``, in the order of `Models.list`."""
        return self._models.list(after=after, limit=limit)

    def get_model(self, name: str) -> ModelHead:
        """Return a model's head (NotFoundError)."""
        return self._models.get(name)

    def peek_model(self, name: str) -> ModelHead | None:
        """Return the head from memory if it is recent enough. No I/O."""
        return self._models.peek(name)

    def create_model(
        self,
        name: str,
        *,
        description: str | None = None,
        labels: dict[str, str] | None = None,
        actor: str,
        reason: str = "",
    ) -> ModelHead:
        """Create a model without versions (AlreadyExistsError)."""
        return self._models.create(name, description=description or "", labels=labels or {}, actor=actor, reason=reason)

    def update_model(
        self,
        name: str,
        *,
        description: str | None = None,
        labels: dict[str, str] | None = None,
        actor: str,
        reason: str = "",
    ) -> ModelHead:
        """Change the given values; labels are replaced as a whole (NotFoundError)."""
        return self._models.update(name, description=description, labels=labels, actor=actor, reason=reason)

    def delete_model(self, name: str, *, actor: str, reason: str = "") -> None:
        """Put a tombstone on a model and all its versions (NotFoundError, InUseError)."""
        self._versions.delete_model(name, actor=actor, reason=reason)

    def history(self, name: str, *, limit: int | None = None, before: int | None = None) -> list[Revision]:
        """Return a model's revisions, newest first, including those of a deleted model (NotFoundError)."""
        return self._models.history(name, limit=limit, before=before)

    # Versions

    def resolve(self, reference: Reference) -> VersionEntry:
        """Return the version that a reference names (NotFoundError)."""
        return self._versions.resolve(reference)

    def manifest(self, name: str, number: int) -> Manifest:
        """Return a version's manifest (NotFoundError)."""
        return self._versions.manifest(name, number)

    def publish(
        self,
        model: str,
        manifest: Manifest,
        files: Mapping[str, Path],
        *,
        actor: str,
        reason: str = "",
        aliases: Sequence[str] = (),
        number: int | None = None,
        commit_id: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> VersionEntry:
        """Publish a version; see `Publisher.publish`."""
        return self._publisher.publish(
            model,
            manifest,
            files,
            actor=actor,
            reason=reason,
            aliases=aliases,
            number=number,
            commit_id=commit_id,
            progress=progress,
        )

    def ensure_blobs(self, model: str, manifest: Manifest, files: Mapping[str, Path]) -> None:
        """Write the blobs that the store lacks of a published version; see `Publisher.ensure`."""
        self._publisher.ensure(model, manifest, files)

    def delete_version(self, name: str, number: int, *, actor: str, reason: str = "") -> ModelHead:
        """Put a tombstone on a version (NotFoundError, InUseError)."""
        return self._versions.delete(name, number, actor=actor, reason=reason)

    def set_alias(self, name: str, alias: str, number: int, *, actor: str, reason: str = "") -> ModelHead:
        """Point an alias at a version (NotFoundError, InvalidNameError)."""
        return alias_edits.set_alias(self._models, name, alias, number, actor=actor, reason=reason)

    def remove_alias(self, name: str, alias: str, *, actor: str, reason: str = "") -> ModelHead:
        """Remove an alias (NotFoundError)."""
        return alias_edits.remove_alias(self._models, name, alias, actor=actor, reason=reason)

    # Blobs

    def fetch(self, entry: FileEntry, progress: ProgressCallback | None = None) -> Path:
        """Return a local, verified, read-only path of a blob; `pin` it while it is needed.

        Raises:
            NotFoundError: The store has lost the blob; the loss is recorded.
            DigestMismatchError: The store's copy is damaged, confirmed by a second read; the damage is recorded.
        """
        try:
            return self.cache.fetch(self.store, entry, progress)
        except (DigestMismatchError, NotFoundError):
            state = self.blobs.inspect(entry.sha256, entry.size_bytes)
            if state is BlobState.INTACT:  # the bytes were corrupted in transit
                return self.cache.fetch(self.store, entry, progress)
            self.damages.found(entry.sha256, missing=state is BlobState.MISSING, path=entry.path)
            raise

    @contextmanager
    def checkout(self, manifest: Manifest, progress: ProgressCallback | None = None) -> Iterator[dict[str, Path]]:
        """Yield a version's files as local paths by path in the artifact; no file is evicted inside the block."""
        with self.cache.pin({file.sha256 for file in manifest.files}):
            yield {file.path: self.fetch(file, progress) for file in manifest.files}

    def require_intact(self, reference: str, manifest: Manifest, read: Callable[[int], None] | None = None) -> None:
        """Read every blob of a version from the store and compare it with its digest; record any damage.

        Raises:
            DigestMismatchError: A blob is damaged or missing.
        """
        wrong = []
        for blob in {blob.sha256: blob for blob in manifest.blobs}.values():
            state = self.blobs.inspect(blob.sha256, blob.size_bytes, read)
            if state is BlobState.INTACT:
                self.damages.repaired(blob.sha256)
            else:
                missing = state is BlobState.MISSING
                wrong.append(self.damages.found(blob.sha256, missing=missing, path=blob.path, version=reference))
        if wrong:
            raise DigestMismatchError("; ".join(damage.message for damage in wrong), version=reference)

    def samples(self, manifest: Manifest) -> tuple[Sample, ...]:
        """Return a version's golden samples; empty if it has none."""
        return decode_samples(self.blobs.read(manifest.golden.file.sha256)) if manifest.golden else ()

    def read_blob(self, sha256: str) -> bytes:
        """Read and verify a whole small blob (NotFoundError, DigestMismatchError)."""
        return self.blobs.read(sha256)

    def open_blob(self, sha256: str) -> BinaryIO:
        """Open a blob for streaming; the caller closes it and checks the digest (NotFoundError)."""
        return self.blobs.open(sha256)

    def hold_blobs(self, digests: Collection[str], why: str) -> str:
        """Protect blobs, present or future, from collection; for uploads that a client makes directly.

        Returns:
            The hold's key, for `release_blobs`. The hold expires automatically after ``gc.upload_max_age_seconds``.
        """
        return intents.hold(self.store, digests, why)

    def release_blobs(self, key: str) -> None:
        """Remove the protection of `hold_blobs`."""
        intents.release(self.store, key)

    def fsck(
        self, *, deep: bool, repair: bool, decided: Sequence[str] = (), stage: Callable[[str], None] = lambda _: None
    ) -> FsckReport:
        """Check the whole store; see `Fsck`."""
        repairs = Repairs(
            self.blobs,
            self.cache,
            self._versions.document_of,
            self.clock,
            note_max_age_seconds=self._gc.upload_max_age_seconds,
        )
        check = Fsck(self.store, memory=self._memory, repairs=repairs if repair else None, deep=deep, stage=stage)
        return check.run(decided=decided)

    def decide(self, chain: str, *, restore: bool, actor: str, reason: str = "") -> Revision:
        """Commit an operator's decision about a chain that went backwards; see `controlplane.registry.lost`."""
        found = chain_named(self.store, chain, self.changes)
        if self._memory is not None:
            with suppress(StoreWentBackwardsError):
                found.refresh(self._memory.get(found.name))  # also notes revisions that only this instance remembers
        decide = lost.restore if restore else lost.accept
        return decide(found, actor=actor, reason=reason)

    def collect(self, *, dry_run: bool, grace_seconds: float | None = None) -> GcReport:
        """Collect garbage; see `Collector.collect`."""
        return self._collector.collect(dry_run=dry_run, grace_seconds=grace_seconds)
