"""Deployments: the desired state of each model, as a chain of revisions.

A deployment and the deletion of its version can race. Each side commits first and checks afterwards: `Deployments.put`
re-reads the model's head and reverts its revision if the version is gone; `Versions.delete` re-reads the deployment and
reverts its tombstone if a deployment appeared. At least one side sees the other, so a live deployment never keeps a
deleted version. (If both see each other, both revert, and the callers must retry.)
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.names import close_names, validate_model_name
from controlplane.errors import (
    CommitConflictError,
    DamagedRevisionError,
    InvalidInputError,
    NotFoundError,
    StoreWentBackwardsError,
)
from controlplane.registry.chain import Chain, Revision
from controlplane.registry.changes import ChangeFeed, ChangeLog
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.heads import Head, HeadCache
from controlplane.registry.models import Models
from controlplane.registry.pins import pins_on
from controlplane.registry.sweep import Sweep
from controlplane.storage.base import ObjectStore

KIND = "deployments"
PREFIX = f"{KIND}/"
_SUGGESTIONS_FROM = 1000
"""Maximum number of names listed for a suggestion if the names are not in memory: one LIST."""
_NAMES_SHOWN = 10
_READ_ALL_TRIES = 2


@dataclass(frozen=True, slots=True)
class DeploymentRevision:
    """A revision of a deployment.

    Attributes:
        number: The revision's number; the first is 1.
        at: When it was committed (UTC).
        actor: The author of the commit.
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
        self,
        store: ObjectStore,
        models: Models,
        *,
        head_max_age_seconds: float,
        changes: ChangeLog,
        feed: ChangeFeed,
        memory: HeadMemory | None = None,
    ) -> None:
        self._store = store
        self._models = models
        self._changes = changes
        self._heads: HeadCache[DeploymentSpec] = HeadCache(
            self._chain, DeploymentSpec, kind=KIND, max_age_seconds=head_max_age_seconds, feed=feed, memory=memory
        )
        self.sweep = Sweep(store, KIND, self._heads, feed)

    def get(self, model: str, *, fresh: bool = False, deleted: bool = False) -> DeploymentRevision:
        """Return a model's deployment.

        Args:
            model: The model's name.
            fresh: Read from the store regardless of the age of the cached head.
            deleted: Whether to return a removed deployment instead of raising NotFoundError.

        Raises:
            NotFoundError: The model is not deployed.
        """
        head = self._heads.read(model, fresh=fresh)
        if not fresh and (head is None or (head.value.deleted and not deleted)):
            head = self._heads.read(model, fresh=True)
        if head is None or (head.value.deleted and not deleted):
            raise self._missing(model)
        return _view(head)

    def peek(self, model: str) -> DeploymentRevision | None:
        """Return the deployment from memory if it is recent enough. No I/O."""
        head = self._heads.peek(model)
        return None if head is None or head.value.deleted else _view(head)

    def known(self) -> Sequence[str]:
        """Return the models whose deployments, removed or not, are in memory or unreadable. No I/O."""
        return self._heads.all_known()

    def known_spec(self, model: str) -> DeploymentSpec | None:
        """Return the desired state from memory, however old it is. No I/O."""
        head = self._heads.known(model)
        return None if head is None else head.value

    def is_settled(self, model: str) -> bool:
        """Return whether memory reflects all announcements so far; see `HeadCache.is_settled`. No I/O."""
        return self._heads.is_settled(model)

    def list(
        self, *, fresh: bool = False, deleted: bool = False, unreadable: dict[str, str] | None = None
    ) -> Revisions:
        """Return the deployments by model name. One request, plus one for each change; the first call reads all.

        Args:
            fresh: Read from the store regardless of the age of the cached heads.
            deleted: Whether to include removed deployments.
            unreadable: Receives the deployments whose chain is damaged or went backwards, by model, with the reason;
                without it, such a deployment raises an error.

        Raises:
            StoreError: The store failed, or a chain is damaged or went backwards.
        """
        moment = self._heads.moment()  # one poll serves all reads
        if fresh:
            self.read_all()
        names = self._all_names(moment)
        found: Revisions = []
        for name in names:
            try:
                head = self._heads.read(name, not_before=moment)
            except (DamagedRevisionError, StoreWentBackwardsError) as error:
                if unreadable is None:
                    raise
                unreadable[name] = error.message
                continue
            if head is not None and (deleted or not head.value.deleted):
                found.append(_view(head))
        return found

    def after(self, model: str, limit: int, wanted: Callable[[str], bool]) -> Revisions:
        """Return at most ``limit`` deployments of models that sort after ``model``, by name; as cheap as `list`.

        Args:
            model: The model's name.
            limit: The maximum number of deployments.
            wanted: Returns whether to include the deployment of a name.

        Raises:
            StoreError: The store failed, or a chain is damaged or went backwards.
        """
        moment = self._heads.moment()
        names = self._all_names(moment)
        found: Revisions = []
        for name in names[bisect_right(names, model) :]:
            if len(found) == limit:
                break
            if not wanted(name):
                continue
            head = self._heads.read(name, not_before=moment)
            if head is not None and not head.value.deleted:
                found.append(_view(head))
        return found

    def read_all(self, report: Callable[[int], None] = lambda _: None) -> None:
        """Read every chain: one LIST for several hundred chains, plus a read of each head that is not in memory.

        Args:
            report: Called with the number of chains read so far.

        Raises:
            StoreError: The store failed.
        """
        self.sweep.run(report)

    def put(
        self, spec: DeploymentSpec, *, after: DeploymentRevision | None, actor: str, reason: str
    ) -> DeploymentRevision:
        """Commit a desired state; an unchanged state adds no revision.

        Args:
            spec: The desired state.
            after: The parent revision; None if the model is not deployed.
            actor: The author of the change.
            reason: What changes, and why.

        Raises:
            CommitConflictError: Another writer changed the deployment since ``after``.
            NotFoundError: The version does not exist or was deleted.
        """
        model = spec.model
        head = self._heads.read(model, fresh=True)
        self._require(model, head, after)
        if head is not None and head.value == spec:
            return _view(head)
        number = head.revision.number + 1 if head else 1
        announced = self._changes.announce_early(
            f"{KIND}/{model}", number
        )  # runs concurrently with the check, so it adds no latency
        if not spec.deleted:
            self._require_versions(spec)
        committed = self._heads.append(
            model, spec, after=head.revision if head else None, actor=actor, reason=reason, announced=announced
        )
        if not spec.deleted:
            try:
                self._require_versions(spec)
            except NotFoundError as error:
                self._revert(committed, head, str(error))
                raise
        return _view(committed)

    def history(self, model: str, *, limit: int | None = None, before: int | None = None) -> Revisions:
        """Return the revisions, newest first, including those of a removed deployment.

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
            NotFoundError: There is no revision with this number.
        """
        try:
            return _parse(self._chain(model).get(number))
        except NotFoundError as error:
            raise NotFoundError(
                f"the deployment of {model!r} has no revision {number}", model=model, revision=number
            ) from error

    def needs(self, model: str) -> dict[int, str]:
        """Return the versions that the deployment needs now, each with a reason in words. Always reads the store."""
        pins = {pin.version: f"the pipeline {pin} needs it" for pin in pins_on(self, model)}
        head = self._heads.read(model, fresh=True)
        if head is None or head.value.deleted:
            return pins
        spec = head.value
        needed = pins | {spec.version: f"it is the desired version of the deployment of {model}"}
        if spec.trial is not None:
            needed.setdefault(spec.trial.version, f"it is the candidate of a rollout of {model}")
        previous = self._baking(model, spec)
        if previous is not None:
            needed.setdefault(
                previous,
                f"the deployment of {model} keeps it loaded for a rollback (bake window of "
                f"{spec.settings.bake_seconds:g} s)",
            )
        return needed

    def chains(self) -> Iterator[Chain]:
        """Yield the chain of every deployment, including removed ones."""
        for name in self._store.list_folders(PREFIX):
            with suppress(InvalidInputError):  # a folder that a person created
                yield self._chain(name)

    def _require_versions(self, spec: DeploymentSpec) -> None:
        head = self._models.get(spec.model, fresh=True)
        head.version(spec.version)
        if spec.trial is not None:
            head.version(spec.trial.version)

    def _baking(self, model: str, spec: DeploymentSpec) -> int | None:
        """Return the previous version while it is in its bake window."""
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
                f"{model!r} is already deployed, at revision {head.revision.number} by {head.revision.actor}",
                model=model,
                revision=head.revision.number,
            )
        if head is None or head.revision.commit_id != after.commit_id:
            now = head.revision if head else None
            raise CommitConflictError(
                f"the deployment of {model!r} changed since revision {after.number}"
                + (f": it is now at revision {now.number} ({now.reason}, by {now.actor})" if now else "")
                + "; read it and try again",
                model=model,
                revision=now.number if now else None,
            )

    def _revert(self, committed: Head[DeploymentSpec], before: Head[DeploymentSpec] | None, why: str) -> None:
        number = committed.revision.number
        spec = before.value if before else committed.value.with_changes(deleted=True)
        try:
            self._heads.append(
                committed.value.model,
                spec,
                after=committed.revision,
                actor=committed.revision.actor,
                reason=f"revert revision {number}: {why}",
            )
        except CommitConflictError:
            return  # a newer revision exists, and its author has checked

    def _all_names(self, moment: float) -> Sequence[str]:
        """Return the names of all chains in order; read every chain first if the names are not in memory."""
        for _ in range(_READ_ALL_TRIES):  # a pass in progress may have begun before the feed was interrupted
            names = self._heads.names(not_before=moment)
            if names is not None:
                return names
            self.read_all()
        return sorted(self._heads.all_known())

    def _missing(self, model: str) -> NotFoundError:
        names = [name for name in self._names() if name != model]
        close = self._live(close_names(model, names))
        shown = [] if close else self._live(names[:_NAMES_SHOWN])
        if close:
            hint = f"; did you mean {' or '.join(map(repr, close))}?"
        elif shown:
            hint = f"; deployed models: {', '.join(shown)}" + (", …" if len(names) > _NAMES_SHOWN else "")
        else:
            hint = "; nothing is deployed yet"
        return NotFoundError(f"{model!r} is not deployed{hint}", model=model, suggestions=close)

    def _names(self) -> Sequence[str]:
        names = self._heads.names()
        return list(self._store.list_folders(PREFIX, limit=_SUGGESTIONS_FROM)) if names is None else names

    def _live(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names that are deployed now; an unreadable deployment counts as deployed."""
        return [name for name in names if not self._is_removed(name)]

    def _is_removed(self, name: str) -> bool:
        with suppress(DamagedRevisionError, StoreWentBackwardsError, InvalidInputError):
            head = self._heads.read(name)
            return head is None or head.value.deleted
        return False

    def _chain(self, model: str) -> Chain:
        return Chain(
            self._store, f"{PREFIX}{validate_model_name(model)}/revisions/", guarded=True, changes=self._changes
        )


def _view(head: Head[DeploymentSpec]) -> DeploymentRevision:
    revision = head.revision
    return DeploymentRevision(
        revision.number, revision.at, revision.actor, revision.reason, revision.commit_id, head.value
    )


def _parse(revision: Revision) -> DeploymentRevision:
    spec = DeploymentSpec.model_validate(revision.body)
    return DeploymentRevision(revision.number, revision.at, revision.actor, revision.reason, revision.commit_id, spec)
