"""Versions: resolution of references, manifests, and tombstones."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from pydantic import ValidationError

from controlplane.domain.manifest import Manifest, manifest_document
from controlplane.domain.model import ModelHead, VersionEntry
from controlplane.domain.names import Reference
from controlplane.domain.validation import invalid_field
from controlplane.errors import InUseError, NotFoundError, StoreError
from controlplane.registry.aliases import missing_alias
from controlplane.registry.blobs import Blobs
from controlplane.registry.deployments import Deployments
from controlplane.registry.intents import holding, written_at
from controlplane.registry.models import Models, explain
from controlplane.storage.base import ObjectStore

_MANIFESTS_KEPT = 1024


class Versions:
    """Reads and deletes versions. Manifests never change, so they are cached in memory."""

    def __init__(self, store: ObjectStore, models: Models, blobs: Blobs, deployments: Deployments) -> None:
        self._store = store
        self._models = models
        self._blobs = blobs
        self._deployments = deployments
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._guard = threading.Lock()

    def resolve(self, reference: Reference) -> VersionEntry:
        """Return the version that a reference names. A miss is verified in the store before it is reported.

        Raises:
            NotFoundError: The model, version or alias does not exist, or the model has no versions.
        """
        try:
            return self._models.get(reference.model).resolve(reference)
        except NotFoundError:
            head = self._models.get(reference.model, fresh=True)
            if reference.alias is not None and reference.alias not in head.aliases:
                raise missing_alias(head, reference.alias) from None
            return head.resolve(reference)

    def manifest(self, name: str, number: int) -> Manifest:
        """Return a version's manifest.

        Raises:
            NotFoundError: The version does not exist or was deleted.
        """
        return self.manifest_of(self.resolve(Reference(name, version=number)))

    def manifest_of(self, entry: VersionEntry) -> Manifest:
        """Return the manifest that an entry of a head names, including a tombstone's."""
        with self._guard:
            known = self._manifests.get(entry.manifest)
            if known is not None:
                self._manifests.move_to_end(entry.manifest)
                return known
        try:
            manifest = Manifest.model_validate_json(self._blobs.read(entry.manifest))
        except ValidationError as error:
            raise StoreError(
                f"failed to read the manifest {entry.manifest}: {invalid_field(error)}; if a newer release wrote "
                "it, use that release",
                sha256=entry.manifest,
            ) from error
        with self._guard:
            self._manifests[entry.manifest] = manifest
            if len(self._manifests) > _MANIFESTS_KEPT:
                self._manifests.popitem(last=False)
        return manifest

    def known_manifest(self, entry: VersionEntry) -> Manifest | None:
        """Return the manifest of an entry if it is in memory. No I/O."""
        with self._guard:
            return self._manifests.get(entry.manifest)

    def document_of(self, digest: str) -> bytes | None:
        """Return the bytes of a manifest in memory; None if it is not in memory or was written by another release."""
        with self._guard:
            known = self._manifests.get(digest)
        document = manifest_document(known) if known is not None else b""
        return document if hashlib.sha256(document).hexdigest() == digest else None

    def delete(self, name: str, number: int, *, actor: str, reason: str = "") -> ModelHead:
        """Put a tombstone on a version: its number is not reused, and its blobs may be collected.

        Raises:
            NotFoundError: The version does not exist or was already deleted.
            InUseError: An alias points at the version or a deployment needs it; the message names it.
        """
        entry = self._models.get(name, fresh=True).version(number)
        with holding(self._store, self._digests([entry]), f"delete {name}:{number}") as intent:
            self._refuse_deployed(name, [number])
            now = written_at(self._store, intent)

            def bury(head: ModelHead) -> tuple[ModelHead, str]:
                head.version(number)
                if pointing := sorted(alias for alias, target in head.aliases.items() if target == number):
                    raise InUseError(
                        f"{name}:{number} cannot be deleted: the alias {pointing[0]!r} points at it; move the alias "
                        "to another version first",
                        model=name,
                        version=number,
                        aliases=pointing,
                    )
                return _with_deleted(head, {number}, now), explain(f"delete version {number}", reason)

            head = self._models.edit(name, bury, actor=actor)
            self._undo_if_deployed(name, [number], {}, actor)
        return head

    def delete_model(self, name: str, *, actor: str, reason: str = "") -> None:
        """Put a tombstone on a model and all its versions. Publishing under the same name continues its numbers.

        Raises:
            NotFoundError: The model does not exist.
            InUseError: The model is deployed.
        """
        live = self._models.get(name, fresh=True).live_versions
        with holding(self._store, self._digests(live), f"delete {name}") as intent:
            self._refuse_deployed(name, None)
            now = written_at(self._store, intent)
            buried: list[ModelHead] = []

            def bury(head: ModelHead) -> tuple[ModelHead, str]:
                buried[:] = [head]
                gone = _with_deleted(head, {entry.number for entry in head.live_versions}, now)
                return gone.model_copy(update={"deleted": True, "aliases": {}}), explain("delete model", reason)

            self._models.edit(name, bury, actor=actor)
            before = buried[0]
            self._undo_if_deployed(name, [entry.number for entry in before.live_versions], before.aliases, actor)

    def _digests(self, entries: Sequence[VersionEntry]) -> set[str]:
        digests: set[str] = set()
        for entry in entries:
            digests.add(entry.manifest)
            with suppress(NotFoundError):  # a version whose manifest is lost must still be deletable
                digests.update(blob.sha256 for blob in self.manifest_of(entry).blobs)
        return digests

    def _refuse_deployed(self, name: str, numbers: Sequence[int] | None) -> None:
        """Raise InUseError if a deployment needs one of these versions; None stands for any version."""
        for number, why in self._deployments.needs(name).items():
            if numbers is None or number in numbers:
                what = name if numbers is None else f"{name}:{number}"
                raise InUseError(
                    f"{what} cannot be deleted: {why}; undeploy it or deploy another version first",
                    model=name,
                    version=number,
                )

    def _undo_if_deployed(self, name: str, numbers: Sequence[int], aliases: dict[str, int], actor: str) -> None:
        # The other half of the race described in controlplane.registry.deployments. The blobs still exist, because this
        # side protects them until it has checked.
        try:
            self._refuse_deployed(name, numbers)
        except InUseError as error:
            why = error.message

            def revive(head: ModelHead | None) -> tuple[ModelHead, str] | None:
                if head is None:
                    return None
                update = {"deleted": False, "aliases": {**aliases, **head.aliases}}
                revived = _with_deleted(head, set(numbers), None).model_copy(update=update)
                return revived, f"revert the deletion of {', '.join(map(str, numbers))}: {why}"

            self._models.edit_any(name, revive, actor=actor)
            raise


def _with_deleted(head: ModelHead, numbers: set[int], at: datetime | None) -> ModelHead:
    """Return the head with versions deleted at a moment by the store's clock; None: not deleted."""
    update = {"deleted": at is not None, "deleted_at": at}
    return head.model_copy(
        update={
            "versions": tuple(
                entry.model_copy(update=update) if entry.number in numbers else entry for entry in head.versions
            )
        }
    )
