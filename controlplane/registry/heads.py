"""In-memory cache of the newest revisions of many chains: reads may be slightly stale, commits never are.

While the change feed (`controlplane.registry.changes`) is followed, a cached head is valid until an entry names its
chain, so reading any number of heads costs one request. The sweep over all chains uses `HeadCache.take`.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from controlplane.domain.validation import invalid_field
from controlplane.errors import CommitConflictError, DamagedRevisionError, InvalidInputError, StoreWentBackwardsError
from controlplane.registry.chain import Chain, Revision, stamp_of
from controlplane.registry.changes import ChangeFeed, steady
from controlplane.registry.head_memory import HeadMemory
from controlplane.storage.base import ObjectInfo

T = TypeVar("T", bound=BaseModel)

EDIT_TRIES = 50
_LOCKS = 64


@dataclass(frozen=True, slots=True)
class Head(Generic[T]):
    """A revision and its parsed body.

    Attributes:
        revision: The revision.
        value: The parsed body.
        checked_at: When the read that found it to be the head began, by `changes.steady`.
    """

    revision: Revision
    value: T
    checked_at: float


class HeadCache(Generic[T]):
    """Cached heads by name. Safe to use from several threads; a process sees its own commits at once.

    Args:
        chain_of: Returns the chain of a name; validates the name.
        model: The type that a body is parsed into.
        kind: The first part of the chains' names, for example ``models``; empty if the only chain has this name.
        max_age_seconds: Maximum age of the last read, or of the last poll of the feed, for a plain read.
        feed: Reports which chains changed; None reads the chain itself.
        memory: Remembers the heads across restarts, so that a loss during a downtime of this process is detected.
    """

    def __init__(
        self,
        chain_of: Callable[[str], Chain],
        model: type[T],
        *,
        kind: str,
        max_age_seconds: float,
        feed: ChangeFeed | None = None,
        memory: HeadMemory | None = None,
    ) -> None:
        self._chain_of = chain_of
        self._memory = memory
        self._model = model
        self._kind = kind
        self._max_age = max_age_seconds
        self._feed = feed
        self._complete_in: int | None = None
        self._unreadable: dict[str, str] = {}
        self._heads: dict[str, Head[T]] = {}
        self._guard = threading.Lock()
        # Striped, so that names that are requested and never found use no memory. A lock is held during a read of the
        # store, so that concurrent readers cause one request.
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))
        self._memory_locks = tuple(threading.Lock() for _ in range(_LOCKS))

    def peek(self, name: str) -> Head[T] | None:
        """Return the head if it is in memory and recent enough. No I/O."""
        head, not_before = self._heads.get(name), self.moment()
        return head if head is not None and self._counts(name, head, not_before) else None

    def known(self, name: str) -> Head[T] | None:
        """Return the head from memory, however old it is. No I/O."""
        return self._heads.get(name)

    def read(self, name: str, *, fresh: bool = False, not_before: float | None = None) -> Head[T] | None:
        """Return the head; None for an empty chain.

        Args:
            name: The chain's name.
            fresh: Read from the store regardless of the age of the cached head.
            not_before: A read or a poll that began after this moment, by `changes.steady`, is sufficient; None means
                `moment`.

        Raises:
            StoreWentBackwardsError: The store lost the head that this or another process knew.
        """
        if fresh or not_before is None:
            not_before = steady() if fresh else self.moment()
        head = self._heads.get(name)
        if head is not None and not fresh:
            if self._feed is not None and self._feed.followed and head.checked_at < not_before:
                self._feed.poll(not_before=not_before)
            if self._counts(name, head, not_before):
                return head
        with self._locks[hash(name) % _LOCKS]:
            head = self._heads.get(name)
            if head is not None and (head.checked_at >= not_before if fresh else self._counts(name, head, not_before)):
                return head  # a concurrent read began after our call
            chain = self._chain_of(name)
            return self._look(name, chain, chain.refresh)

    @property
    def complete(self) -> bool:
        """Return whether all chains have been read at least once."""
        return self._complete_in is not None

    def moment(self) -> float:
        """Return the earliest time of a read or a poll that is recent enough for a plain read, by `changes.steady`."""
        return steady() - self._max_age

    def names(self, *, not_before: float | None = None) -> list[str] | None:
        """Return the names of all chains, including unreadable ones; None if not all chains were read.

        Args:
            not_before: A poll that began after this moment is sufficient; None means `moment`.

        Raises:
            StoreError: The store failed.
        """
        if self._feed is None or self._complete_in is None:
            return None
        self._feed.poll(not_before=self.moment() if not_before is None else not_before)
        if self._feed.generation != self._complete_in:
            return None
        with self._guard:
            names = {*self._heads, *self._unreadable}
        return sorted(names.union(self._feed.names(self._kind)))

    def is_settled(self, name: str) -> bool:
        """Return whether the head in memory reflects all entries found so far. No I/O."""
        if self._feed is None:
            return True
        head, chain = self._heads.get(name), self._chain_name(name)
        if head is None:
            return not self._feed.expects(chain)
        return self._feed.confirms(chain, head.revision.number, head.checked_at)

    # For the sweep

    def take(self, name: str, newest: ObjectInfo | None, listed_at: float) -> bool:
        """Apply the first object of a chain from a listing of many chains; return whether the head changed.

        Args:
            name: The chain's name.
            newest: The object of the newest revision; None if the chain must be read separately.
            listed_at: When the listing began, by `changes.steady`.

        Raises:
            StoreError: The store failed; the state of the chain is unknown.
        """
        head = self._heads.get(name)
        same = head is not None and newest is not None and head.revision.stamp == stamp_of(newest)
        if head is not None and (same or head.checked_at >= listed_at):
            self._remember(name, head.revision, listed_at)
            return False
        try:
            with self._locks[hash(name) % _LOCKS]:
                chain = self._chain_of(name)
                refresh = chain.refresh if newest is None else partial(chain.refresh_from, newest=newest)
                found = self._look(name, chain, refresh, began=listed_at)
        except InvalidInputError:
            return False  # a folder that a person created
        except (DamagedRevisionError, StoreWentBackwardsError):
            return True  # the next read reports the error
        before = head.revision.commit_id if head else None
        return found is not None and found.revision.commit_id != before

    def taken_all(self, generation: int) -> None:
        """Record that `take` was called for every chain since the feed's generation began."""
        self._complete_in = generation

    def all_known(self) -> list[str]:
        """Return the names of the heads in memory, and of unreadable chains. No I/O."""
        with self._guard:
            return list({*self._heads, *self._unreadable})

    def _look(
        self,
        name: str,
        chain: Chain,
        refresh: Callable[[Revision | None], Revision | None],
        *,
        began: float | None = None,
    ) -> Head[T] | None:
        head = self._heads.get(name)
        known = head.revision if head else self._remembered(chain)
        began = steady() if began is None else began
        try:
            revision = refresh(known)
            found = self._remember(name, revision, began) if revision else None
        except (DamagedRevisionError, StoreWentBackwardsError) as error:
            self._unreadable[name] = error.message
            raise
        self._unreadable.pop(name, None)
        return found

    def _counts(self, name: str, head: Head[T], not_before: float) -> bool:
        feed, chain = self._feed, self._chain_name(name)
        if feed is None or not feed.followed:
            return head.checked_at >= not_before
        if head.checked_at >= not_before:
            return not feed.contradicts(chain, head.checked_at)
        return (
            name not in self._unreadable
            and feed.is_since(not_before)
            and feed.confirms(chain, head.revision.number, head.checked_at)
        )

    def append(
        self,
        name: str,
        value: T,
        *,
        after: Revision | None,
        actor: str,
        reason: str,
        commit_id: str | None = None,
        announced: Callable[[], float] | None = None,
    ) -> Head[T]:
        """Commit ``value`` as the revision that follows ``after`` (see `Chain.append`).

        Raises:
            CommitConflictError: Another writer committed first.
        """
        began = steady()
        revision = self._chain_of(name).append(
            value.model_dump(mode="json"),
            after=after,
            actor=actor,
            reason=reason,
            commit_id=commit_id,
            announced=announced,
        )
        return self._remember(name, revision, began)

    def edit(
        self,
        name: str,
        change: Callable[[T | None], tuple[T, str] | None],
        *,
        actor: str,
        commit_id: str | None = None,
    ) -> Head[T] | None:
        """Read the head from the store, change it and commit; retry while other writers commit first.

        Args:
            name: The chain's name.
            change: Returns the new value and a description of the change, or None if there is nothing to do. Called
                once per attempt; an exception ends the edit.
            actor: The author of the commit.
            commit_id: See `Chain.append`.

        Returns:
            The head after the change (None only if the chain was empty and there was nothing to do).

        Raises:
            CommitConflictError: Other writers committed first in all `EDIT_TRIES` attempts.
        """
        for attempt in range(EDIT_TRIES):
            if attempt:
                time.sleep(random.uniform(0, min(0.5, 0.004 * 2**attempt)))
            head = self.read(name, fresh=True)
            changed = change(head.value if head else None)
            if changed is None:
                return head
            value, reason = changed
            try:
                return self.append(
                    name, value, after=head.revision if head else None, actor=actor, reason=reason, commit_id=commit_id
                )
            except CommitConflictError:
                continue
        raise CommitConflictError(
            f"{name!r}: other writers committed first in {EDIT_TRIES} attempts; try again later", name=name
        )

    def _chain_name(self, name: str) -> str:
        return f"{self._kind}/{name}" if self._kind else name

    def _parse(self, revision: Revision, name: str) -> T:
        try:
            return self._model.model_validate(revision.body)
        except ValidationError as error:
            raise DamagedRevisionError(
                f"failed to read revision {revision.number} of {self._chain_name(name)}: {invalid_field(error)}; "
                "if a newer release wrote it, use that release",
                key=self._chain_of(name).key(revision.number),
            ) from error

    def _remembered(self, chain: Chain) -> Revision | None:
        return None if self._memory is None else self._memory.get(chain.name)

    def _remember(self, name: str, revision: Revision, checked_at: float) -> Head[T]:
        with self._guard:
            before = self._heads.get(name)
            if before is not None and _order(before.revision) > _order(revision):
                return before  # a slower read must not revert what a faster one has found
            if before is not None and before.revision.commit_id == revision.commit_id:
                newest = revision if revision.stamp else before.revision
                value, checked_at = before.value, max(before.checked_at, checked_at)
            else:
                newest, value = revision, self._parse(revision, name)
            head = self._heads[name] = Head(_without_copy(newest, value), value, checked_at)
        if self._memory is not None:
            with self._memory_locks[hash(name) % _LOCKS]:  # not under the guard: a write would stop all other reads
                self._memory.put(self._chain_name(name), self._heads[name].revision)
        return head


class _BodyOf(Mapping[str, Any]):
    """The body of a revision, computed from the value that was parsed from it."""

    __slots__ = ("_value",)

    def __init__(self, value: BaseModel) -> None:
        self._value = value

    def __getitem__(self, key: str) -> Any:
        return self._value.model_dump(mode="json")[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._value.model_dump(mode="json"))

    def __len__(self) -> int:
        return len(self._value.model_dump(mode="json"))


def _without_copy(revision: Revision, value: BaseModel) -> Revision:
    """Return the revision without a second copy of its value, if the value reproduces its body exactly.

    The body of a large registry's heads takes more memory than all else that is known of them. It is read only to
    write it again: into the local memory, or into a note of a lost revision.
    """
    if isinstance(revision.body, _BodyOf) or value.model_dump(mode="json") != revision.body:
        return revision
    return replace(revision, body=_BodyOf(value))


def _order(revision: Revision) -> tuple[int, int]:
    return revision.epoch, revision.number
