"""Chains of numbered, immutable revisions: how everything that changes is committed.

A commit is one create-only PUT of revision n+1, so two writers who both read revision n cannot both win. Keys are
numbered downwards, so that listing one key finds the newest revision. Three traps, each with a test:

1. A PUT that won but whose answer was lost meets its own revision on the retry. Every revision carries a commit id;
   `Chain.append` reads what it met and tells its own from another's.
2. In a chain that is pruned, an old number becomes free again, and a late writer's create of it succeeds. So after a
   create the newest revision is listed: the commit stands only if it is ours or if revision n+1 names ours as its
   parent. A stray is removed and reported as a lost race.
3. A reader that knows the head wants one request to learn that it still is: a HEAD of n+1, or, where n+1 may have been
   pruned, a LIST of one key.
"""

import hashlib
import json
import logging
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
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
)
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

_TOP = 10**12
_KEY = re.compile(r"(\d{12})\.json")
_UNKNOWN_OUTCOME_TRIES = 5
_HEAD_TRIES = 10
_DAMAGED_TRIES = 3
"""How often a damaged revision is read: bytes that were changed on their way come whole the next time."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One committed state.

    Attributes:
        number: 1 for the first revision.
        commit_id: Unique; tells a writer its own commit from another's.
        parent_commit_id: The commit id of the revision before; None for the first.
        at: When it was committed (UTC, the writer's clock).
        actor: Who committed it.
        reason: What changed, and why if the actor said so.
        body: The whole state, as JSON.
    """

    number: int
    commit_id: str
    parent_commit_id: str | None
    at: datetime
    actor: str
    reason: str
    body: dict[str, Any]

    def to_json(self) -> bytes:
        """Return the object's content, indented for whoever reads the bucket, with a digest of the rest."""
        document = {
            "number": self.number,
            "commit_id": self.commit_id,
            "parent_commit_id": self.parent_commit_id,
            "at": self.at.isoformat(),
            "actor": self.actor,
            "reason": self.reason,
            "body": self.body,
        }
        read_back = json.loads(json.dumps(document, allow_nan=False))
        return json.dumps({**document, "sha256": _digest(read_back)}, indent=2, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes, key: str) -> "Revision":
        """Read a revision. One that a person wrote by hand may lack the digest.

        Raises:
            DamagedRevisionError: The object is not a revision; someone else wrote it, or it is damaged.
        """
        try:
            document = json.loads(data)
            digest = document.pop("sha256", None)
            if digest is not None and digest != _digest(document):
                raise ValueError("its content is not what its sha256 says")  # noqa: TRY301
            return cls(
                number=int(document["number"]),
                commit_id=str(document["commit_id"]),
                parent_commit_id=document["parent_commit_id"],
                at=datetime.fromisoformat(document["at"]),
                actor=str(document["actor"]),
                reason=str(document["reason"]),
                body=dict(document["body"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedRevisionError(
                f"{key} is damaged: it is no revision of a chain ({error!r})", key=key
            ) from error


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a revision's canonical JSON: sorted keys, no spaces."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Chain:
    """The revisions under one prefix. Holds no state of its own; safe to use from several threads.

    Args:
        store: Where they are.
        prefix: Ends in ``/``.
        pruned: Whether old revisions are removed (leases); costs one more LIST on each commit.
        clock: Gives the time that revisions are stamped with.
    """

    def __init__(
        self, store: ObjectStore, prefix: str, *, pruned: bool = False, clock: Callable[[], datetime] = _utc_now
    ) -> None:
        if not prefix.endswith("/"):
            raise ValueError(f"a chain's prefix ends in '/': {prefix!r}")
        self._store = store
        self._prefix = prefix
        self._pruned = pruned
        self._clock = clock

    def key(self, number: int) -> str:
        """Return the key of a revision."""
        return f"{self._prefix}{_TOP - number:012d}.json"

    def head(self) -> Revision | None:
        """Return the newest revision, None for an empty chain. Two requests."""
        for _ in range(_HEAD_TRIES):
            number = self._newest_number()
            if number is None:
                return None
            try:
                return self._read(number)
            except ObjectNotFoundError:
                continue  # pruned between the two requests: there is a newer one
        raise StoreUnavailableError(
            f"{self._prefix}: the newest revision was pruned {_HEAD_TRIES} times while it was read; try again",
            prefix=self._prefix,
        )

    def refresh(self, known: Revision | None) -> Revision | None:
        """Return the newest revision, given one that was the newest: one request when it still is."""
        if known is None:
            return self.head()
        if self._pruned:
            # The newest is never pruned and never replaced, so an equal number is the same revision.
            unchanged = self._newest_number() == known.number
        else:
            unchanged = self._store.head(self.key(known.number + 1)) is None
        return known if unchanged else self.head()

    def get(self, number: int) -> Revision:
        """Return one revision.

        Raises:
            NotFoundError: There is none of this number (not yet, or it was pruned).
        """
        try:
            return self._read(number)
        except ObjectNotFoundError as error:
            raise NotFoundError(f"{self._prefix} has no revision {number}", revision=number) from error

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
                revision = self._read(number)
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
    ) -> Revision:
        """Commit the revision that follows ``after``.

        Args:
            body: The whole new state.
            after: The revision it was made from; None for an empty chain.
            actor: Who commits.
            reason: What changed.
            commit_id: Given by a caller that may have to find its commit again; must be unique.

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
        )
        self._create(revision)
        if self._pruned:
            self._confirm(revision)
        return revision

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` revisions (at least one) of a pruned chain."""
        if not self._pruned:
            raise ValueError(f"{self._prefix} is not a pruned chain: its history is kept")
        for number in list(self._numbers())[max(keep, 1) :]:
            self._store.delete(self.key(number))

    def _create(self, revision: Revision) -> None:
        key, data = self.key(revision.number), revision.to_json()
        unknown: StoreError | None = None
        for attempt in range(_UNKNOWN_OUTCOME_TRIES):
            if attempt:
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
            try:
                self._store.create(key, data)
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
                there = self._read(revision.number)
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

    def _confirm(self, revision: Revision) -> None:
        # The newest number only grows, and what we created is there until it is pruned: if it is the newest, it counts.
        if self._newest_number() == revision.number:
            return
        try:
            child = self._read(revision.number + 1)
        except ObjectNotFoundError:
            child = None
        if child is not None and child.parent_commit_id == revision.commit_id:
            return
        # A number that had been pruned: our create won nothing. The key can hold no other's commit (whoever creates it
        # now is as late as we are), so removing it is safe.
        self._store.delete(self.key(revision.number))
        logger.info("removed stray revision %s: the chain had moved on", self.key(revision.number))
        raise self._conflict(revision, None)

    def _conflict(self, revision: Revision, there: Revision | None) -> CommitConflictError:
        by = f" by {there.actor} ({there.reason})" if there else ""
        return CommitConflictError(
            f"{self._prefix}: revision {revision.number} was committed{by} first; read again and retry",
            prefix=self._prefix,
            revision=revision.number,
        )

    def _read(self, number: int) -> Revision:
        key = self.key(number)
        for _ in range(_DAMAGED_TRIES - 1):
            with suppress(DamagedRevisionError):
                return Revision.from_json(self._store.get(key), key)
        return Revision.from_json(self._store.get(key), key)

    def _newest_number(self) -> int | None:
        for info in self._store.list(self._prefix, limit=1):
            number = self._number_of(info.key)
            # Something foreign sorts first: leave it alone and look behind it.
            return number if number is not None else next(self._numbers(start_after=info.key), None)
        return None

    def _numbers(self, *, start_after: str = "") -> Iterator[int]:
        for info in self._store.list(self._prefix, start_after=start_after):
            number = self._number_of(info.key)
            if number is not None:
                yield number

    def _number_of(self, key: str) -> int | None:
        match = _KEY.fullmatch(key[len(self._prefix) :])
        return _TOP - int(match[1]) if match else None
