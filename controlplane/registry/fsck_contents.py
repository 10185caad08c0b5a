"""Check of a store's versions, blobs and references."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from pydantic import ValidationError

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.manifest import Manifest
from controlplane.domain.model import ModelHead
from controlplane.errors import DigestMismatchError, NotFoundError, StoreError
from controlplane.registry.blobs import Blobs, blob_key, digest_of
from controlplane.registry.findings import Severity
from controlplane.registry.fsck_repair import Repairs
from controlplane.registry.intents import INTENTS, MARKERS, read_note
from controlplane.storage.base import ObjectInfo, ObjectStore

_VERSIONED = re.compile(r"(signatures|reports|footprints)/([^/]+)/(\d+)/.+")
_CHUNK = 1024 * 1024
_PARALLEL = 8
_PUBLISH_AGAIN = "publish the same files again, restore the object from a backup, or delete the version"


class _Found(Protocol):
    def __call__(
        self, severity: Severity, reason: str, subject: str, message: str, *, advice: str = "", repaired: bool = False
    ) -> None: ...


class Contents:
    """Checker of contents and references.

    Args:
        store: The store.
        objects: All objects of the store, by key.
        repairs: Performs possible repairs; None only reports.
        found: Called with each finding.

    Attributes:
        blobs: The digests of all blobs.
        referenced: The digests that live versions need.
        bytes_read: Bytes that were compared with their digests.
    """

    def __init__(
        self, store: ObjectStore, objects: Mapping[str, ObjectInfo], repairs: Repairs | None, found: _Found
    ) -> None:
        self._store = store
        self._objects = objects
        self._access = Blobs(store)
        self._repairs = repairs
        self._found = found
        self.blobs = {digest for key in objects if (digest := digest_of(key)) is not None}
        self.referenced: set[str] = set()
        self.bytes_read = 0
        self._users: dict[str, str] = {}

    def check_versions(self, models: Iterable[ModelHead]) -> None:
        """Check that every live version has its manifest and all its blobs."""
        entries = [(f"{head.name}:{entry.number}", entry.manifest) for head in models for entry in head.live_versions]
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fsck") as pool:
            manifests = list(pool.map(lambda one: self._manifest(*one), entries))
        sizes: dict[str, int] = {}
        for (version, digest), manifest in zip(entries, manifests, strict=True):
            self._users.setdefault(digest, version)
            for blob in manifest.blobs if manifest is not None else ():
                sizes[blob.sha256] = blob.size_bytes
                self._users.setdefault(blob.sha256, f"{version} ({blob.path})")
        self.referenced = set(self._users)
        for digest, size_bytes in sizes.items():
            self._check_blob(digest, size_bytes)

    def check_references(self, models: Mapping[str, ModelHead], deployments: Mapping[str, DeploymentSpec]) -> None:
        """Check that aliases, deployments, signatures and records name versions that exist."""
        for head in models.values():
            live = {entry.number for entry in head.live_versions}
            for alias, number in sorted(head.aliases.items()):
                if number not in live:
                    self._found(
                        Severity.ERROR,
                        "AliasDangling",
                        f"{head.name}@{alias}",
                        f"it points at version {number}, which does not exist",
                        advice=f"move it with `tritonctl alias`, or remove it (versions: {sorted(live) or 'none'})",
                    )
        for model, spec in sorted(deployments.items()):
            if not spec.deleted:
                self._check_deployment(model, spec, models.get(model))
        self._check_records(models)

    def check_notes(self) -> None:
        """Check that the intents of publishes and the markers of garbage collection are readable."""
        for key in sorted(self._objects):
            if not key.startswith((INTENTS, MARKERS)):
                continue
            try:
                read_note(self._store, key)
            except StoreError as error:
                repaired = self._repairs is not None and self._repairs.note(self._objects[key])
                self._found(
                    Severity.ERROR,
                    "NoteDamaged",
                    key,
                    f"{error.message}; garbage collection is blocked",
                    advice="`tritonctl fsck --repair` removes it when it is too old to be in use",
                    repaired=repaired,
                )

    def check_all_bytes(self) -> None:
        """Compare every blob with its digest."""
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fsck") as pool:
            for _ in pool.map(self._check_bytes, sorted(self.blobs)):
                pass

    def _manifest(self, version: str, digest: str) -> Manifest | None:
        """Return a version's manifest; it is always read because it is small."""
        for attempt in range(2):
            try:
                return Manifest.model_validate_json(self._access.read(digest))
            except (NotFoundError, DigestMismatchError) as error:
                reason = "ManifestMissing" if isinstance(error, NotFoundError) else "ManifestDamaged"
                repaired = attempt == 0 and self._repairs is not None and self._repairs.manifest(digest)
                self._found(Severity.ERROR, reason, version, error.message, advice=_PUBLISH_AGAIN, repaired=repaired)
                if not repaired:
                    return None
            except ValidationError:
                self._found(
                    Severity.ERROR,
                    "ManifestUnreadable",
                    version,
                    f"blob {digest} is not a manifest that this release can read",
                    advice="if a newer release wrote it, use that release",
                )
                return None
        return None

    def _check_blob(self, digest: str, size_bytes: int) -> None:
        listed = self._objects.get(blob_key(digest))
        if listed is not None and listed.size_bytes == size_bytes:
            return
        size = self._access.size_of(digest)  # it may have been written since the store was listed
        if size == size_bytes:
            return
        self._found(
            Severity.ERROR,
            "BlobMissing" if size is None else "BlobDamaged",
            self._users[digest],
            f"blob {digest} " + ("is missing" if size is None else f"has {size} bytes instead of {size_bytes}"),
            advice=_PUBLISH_AGAIN,
            repaired=self._repairs is not None and self._repairs.blob(digest),
        )

    def _check_bytes(self, digest: str) -> None:
        found, read = hashlib.sha256(), 0
        try:
            with self._access.open(digest) as stream:
                while chunk := stream.read(_CHUNK):
                    found.update(chunk)
                    read += len(chunk)
        except NotFoundError:
            return  # collected since the store was listed
        self.bytes_read += read
        if found.hexdigest() == digest:
            return
        used = digest in self.referenced
        self._found(
            Severity.ERROR if used else Severity.WARNING,
            "BlobDamaged",
            self._users.get(digest, blob_key(digest)),
            f"the content of blob {digest} does not match its digest",
            advice=_PUBLISH_AGAIN if used else "no version refers to it; garbage collection removes it",
            repaired=self._repairs is not None and self._repairs.blob(digest),
        )

    def _check_deployment(self, model: str, spec: DeploymentSpec, head: ModelHead | None) -> None:
        wanted = {spec.version} | ({spec.trial.version} if spec.trial else set())
        known = {entry.number: entry.deleted for entry in head.versions} if head is not None else {}
        for number in sorted(wanted):
            if known.get(number, True):
                was = "was deleted" if number in known else "is not in the store: a revision of the model may be lost"
                self._found(
                    Severity.ERROR,
                    "DeploymentDangling",
                    f"deployments/{model}",
                    f"the deployment uses {model}:{number}, which {was}",
                    advice="deploy another version, or undeploy it",
                )

    def _check_records(self, models: Mapping[str, ModelHead]) -> None:
        newest = {name: head.versions[-1].number if head.versions else 0 for name, head in models.items()}
        beyond: dict[str, tuple[int, str]] = {}
        for key in self._objects:
            match = _VERSIONED.fullmatch(key)
            if match is not None and int(match[3]) > newest.get(match[2], 0):
                beyond[match[2]] = max(beyond.get(match[2], (0, "")), (int(match[3]), match[1]))
        for model, (number, kind) in sorted(beyond.items()):
            self._found(
                Severity.WARNING,
                "VersionUnknown",
                f"models/{model}",
                f"{kind} exist for {model}:{number}, but the newest version is {newest.get(model, 0)}: a revision "
                "of the model may be lost",
                advice="publish the version again if it is missing; otherwise its number will be used for other "
                "content",
            )
