"""Chains of numbered, immutable revisions: the commit protocol for all mutable state.

A commit is one create-only PUT of revision n+1, so two writers that both read revision n cannot both succeed. Keys are
numbered downwards, so listing one key finds the newest revision. There are three traps, each with a test:

1. A PUT that succeeded but whose response was lost meets its own revision on the retry. Every revision carries a commit
   id; `Chain.append` reads the existing revision and compares its commit id.
2. In a pruned chain an old number becomes free again, so a late writer can create it successfully. Therefore, after a
   create, the newest revision is listed: the commit is valid only if the newest revision is ours or if revision n+1
   names ours as its parent. An invalid revision is removed and reported as a lost race.
3. A reader that knows the head needs one request to check whether it is still the head: a LIST of one key. The same
   request detects a chain that went backwards: the newest key is an older one, or its object is a different one.

A store can lose confirmed writes (a restore, an asynchronous replica, a lifecycle rule). A reader that knows a revision
which is no longer in the chain raises `StoreWentBackwardsError`. In a guarded chain it also writes a note with that
revision into the chain's folder. The note's key sorts first, so every other reader's LIST finds it too, and nothing is
committed until an operator decides (`controlplane.registry.lost`).
"""

import hashlib
import logging
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from controlplane.errors import (
    CommitConflictError,
    CommitOutcomeUnknownError,
    DamagedRevisionError,
    NotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
    StoreWentBackwardsError,
)
from controlplane.registry.changes import ChangeLog
from controlplane.registry.continuity import continues
from controlplane.registry.revision import Revision
from controlplane.storage.base import ObjectInfo, ObjectStore

__all__ = ["Chain", "Revision"]

logger = logging.getLogger(__name__)

