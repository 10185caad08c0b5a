"""What must hold after every fault, read from the store itself and not from its writers.

1. No acknowledged publish, alias move or deployment is lost.
2. No version is incomplete: every blob of every version is intact.
3. No two versions have one number; revisions are numbered without a gap, and each names its parent.
4. A serving model continues to serve unless its own server is down (`clients.Asker` watches that).
5. The end state is the last requested one.
6. Every failure was reported with its cause (`clients.Caller` watches answers, `sighting.Sightings` the rest).
"""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from controlplane.domain.model import ModelHead
from controlplane.errors import ControlPlaneError, NotFoundError
from controlplane.reconciler.leader_election import PREFIX as LEASE
from controlplane.registry.chain import Chain, Revision
from controlplane.registry.registry import Registry
from controlplane.settings import StoreSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.factory import open_store
from tests.faults.record import Answer, Change, Record
from tests.support.registries import new_registry


class Auditor:
    """Reads the store directly, without proxy and control plane.

    Args:
        store: The store without a proxy.
        folder: Folder of its own cache.
    """

    def __init__(self, store: StoreSettings, folder: Path) -> None:
        self._store: ObjectStore = open_store(store, folder)
        self._registry: Registry = new_registry(self._store, folder / "audit-cache")
        self._lease = Chain(self._store, LEASE, pruned=True)
        self._whole: set[str] = set()

    def close(self) -> None:
        self._store.close()

    def audit(self, record: Record) -> list[str]:
        """Return the violations."""
        heads = {head.name: head for head in self._registry.list_models(limit=1000)}
        return [
            *record.violations,
            *self._published(record, heads),
            *(problem for head in heads.values() for problem in self._versions(head)),
            *(problem for head in heads.values() for problem in _chain(head.name, self._registry.history(head.name))),
            *self._aliases(record, heads),
            *self._deployments(record),
        ]

    def wanted(self, model: str) -> int:
        """Return the version in the newest revision of a deployment."""
        return self._registry.deployments.get(model, fresh=True).spec.version

    def leader_pid(self) -> int:
        """Return the process that committed the newest revision of the lease."""
        newest = self._lease.head()
        return int(newest.body.get("pid", 0)) if newest else 0

    def fencing_number(self) -> int:
        """Return the number of the newest revision of the lease."""
        newest = self._lease.head()
        return newest.number if newest else 0

    def _published(self, record: Record, heads: dict[str, ModelHead]) -> Iterator[str]:
        told: dict[tuple[str, int], str] = {}
        for one in record.published:
            before = told.setdefault((one.model, one.version), one.sha256)
            if before != one.sha256:
                yield f"{one.model}:{one.version} was acknowledged to two publishers of different files"
            head = heads.get(one.model)
            if head is None or one.version not in {entry.number for entry in head.live_versions}:
                yield f"{one.model}:{one.version} was acknowledged and is missing"
                continue
            files = {file.sha256 for file in self._registry.manifest(one.model, one.version).files}
            if files != {one.sha256}:
                yield f"{one.model}:{one.version} was acknowledged with other content"

    def _versions(self, head: ModelHead) -> Iterator[str]:
        numbers = [entry.number for entry in head.versions]
        if len(set(numbers)) != len(numbers):
            yield f"{head.name} has a number twice: {numbers}"
        for entry in head.live_versions:
            try:
                blobs = self._registry.manifest(head.name, entry.number).blobs
                missing = [blob.path for blob in blobs if not self._is_whole(blob.sha256, blob.size_bytes)]
            except ControlPlaneError as error:
                missing = [f"its manifest ({error})"]
            if missing:
                yield f"{head.name}:{entry.number} is incomplete: {', '.join(missing)}"

    def _is_whole(self, sha256: str, size: int) -> bool:
        if sha256 in self._whole:
            return True
        try:
            with self._registry.open_blob(sha256) as stream:
                data = stream.read()
        except NotFoundError:
            return False
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            return False
        self._whole.add(sha256)  # objects are never overwritten, so one check is enough
        return True

    def _aliases(self, record: Record, heads: dict[str, ModelHead]) -> Iterator[str]:
        for (model, alias), changes in record.aliases.items():
            allowed = _possible(changes)
            there = heads[model].aliases.get(alias)
            if allowed is not None and there not in allowed:
                yield f"alias {model}@{alias} is {there}; possible after the last request: {sorted(allowed)}"

    def _deployments(self, record: Record) -> Iterator[str]:
        for model, changes in record.deployments.items():
            acknowledged = [change for change in changes if change.revision is not None]
            if not acknowledged:
                continue
            history = {revision.number: revision for revision in self._registry.deployments.history(model)}
            for change in acknowledged:
                assert change.revision is not None
                revision = history.get(change.revision)
                if revision is None or revision.spec.version != change.version:
                    yield f"revision {change.revision} of {model} ({change.version}) was acknowledged and is missing"
            if sorted(history) != list(range(1, len(history) + 1)):
                yield f"the revisions of {model} have a gap: {sorted(history)}"
            allowed = _possible(changes)
            newest = history[max(history)].spec.version
            if allowed is not None and newest not in allowed:
                yield f"{model} wants {newest}; possible after the last request: {sorted(allowed)}"


def _possible(changes: list[Change]) -> set[int] | None:
    """Return the possible results of a sequence of changes by one client; None if they are unknown."""
    possible: set[int] | None = None
    for change in changes:
        if change.answer is Answer.DONE:
            assert change.version is not None
            possible = {change.version}
        elif change.answer is Answer.LOST:
            if change.version is None:
                return None  # a rollback to an unknown earlier version
            if possible is not None:
                possible.add(change.version)
    return possible


def _chain(model: str, history: list[Revision]) -> Iterator[str]:
    numbers = [revision.number for revision in history]
    if numbers != list(range(len(numbers), 0, -1)):
        yield f"the revisions of {model} have a gap: {numbers}"
    for child, parent in itertools.pairwise(history):
        if child.parent_commit_id != parent.commit_id:
            yield f"revision {child.number} of {model} is no child of revision {parent.number}"


def nothing_left_over(repository: Path) -> list[str]:
    """Return half-staged versions and candidates in an idle model repository."""
    left = [*repository.glob("*/.incomplete*"), *repository.glob("*~candidate")]
    return [f"{path.relative_to(repository)} was left in the model repository" for path in left]
