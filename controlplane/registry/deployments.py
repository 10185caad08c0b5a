"""Deployments: what shall run, as a chain of revisions for each model.

A deployment and the deletion of its version may race. Each side commits first and looks afterwards: `Deployments.put`
re-reads the model's head and takes its revision back if the version is gone; `Versions.delete` re-reads the deployment
and takes its tombstone back if one appeared. At least one of them sees the other, so a live deployment never stays
with a deleted version. (If both see each other, both give way, and whoever wanted something tries again.)
"""

import difflib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.names import validate_model_name
from controlplane.errors import (
    CommitConflictError,
    DamagedRevisionError,
    InvalidInputError,
    NotFoundError,
    StoreWentBackwardsError,
)
from controlplane.registry.chain import Chain, Revision
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.heads import Head, HeadCache
from controlplane.registry.models import Models
from controlplane.storage.base import ObjectStore

PREFIX = "deployments/"
_PARALLEL_READS = 8


@dataclass(frozen=True, slots=True)
class DeploymentRevision:
    """A revision of a deployment.

    Attributes:
        number: 1 for the first.
        at: When it was committed (UTC).
        actor: By whom.
        reason: What changed, and why.
        commit_id: See `Revision`.
        spec: The desired state.
    """

    number: int
    at: datetime
    actor: str
    reason: str
    commit_id: str
    spec: DeploymentSpec


Revisions = list[DeploymentRevision]  # inside the class, `list` is a method


