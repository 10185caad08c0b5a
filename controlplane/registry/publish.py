"""Publishing a version: blobs first, then one commit that makes everything visible.

A crash at any step leaves nothing incomplete: before the commit no version is visible, and the blobs are collected
later (or found by the next attempt); after the commit the version is complete.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from controlplane.domain.manifest import FileEntry, Manifest, manifest_document
from controlplane.domain.model import ModelHead, VersionEntry
from controlplane.domain.names import validate_alias, validate_model_name
from controlplane.domain.validation import invalid_field
from controlplane.errors import (
    CommitOutcomeUnknownError,
    ControlPlaneError,
    InvalidInputError,
    StoreError,
)
from controlplane.registry.aliases import describe_move
from controlplane.registry.blobs import Blobs
from controlplane.registry.damages import Damages
from controlplane.registry.intents import holding, stands
from controlplane.registry.models import Models, explain
from controlplane.storage.base import ObjectStore, ProgressCallback

logger = logging.getLogger(__name__)

_PARALLEL_FILES = 4
"""Number of files transferred at once; the store transfers each large file in parallel parts."""


class Publisher:
    """Publishes versions."""

    def __init__(self, store: ObjectStore, models: Models, blobs: Blobs, damages: Damages) -> None:
        self._store = store
        self._models = models
        self._blobs = blobs
        self._damages = damages

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
        """Publish a version; create the model if it does not exist.

        Args:
            model: The model's name.
            manifest: The version's manifest.
            files: Local path by SHA-256, for every blob of the manifest that the store may lack.
            actor: The author of the commit.
            reason: Why, for the history.
            aliases: Aliases to point at the new version, moved in the same commit.
            number: Number of the version, not below the model's next one; None takes the next one.
            commit_id: Makes a publish idempotent: a version that was already published with this id is returned.
            progress: Receives the number of bytes transferred, including those that already existed.

        Raises:
            InvalidInputError: A blob is neither in the store nor given, or the manifest does not survive a JSON round
                trip.
            DigestMismatchError: A local file does not match its digest.
            ConflictError: The number is taken or below the model's next one.
        """
        validate_model_name(model)
        for alias in aliases:
            validate_alias(alias)
        document = _document(manifest)
        if commit_id is not None:
            before = self._models.heads.read(model, fresh=True)
            if before is not None and (published := _published(before.value, commit_id)) is not None:
                return published
        began = time.monotonic()
        manifest_digest = hashlib.sha256(document).hexdigest()
        digests = {blob.sha256 for blob in manifest.blobs} | {manifest_digest}
        with holding(self._store, digests, f"publish {model}") as intent:
            self._upload_missing(manifest, files, progress)
            self._blobs.put_bytes(document)
            entry = self._commit(
                model, manifest, manifest_digest, actor, reason, aliases, number, commit_id or uuid.uuid4().hex
            )
            if not self._stands(intent):
                self._make_whole(model, entry, manifest, document, files, actor)
        logger.info(
            "published %s:%d (%d bytes) in %.2f s", model, entry.number, entry.size_bytes, time.monotonic() - began
        )
        return entry

    def ensure(self, model: str, manifest: Manifest, files: Mapping[str, Path]) -> None:
        """Write the blobs of a published version that are missing or damaged in the store.

        Raises:
            InvalidInputError: A blob is neither in the store nor given.
            DigestMismatchError: A local file does not match its digest.
        """
        with holding(self._store, {blob.sha256 for blob in manifest.blobs}, f"publish {model}"):
            self._upload_missing(manifest, files, None)

    def _upload_missing(self, manifest: Manifest, files: Mapping[str, Path], progress: ProgressCallback | None) -> None:
        wanted = {blob.sha256: blob for blob in manifest.blobs}
        sizes = self._blobs.sizes_of(list(wanted))
        # A different size under a blob's key results from an interrupted foreign write; our blob replaces it, as it
        # does a damaged one.
        missing = [
            blob
            for digest, blob in wanted.items()
            if sizes[digest] != blob.size_bytes or (digest in files and self._damages.is_known(digest))
        ]
        if lacking := [blob for blob in missing if blob.sha256 not in files]:
            raise InvalidInputError(
                f"{lacking[0].path!r} ({lacking[0].sha256[:12]}…) is not in the store and was not uploaded"
                + (f", and {len(lacking) - 1} other files" if len(lacking) > 1 else ""),
                missing=[blob.sha256 for blob in lacking],
            )
        if progress is not None:
            progress(sum(blob.size_bytes for blob in wanted.values()) - sum(blob.size_bytes for blob in missing))

        def upload(blob: FileEntry) -> None:
            self._blobs.put_file(files[blob.sha256], blob.sha256, progress)
            self._damages.repaired(blob.sha256)

        with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="publish") as pool:
            # Large files first: the longest transfer must not start last.
            for _ in pool.map(upload, sorted(missing, key=lambda blob: -blob.size_bytes)):
                pass

    def _stands(self, intent: str) -> bool:
        try:
            return stands(self._store, intent)
        except StoreError as error:
            raise CommitOutcomeUnknownError(
                "the version was committed, but the store could not confirm that its files are safe "
                f"({error.message}); publish it again with the same commit id, or check it with `tritonctl fsck`"
            ) from error

    def _make_whole(
        self,
        model: str,
        entry: VersionEntry,
        manifest: Manifest,
        document: bytes,
        files: Mapping[str, Path],
        actor: str,
    ) -> None:
        """Check a version whose intent was removed before its commit, and write collected blobs again.

        A collector whose clock (or whose store's clock) is wrong considers a running publish abandoned.

        Raises:
            StoreError: A blob is gone and no local copy exists; the version was deleted again.
        """
        logger.warning("the publish intent of %s:%d was removed during the publish", model, entry.number)
        digests = {blob.sha256 for blob in manifest.blobs} | {entry.manifest}
        with holding(self._store, digests, f"publish {model}"):  # waits for a collector that is still deleting
            try:
                self._upload_missing(manifest, files, None)
                self._blobs.put_bytes(document)
            except ControlPlaneError as error:
                self._withdraw(model, entry, actor)
                raise StoreError(
                    f"{model}:{entry.number} was not published: garbage collection removed its files during the "
                    f"publish ({error.message}). Check the clocks of the machines with `tritonctl doctor`, then "
                    "publish it again",
                    model=model,
                    version=entry.number,
                ) from error

    def _withdraw(self, model: str, entry: VersionEntry, actor: str) -> None:
        gone = entry.model_copy(update={"deleted": True, "deleted_at": entry.published_at})

        def bury(head: ModelHead | None) -> tuple[ModelHead, str] | None:
            if head is None:
                return None
            update = {
                "versions": tuple(gone if one.number == entry.number else one for one in head.versions),
                "aliases": {alias: number for alias, number in head.aliases.items() if number != entry.number},
            }
            return head.model_copy(
                update=update
            ), f"withdraw version {entry.number}: garbage collection removed its files"

        self._models.edit_any(model, bury, actor=actor)

    def _commit(
        self,
        model: str,
        manifest: Manifest,
        manifest_digest: str,
        actor: str,
        reason: str,
        aliases: Sequence[str],
        number: int | None,
        commit_id: str,
    ) -> VersionEntry:
        def add(head: ModelHead | None) -> tuple[ModelHead, str] | None:
            head = head or ModelHead(name=model)
            if _published(head, commit_id) is not None:
                return None
            if number is not None:
                head.require_free(number)
            entry = VersionEntry(
                number=number or head.next_number,
                manifest=manifest_digest,
                format=manifest.format,
                size_bytes=manifest.size_bytes,
                servable=manifest.servable,
                published_at=datetime.now(UTC),
                published_by=actor,
                commit_id=commit_id,
            )
            moved = "".join(f", {describe_move(head, alias, entry.number)}" for alias in aliases)
            update = {
                "versions": (*head.versions, entry),
                "aliases": {**head.aliases, **dict.fromkeys(aliases, entry.number)},
                "deleted": False,
            }
            return head.model_copy(update=update), explain(f"publish version {entry.number}{moved}", reason)

        head = self._models.edit_any(model, add, actor=actor, commit_id=commit_id)
        entry = _published(head, commit_id)
        assert entry is not None  # `add` created it, or found it
        return entry


def _published(head: ModelHead, commit_id: str) -> VersionEntry | None:
    return next((entry for entry in reversed(head.versions) if entry.commit_id == commit_id), None)


def _document(manifest: Manifest) -> bytes:
    """Return the manifest blob's bytes after checking that they can be read back."""
    document = manifest_document(manifest)
    try:
        same = Manifest.model_validate_json(document) == manifest
    except ValidationError as error:
        raise InvalidInputError(
            f"failed to write the manifest as JSON ({invalid_field(error)}); check for NaN or infinite metrics"
        ) from error
    if not same:
        raise InvalidInputError("the manifest changes when it is written as JSON; check for NaN or infinite values")
    return document