_TOP = 10**12
_KEY = re.compile(r"(\d{12})\.json")
_NOTE = re.compile(r"!lost-(\d{12})-[0-9a-f]{12}\.json")
"""Key of a note of a lost revision. ``!`` sorts before every digit."""
_UNKNOWN_OUTCOME_TRIES = 5
_HEAD_TRIES = 10
_DAMAGED_TRIES = 3
"""Number of times a damaged revision is read; bytes corrupted in transit are correct on the next read."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Chain:
    """The revisions under one prefix. Stateless; safe to use from several threads.

    Args:
        store: The store that contains the chain.
        prefix: The key prefix; ends in ``/``.
        pruned: Whether old revisions are removed (leases); costs one more LIST for each commit.
        guarded: Whether a lost revision is noted in the store, so that no process commits until an operator decides.
        changes: Receives an entry before each commit; None for a chain that no reader follows.
        clock: Provides the time stamp of revisions.

    Attributes:
        store: As given, like ``prefix`` and ``pruned``.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        *,
        pruned: bool = False,
        guarded: bool = False,
        changes: ChangeLog | None = None,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        if not prefix.endswith("/"):
            raise ValueError(f"the prefix of a chain must end in '/': {prefix!r}")
        self.store = store
        self.prefix = prefix
        self.pruned = pruned
        self._guarded = guarded
        self._changes = changes
        self._clock = clock

    @property
    def name(self) -> str:
        """Return the chain's name for messages and ``tritonctl fsck``, for example ``models/resnet``."""
        return self.prefix.removesuffix("/").removesuffix("/revisions")

    def key(self, number: int) -> str:
        """Return the key of a revision."""
        return f"{self.prefix}{_TOP - number:012d}.json"

    def head(self) -> Revision | None:
        """Return the newest revision; None for an empty chain. Two requests.

        Raises:
            StoreWentBackwardsError: A process noted a lost revision, and no operator has decided yet.
        """
        return self._read_newest(self._newest())

    def refresh(self, known: Revision | None) -> Revision | None:
        """Return the newest revision; one request if ``known`` is still the newest.

        Raises:
            StoreWentBackwardsError: ``known`` is no longer in the chain, or a process noted a lost revision.
        """
        if known is None:
            return self.head()
        newest = self._newest()
        if newest is not None and known.stamp == stamp_of(newest):
            return known
        head = self._read_newest(newest)
        if not continues(known, head, self.read, pruned=self.pruned):
            raise self._lost(known, head)
        return head

    def refresh_from(self, known: Revision | None, newest: ObjectInfo) -> Revision | None:
        """Return the newest revision, given its object from a listing of many chains.

        Args:
            known: A revision that was the newest; None if none is known.
            newest: The object; the listing may be older than ``known``.

        Raises:
            StoreWentBackwardsError: ``known`` is no longer in the chain.
        """
        if known is not None and known.stamp == stamp_of(newest):
            return known
        head = self._read_newest(newest)
        if known is None or continues(known, head, self.read, pruned=self.pruned):
            return head
        return self.refresh(known)  # only a read of the chain itself can prove that the store lost a revision

    def get(self, number: int) -> Revision:
        """Return one revision.

        Raises:
            NotFoundError: There is no revision with this number (not yet, or it was pruned).
        """
        try:
            return self.read(number)
        except ObjectNotFoundError as error:
            raise NotFoundError(f"{self.prefix} has no revision {number}", revision=number) from error

    def history(self, *, limit: int | None = None, before: int | None = None) -> Iterator[Revision]:
        """Yield revisions, newest first.

        Args:
            limit: The maximum number of revisions.
            before: Yield only revisions with a smaller number.
        """
        start_after = "" if before is None else self.key(before)
        left = limit
        for number in self._numbers(start_after=start_after):
            if left is not None and left <= 0:
                return
            try:
                revision = self.read(number)
            except ObjectNotFoundError:
                continue  # pruned in the meantime
            left = None if left is None else left - 1
            yield revision

    def append(
        self,
        body: dict[str, Any],
        *,
        after: Revision | None,
        actor: str,
        reason: str,
        commit_id: str | None = None,
        announced: Callable[[], float] | None = None,
    ) -> Revision:
        """Commit the revision that follows ``after``.

        Args:
            body: The whole new state.
            after: The parent revision; None for an empty chain.
            actor: The author of the commit.
            reason: What changed.
            commit_id: A unique id, given by a caller that may have to find its commit again.
            announced: Given by a caller that has started to announce the change (`ChangeLog.announce_early`).

        Raises:
            CommitConflictError: Another writer committed this number first; read the head and retry.
            CommitOutcomeUnknownError: The response was lost and the store cannot be read; the commit may have
                succeeded.
        """
        revision = Revision(
            number=1 if after is None else after.number + 1,
            commit_id=commit_id or uuid.uuid4().hex,
            parent_commit_id=None if after is None else after.commit_id,
            at=self._clock(),
            actor=actor,
            reason=reason,
            body=body,
            epoch=0 if after is None else after.epoch,
        )
        self._create(revision, announced)
        return self._confirm(revision) if self.pruned else revision

    def supersede(
        self, body: dict[str, Any], *, present: Revision | None, number: int, epoch: int, actor: str, reason: str
    ) -> Revision:
        """Commit an operator's decision about a chain that went backwards: a revision of a new epoch.

        Args:
            body: The state that is valid from now on.
            present: The newest revision in the store.
            number: A number above all committed numbers; the numbers of lost revisions are not reused.
            epoch: An epoch above those of ``present`` and of all lost revisions.
            actor: The operator who decides.
            reason: What was decided.

        Raises:
            CommitConflictError: Another process committed this number first.
        """
        revision = Revision(
            number=number,
            commit_id=uuid.uuid4().hex,
            parent_commit_id=None if present is None else present.commit_id,
            at=self._clock(),
            actor=actor,
            reason=reason,
            body=body,
            epoch=epoch,
        )
        self._create(revision)
        return revision

    def put_back(self, revision: Revision) -> None:
        """Write a lost revision under its original key again.

        Raises:
            CommitConflictError: Another revision has this key.
        """
        self._create(revision)

    def newest_regardless(self) -> Revision | None:
        """Return the newest readable revision, even while a note of a lost revision blocks commits."""
        for number in self._numbers():
            with suppress(ObjectNotFoundError, DamagedRevisionError):
                return self.read(number)
        return None

    def numbers(self) -> list[int]:
        """Return the numbers of all revisions, newest first."""
        return list(self._numbers())

    def notes(self) -> list[str]:
        """Return the keys of the notes of lost revisions, highest number first."""
        found = self.store.list(f"{self.prefix}!lost-")
        return [info.key for info in found if _NOTE.fullmatch(info.key.removeprefix(self.prefix))]

    def prune(self, keep: int) -> None:
        """Remove all revisions of a pruned chain except the newest ``keep`` (at least one)."""
        if not self.pruned:
            raise ValueError(f"{self.prefix} is not a pruned chain; its history must be kept")
        for number in list(self._numbers())[max(keep, 1) :]:
            self.store.delete(self.key(number))

    def _create(self, revision: Revision, announced: Callable[[], float] | None = None) -> None:
        if self._changes is None:
            return self._create_unannounced(revision)
        began = announced() if announced is not None else self._changes.announce(self.name, revision.number)
        try:
            return self._create_unannounced(revision)
        finally:
            self._changes.finished(self.name, revision.number, began)

    def _create_unannounced(self, revision: Revision) -> None:
        key, data = self.key(revision.number), revision.to_json()
        unknown: StoreError | None = None
        for attempt in range(_UNKNOWN_OUTCOME_TRIES):
            if attempt:
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
            try:
                self.store.create(key, data)
            except ObjectExistsError:
                pass
            except CommitOutcomeUnknownError as error:
                unknown = error
            except StoreUnavailableError as error:
                # This attempt wrote nothing. An earlier attempt may have written the revision.
                if unknown is None:
                    raise
                unknown = error
                continue
            else:
                return
            try:
                there = self.read(revision.number)
            except ObjectNotFoundError:
                if unknown is None:  # existed and was pruned, so the chain is far ahead of us
                    raise self._conflict(revision, None) from None
                continue
            except StoreUnavailableError as error:
                unknown = unknown or error
                continue
            if there.commit_id == revision.commit_id:
                return
            raise self._conflict(revision, there)
        raise CommitOutcomeUnknownError(
            f"the store's response to the commit of {key} was lost, so the commit may have succeeded; read the "
            "object again to find out",
            key=key,
            commit_id=revision.commit_id,
        ) from unknown

    def _confirm(self, revision: Revision) -> Revision:
        # The newest number only grows, and our revision exists until it is pruned: if it is the newest, the commit is
        # valid.
        newest = self._newest()
        if newest is not None and self._number_of(newest.key) == revision.number:
            return replace(revision, stamp=stamp_of(newest))
        try:
            child = self.read(revision.number + 1)
        except ObjectNotFoundError:
            child = None
        if child is not None and child.parent_commit_id == revision.commit_id:
            return revision
        # The number had been pruned, so our create is not a valid commit. The key cannot hold another writer's valid
        # commit (any writer that creates it now is equally late), so removing it is safe.
        self.store.delete(self.key(revision.number))
        logger.info(
            "removed stray revision %s: newer revisions were committed in the meantime", self.key(revision.number)
        )
        raise self._conflict(revision, None)

    def _lost(self, known: Revision, head: Revision | None) -> StoreWentBackwardsError:
        now = f"is now at revision {head.number} by {head.actor}" if head else "now has no revision"
        error = self._refusal(known.number, f" (by {known.actor}: {known.reason})", f"; the chain {now}")
        if self._guarded:
            digest = hashlib.sha256(known.commit_id.encode()).hexdigest()[:12]
            note = f"{self.prefix}!lost-{_TOP - known.number:012d}-{digest}.json"
            try:
                if self._changes is not None:
                    self._changes.announce(self.name, known.number + 1)
                with suppress(ObjectExistsError):
                    self.store.create(note, known.to_json())
            except StoreError as failed:
                logger.warning("failed to record in the store that %s went backwards: %s", self.name, failed)
        return error

    def _refusal(self, number: int, whose: str = "", now: str = "") -> StoreWentBackwardsError:
        advice = (
            ". Commits to it are blocked until an operator decides: see `tritonctl fsck`, then run `tritonctl "
            f"fsck --restore {self.name}` or `tritonctl fsck --accept {self.name}`"
        )
        return StoreWentBackwardsError(
            f"{self.name} went backwards: revision {number}{whose} was committed, but the store no longer has "
            f"it{now}{advice if self._guarded else ''}",
            chain=self.name,
            lost_revision=number,
        )

    def _conflict(self, revision: Revision, there: Revision | None) -> CommitConflictError:
        by = f" by {there.actor} ({there.reason})" if there else ""
        return CommitConflictError(
            f"{self.prefix}: another writer committed revision {revision.number} first{by}; read again and retry",
            prefix=self.prefix,
            revision=revision.number,
        )

    def read(self, number: int) -> Revision:
        """Read one revision.

        Raises:
            ObjectNotFoundError: There is no revision with this number (not yet, or it was pruned).
            DamagedRevisionError: The object is not a revision, or its content was altered.
        """
        key = self.key(number)
        for _ in range(_DAMAGED_TRIES - 1):
            with suppress(DamagedRevisionError):
                return Revision.from_json(self.store.get(key), key)
        return Revision.from_json(self.store.get(key), key)

    def _newest(self) -> ObjectInfo | None:
        for info in self.store.list(self.prefix, limit=1):
            name = info.key.removeprefix(self.prefix)
            if note := _NOTE.fullmatch(name):
                raise self._refusal(_TOP - int(note[1]))
            # A foreign object sorts first: skip it and read the next key.
            return info if _KEY.fullmatch(name) else next(self._infos(start_after=info.key), None)
        return None

    def _read_newest(self, newest: ObjectInfo | None) -> Revision | None:
        for _ in range(_HEAD_TRIES):
            if newest is None:
                return None
            number = self._number_of(newest.key)
            if number is None:  # a foreign object sorts first
                newest = next(self._infos(start_after=newest.key), None)
                continue
            try:
                return replace(self.read(number), stamp=stamp_of(newest))
            except ObjectNotFoundError:
                newest = self._newest()  # pruned between the two requests: a newer revision exists
        raise StoreUnavailableError(
            f"{self.prefix}: the newest revision was pruned during each of {_HEAD_TRIES} reads; try again",
            prefix=self.prefix,
        )

    def _infos(self, *, start_after: str = "") -> Iterator[ObjectInfo]:
        for info in self.store.list(self.prefix, start_after=start_after):
            if self._number_of(info.key) is not None:
                yield info

    def _numbers(self, *, start_after: str = "") -> Iterator[int]:
        for info in self._infos(start_after=start_after):
            number = self._number_of(info.key)
            if number is not None:
                yield number

    def _number_of(self, key: str) -> int | None:
        match = _KEY.fullmatch(key[len(self.prefix) :])
        return _TOP - int(match[1]) if match else None


def stamp_of(info: ObjectInfo) -> str:
    """Return the identity of a stored object; objects are never replaced, so an equal stamp means the same revision."""
    return f"{info.modified_at.isoformat()} {info.size_bytes} {info.tag}"