class Deployments:
    """Reads and commits desired states."""

    def __init__(
        self, store: ObjectStore, models: Models, *, head_max_age_seconds: float, memory: HeadMemory | None = None
    ) -> None:
        self._store = store
        self._models = models
        self._heads: HeadCache[DeploymentSpec] = HeadCache(
            self._chain, DeploymentSpec, max_age_seconds=head_max_age_seconds, memory=memory
        )

    def get(self, model: str, *, fresh: bool = False, deleted: bool = False) -> DeploymentRevision:
        """Return a model's deployment.

        Args:
            model: The model.
            fresh: Look, however young the cached head is.
            deleted: Whether a removed deployment is returned too, rather than not found.

        Raises:
            NotFoundError: The model is not deployed.
        """
        head = self._heads.read(model, fresh=fresh)
        if not fresh and (head is None or head.value.deleted):
            head = self._heads.read(model, fresh=True)
        if head is None or (head.value.deleted and not deleted):
            raise self._missing(model)
        return _view(head)

    def peek(self, model: str) -> DeploymentRevision | None:
        """Return the deployment that is in memory, if it is young enough. No I/O."""
        head = self._heads.peek(model)
        return None if head is None or head.value.deleted else _view(head)

    def list(
        self, *, fresh: bool = False, deleted: bool = False, unreadable: dict[str, str] | None = None
    ) -> Revisions:
        """Return the deployments by model name: one LIST, and one more for each whose head is no longer young.

        Args:
            fresh: Look, however young the cached heads are.
            deleted: Whether removed deployments are returned too.
            unreadable: Gets the deployments whose chain is damaged or went backwards, by model, with the reason;
                without it, such a deployment is an error.

        Raises:
            StoreError: The store failed, or a chain is damaged or went backwards.
        """
        names = list(self._store.list_folders(PREFIX))

        def read(name: str) -> Head[DeploymentSpec] | None:
            try:
                return self._heads.read(name, fresh=fresh)
            except InvalidInputError:
                return None  # a folder made by hand
            except (DamagedRevisionError, StoreWentBackwardsError) as error:
                if unreadable is None:
                    raise
                unreadable[name] = error.message
                return None

        if len(names) <= 1:
            heads = [read(name) for name in names]
        else:
            with ThreadPoolExecutor(min(_PARALLEL_READS, len(names)), thread_name_prefix="deployments") as pool:
                heads = list(pool.map(read, names))
        return [_view(head) for head in heads if head is not None and (deleted or not head.value.deleted)]

    def put(
        self, spec: DeploymentSpec, *, after: DeploymentRevision | None, actor: str, reason: str
    ) -> DeploymentRevision:
        """Commit a desired state; the same state again is no new revision.

        Args:
            spec: What is wanted.
            after: The revision it was made from; None where the model is not deployed.
            actor: Who wants it.
            reason: What changes, and why.

        Raises:
            CommitConflictError: Somebody else changed the deployment since ``after``.
            NotFoundError: The version does not exist or was deleted.
        """
        model = spec.model
        head = self._heads.read(model, fresh=True)
        self._require(model, head, after)
        if head is not None and head.value == spec:
            return _view(head)
        if not spec.deleted:
            self._require_versions(spec)
        committed = self._heads.append(model, spec, after=head.revision if head else None, actor=actor, reason=reason)
        if not spec.deleted:
            try:
                self._require_versions(spec)
            except NotFoundError as error:
                self._take_back(committed, head, str(error))
                raise
        return _view(committed)

    def history(self, model: str, *, limit: int | None = None, before: int | None = None) -> Revisions:
        """Return the revisions, newest first, also of a removed deployment.

        Raises:
            NotFoundError: The model was never deployed.
        """
        revisions = [_parse(revision) for revision in self._chain(model).history(limit=limit, before=before)]
        if not revisions and before is None and limit != 0:
            raise self._missing(model)
        return revisions

    def revision(self, model: str, number: int) -> DeploymentRevision:
        """Return one revision.

        Raises:
            NotFoundError: There is none of this number.
        """
        try:
            return _parse(self._chain(model).get(number))
        except NotFoundError as error:
            raise NotFoundError(
                f"the deployment of {model!r} has no revision {number}", model=model, revision=number
            ) from error

    def needs(self, model: str) -> dict[int, str]:
        """Return the versions that the deployment needs now, each with the reason in words. Always looks."""
        head = self._heads.read(model, fresh=True)
        if head is None or head.value.deleted:
            return {}
        spec = head.value
        needed = {spec.version: f"the deployment of {model} runs it"}
        if spec.trial is not None:
            needed.setdefault(spec.trial.version, f"a rollout of {model} tries it")
        previous = self._baking(model, spec)
        if previous is not None:
            needed.setdefault(
                previous, f"the deployment of {model} keeps it loaded for a rollback ({spec.settings.bake_seconds:g} s)"
            )
        return needed

    def chains(self) -> Iterator[Chain]:
        """Yield the chain of every deployment, of removed ones too."""
        for name in self._store.list_folders(PREFIX):
            with suppress(InvalidInputError):  # a folder made by hand
                yield self._chain(name)

    def _require_versions(self, spec: DeploymentSpec) -> None:
        head = self._models.get(spec.model, fresh=True)
        head.version(spec.version)
        if spec.trial is not None:
            head.version(spec.trial.version)

    def _baking(self, model: str, spec: DeploymentSpec) -> int | None:
        """Return the version before the present one, while it is in its bake window."""
        horizon = datetime.now(UTC) - timedelta(seconds=spec.settings.bake_seconds)
        switched_at: datetime | None = None
        for revision in self._chain(model).history():
            there = _parse(revision).spec
            if not there.deleted and there.version == spec.version:
                switched_at = revision.at
                if switched_at < horizon:
                    return None
                continue
            return None if there.deleted or switched_at is None else there.version
        return None

    @staticmethod
    def _require(model: str, head: Head[DeploymentSpec] | None, after: DeploymentRevision | None) -> None:
        if after is None:
            if head is None or head.value.deleted:
                return
            raise CommitConflictError(
                f"{model!r} is deployed already, at revision {head.revision.number} by {head.revision.actor}",
                model=model,
                revision=head.revision.number,
            )
        if head is None or head.revision.commit_id != after.commit_id:
            now = head.revision if head else None
            raise CommitConflictError(
                f"the deployment of {model!r} changed since revision {after.number}"
                + (f": it is at {now.number} ({now.reason}, by {now.actor})" if now else "")
                + "; look at it and try again",
                model=model,
                revision=now.number if now else None,
            )

    def _take_back(self, committed: Head[DeploymentSpec], before: Head[DeploymentSpec] | None, why: str) -> None:
        number = committed.revision.number
        spec = before.value if before else committed.value.with_changes(deleted=True)
        try:
            self._heads.append(
                committed.value.model,
                spec,
                after=committed.revision,
                actor=committed.revision.actor,
                reason=f"take back revision {number}: {why}",
            )
        except CommitConflictError:
            return  # a newer revision stands, and its author has looked by himself

    def _missing(self, model: str) -> NotFoundError:
        names = [revision.spec.model for revision in self.list()]
        close = difflib.get_close_matches(model, names, n=3, cutoff=0.6)
        if close:
            hint = f"; did you mean {' or '.join(map(repr, close))}?"
        elif names:
            hint = f"; deployed are: {', '.join(names[:10])}" + (", …" if len(names) > 10 else "")
        else:
            hint = "; nothing is deployed yet"
        return NotFoundError(f"{model!r} is not deployed{hint}", model=model, suggestions=close)

    def _chain(self, model: str) -> Chain:
        return Chain(self._store, f"{PREFIX}{validate_model_name(model)}/revisions/", guarded=True)


def _view(head: Head[DeploymentSpec]) -> DeploymentRevision:
    revision = head.revision
    return DeploymentRevision(
        revision.number, revision.at, revision.actor, revision.reason, revision.commit_id, head.value
    )


def _parse(revision: Revision) -> DeploymentRevision:
    spec = DeploymentSpec.model_validate(revision.body)
    return DeploymentRevision(revision.number, revision.at, revision.actor, revision.reason, revision.commit_id, spec)
