"""Chains of numbered, immutable revisions: how everything that changes is committed.

A commit is one create-only PUT of revision n+1, so two writers who both read revision n cannot both win. Keys are
numbered downwards, so that listing one key finds the newest revision. Three traps, each with a test:

1. A PUT that won but whose answer was lost meets its own revision on the retry. Every revision carries a commit id;
   `Chain.append` reads what it met and tells its own from another's.
2. In a chain that is pruned, an old number becomes free again, and a late writer's create of it succeeds. So after a
   create the newest revision is listed: the commit stands only if it is ours or if revision n+1 names ours as its
   parent. A stray is removed and reported as a lost race.
3. A reader that knows the head needs one request to learn whether it still is: a LIST of one key. The same request
   shows a chain that went backwards: the newest key is an older one, or the object under it is another one.

A store can lose what it confirmed (a restore, an asynchronous replica, a lifecycle rule). A reader that knows a
revision which is not in the chain any more raises `StoreWentBackwardsError`. In a guarded chain it also leaves a note
with that revision in the chain's folder. The note's key sorts first, so every other reader's LIST finds it as well,
and nothing is committed until an operator decides (`controlplane.registry.lost`).
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
"""A note of a lost revision. ``!`` sorts before every digit."""
_UNKNOWN_OUTCOME_TRIES = 5
_HEAD_TRIES = 10
_DAMAGED_TRIES = 3
"""How often a damaged revision is read: bytes that were changed on their way come whole the next time."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Chain:
    """The revisions under one prefix. Holds no state of its own; safe to use from several threads.

    Args:
        store: Where they are.
        prefix: Ends in ``/``.
        pruned: Whether old revisions are removed (leases); costs one more LIST on each commit.
        guarded: Whether a lost revision is noted in the store, so that no process commits until an operator decides.
        changes: Gets an entry before each commit; None for a chain that no reader follows.
        clock: Gives the time that revisions are stamped with.

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
            raise ValueError(f"a chain's prefix ends in '/': {prefix!r}")
        self.store = store
        self.prefix = prefix
        self.pruned = pruned
        self._guarded = guarded
        self._changes = changes
        self._clock = clock

    @property
    def name(self) -> str:
        """The chain for people, and for ``tritonctl fsck``: ``models/resnet``."""
        return self.prefix.removesuffix("/").removesuffix("/revisions")

    def key(self, number: int) -> str:
        """Return the key of a revision."""
        return f"{self.prefix}{_TOP - number:012d}.json"

    def head(self) -> Revision | None:
        """Return the newest revision, None for an empty chain. Two requests.

        Raises:
            StoreWentBackwardsError: A process has noted a lost revision, and no operator has decided yet.
        """
        return self._read_newest(self._newest())

    def refresh(self, known: Revision | None) -> Revision | None:
        """Return the newest revision, given one that was the newest: one request when it still is.

        Raises:
            StoreWentBackwardsError: ``known`` is not in the chain any more, or a process has noted a lost revision.
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
        """Return the newest revision, given the object of the newest one as a list of many chains has it.

        Args:
            known: A revision that was the newest; None where none is known.
            newest: The object; the list may be older than what is known.

        Raises:
            StoreWentBackwardsError: ``known`` is not in the chain any more.
        """
        if known is not None and known.stamp == stamp_of(newest):
            return known
        head = self._read_newest(newest)
        if known is None or continues(known, head, self.read, pruned=self.pruned):
            return head
        return self.refresh(known)  # only a look at the chain itself may find that the store lost something

    def get(self, number: int) -> Revision:
        """Return one revision.

        Raises:
            NotFoundError: There is none of this number (not yet, or it was pruned).
        """
        try:
            return self.read(number)
        except ObjectNotFoundError as error:
            raise NotFoundError(f"{self.prefix} has no revision {number}", revision=number) from error

    def history(self, *, limit: int | None = None, before: int | None = None) -> Iterator[Revision]:
        """Yield revisions, newest first.

        Args:
            limit: How many at most.
            before: Yield those with a smaller number only.
        """
        start_after = "" if before is None else self.key(before)
        left = limit
        for number in self._numbers(start_after=start_after):
            if left is not None and left <= 0:
                return
            try:
                revision = self.read(number)
            except ObjectNotFoundError:
                continue  # pruned meanwhile
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
            after: The revision it was made from; None for an empty chain.
            actor: Who commits.
            reason: What changed.
            commit_id: Given by a caller that may have to find its commit again; must be unique.
            announced: Given by a caller that has begun to announce the change (`ChangeLog.announce_early`).

        Raises:
            CommitConflictError: Somebody else committed this number first: read again, and try again.
            CommitOutcomeUnknownError: The answer was lost and the store cannot be asked; it may have won.
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
            body: The state that counts from now on.
            present: The newest revision in the store.
            number: A number above all that were ever committed; those of lost revisions are not used again.
            epoch: Higher than that of the present and of all lost revisions.
            actor: Who decides.
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
        """Write a lost revision under its own key again.

        Raises:
            CommitConflictError: The key is taken by another revision.
        """
        self._create(revision)

    def newest_regardless(self) -> Revision | None:
        """Return the newest readable revision, also while a note of a lost revision refuses commits."""
        for number in self._numbers():
            with suppress(ObjectNotFoundError, DamagedRevisionError):
                return self.read(number)
        return None

    def numbers(self) -> list[int]:
        """Return the numbers of all revisions, the newest first."""
        return list(self._numbers())

    def notes(self) -> list[str]:
        """Return the keys of the notes of lost revisions, the highest number first."""
        found = self.store.list(f"{self.prefix}!lost-")
        return [info.key for info in found if _NOTE.fullmatch(info.key.removeprefix(self.prefix))]

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` revisions (at least one) of a pruned chain."""
        if not self.pruned:
            raise ValueError(f"{self.prefix} is not a pruned chain: its history is kept")
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
                # Nothing was written by this attempt. An earlier one, if any, may still have been.
                if unknown is None:
                    raise
                unknown = error
                continue
            else:
                return
            try:
                there = self.read(revision.number)
            except ObjectNotFoundError:
                if unknown is None:  # taken, and then gone: pruned, so the chain is far ahead of us
                    raise self._conflict(revision, None) from None
                continue
            except StoreUnavailableError as error:
                unknown = unknown or error
                continue
            if there.commit_id == revision.commit_id:
                return
            raise self._conflict(revision, there)
        raise CommitOutcomeUnknownError(
            f"the store's answer to the commit of {key} was lost; read it again to see whether it is there",
            key=key,
            commit_id=revision.commit_id,
        ) from unknown

    def _confirm(self, revision: Revision) -> Revision:
        # The newest number only grows, and what we created is there until it is pruned: if it is the newest, it counts.
        newest = self._newest()
        if newest is not None and self._number_of(newest.key) == revision.number:
            return replace(revision, stamp=stamp_of(newest))
        try:
            child = self.read(revision.number + 1)
        except ObjectNotFoundError:
            child = None
        if child is not None and child.parent_commit_id == revision.commit_id:
            return revision
        # A number that had been pruned: our create won nothing. The key can hold no other's commit (whoever creates it
        # now is as late as we are), so removing it is safe.
        self.store.delete(self.key(revision.number))
        logger.info("removed stray revision %s: the chain had moved on", self.key(revision.number))
        raise self._conflict(revision, None)

    def _lost(self, known: Revision, head: Revision | None) -> StoreWentBackwardsError:
        now = f"is at revision {head.number} by {head.actor} now" if head else "has no revision now"
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
                logger.warning("could not note in the store that %s went backwards: %s", self.name, failed)
        return error

    def _refusal(self, number: int, whose: str = "", now: str = "") -> StoreWentBackwardsError:
        advice = (
            ". Nothing is committed to it until an operator decides: see `tritonctl fsck`, then run "
            f"`tritonctl fsck --restore {self.name}` or `tritonctl fsck --accept {self.name}`"
        )
        return StoreWentBackwardsError(
            f"{self.name} went backwards: revision {number}{whose} was committed, and the store does not have it any "
            f"more{now}{advice if self._guarded else ''}",
            chain=self.name,
            lost_revision=number,
        )

    def _conflict(self, revision: Revision, there: Revision | None) -> CommitConflictError:
        by = f" by {there.actor} ({there.reason})" if there else ""
        return CommitConflictError(
            f"{self.prefix}: revision {revision.number} was committed{by} first; read again and retry",
            prefix=self.prefix,
            revision=revision.number,
        )

    def read(self, number: int) -> Revision:
        """Read one revision.

        Raises:
            ObjectNotFoundError: There is none of this number (not yet, or it was pruned).
            DamagedRevisionError: The object is no revision, or not as it was written.
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
            # Something foreign sorts first: leave it alone and look behind it.
            return info if _KEY.fullmatch(name) else next(self._infos(start_after=info.key), None)
        return None

    def _read_newest(self, newest: ObjectInfo | None) -> Revision | None:
        for _ in range(_HEAD_TRIES):
            if newest is None:
                return None
            number = self._number_of(newest.key)
            if number is None:  # an object of somebody else sorts first
                newest = next(self._infos(start_after=newest.key), None)
                continue
            try:
                return replace(self.read(number), stamp=stamp_of(newest))
            except ObjectNotFoundError:
                newest = self._newest()  # pruned between the two requests: there is a newer one
        raise StoreUnavailableError(
            f"{self.prefix}: the newest revision was pruned {_HEAD_TRIES} times while it was read; try again",
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
    """Return what identifies a stored object: an object is never replaced, so the same stamp is the same revision."""
    return f"{info.modified_at.isoformat()} {info.size_bytes} {info.tag}"
