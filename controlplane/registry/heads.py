"""The newest revisions of many chains, in memory: reads may be a little old, commits never are.

While the change feed (`controlplane.registry.changes`) is followed, a head that was read once counts until an entry
names its chain, so reading any number of heads costs one request. `HeadCache.take` is for the sweep over all chains.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

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
    """A revision and what its body says.

    Attributes:
        revision: The revision.
        value: Its body, parsed.
        checked_at: When the look that found it to be the head began, by `changes.steady`.
    """

    revision: Revision
    value: T
    checked_at: float


class HeadCache(Generic[T]):
    """Cached heads by name. Safe to use from several threads; a process sees its own commits at once.

    Args:
        chain_of: Gives the chain of a name; validates the name.
        model: What a body is parsed into.
        kind: The first part of the chains' names, for example ``models``; empty where the only chain has the name.
        max_age_seconds: How old the last look, or the last poll of the feed, may be for a plain read.
        feed: Tells which chains changed; None looks at the chain itself.
        memory: Remembers the heads across restarts, so that a loss while this process was down is noticed.
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
        # Striped, so that names asked for and never found leave nothing behind. Held during a look, so that many
        # readers cause one request.
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))

    def peek(self, name: str) -> Head[T] | None:
        """Return the head if it is in memory and young enough. No I/O."""
        head, not_before = self._heads.get(name), self.moment()
        return head if head is not None and self._counts(name, head, not_before) else None

    def known(self, name: str) -> Head[T] | None:
        """Return the head that is in memory, however old. No I/O."""
        return self._heads.get(name)

    def read(self, name: str, *, fresh: bool = False, not_before: float | None = None) -> Head[T] | None:
        """Return the head, None for an empty chain.

        Args:
            name: Whose head.
            fresh: Look, however young the cached one is.
            not_before: A look or a poll that began after this moment, by `changes.steady`, will do; None: `moment`.

        Raises:
            StoreWentBackwardsError: The store lost the head that this process, or another one, knew.
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
                return head  # somebody's look began after we asked
            chain = self._chain_of(name)
            return self._look(name, chain, chain.refresh)

    @property
    def complete(self) -> bool:
        """Whether all chains were looked at once."""
        return self._complete_in is not None

    def moment(self) -> float:
        """Return since when a look or a poll is young enough for a plain read, by `changes.steady`."""
        return steady() - self._max_age

    def names(self, *, not_before: float | None = None) -> list[str] | None:
        """Return the names of all chains, those that cannot be read included; None where they were not all read.

        Args:
            not_before: A poll that began after this moment will do; None: `moment`.

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
        """Whether the head in memory is what the entries that were found so far announced. No I/O."""
        if self._feed is None:
            return True
        head, chain = self._heads.get(name), self._chain_name(name)
        if head is None:
            return not self._feed.expects(chain)
        return self._feed.confirms(chain, head.revision.number, head.checked_at)

    # For the sweep

    def take(self, name: str, newest: ObjectInfo | None, listed_at: float) -> bool:
        """Take in the first object of a chain as a list of many chains has it; return whether the head is another one.

        Args:
            name: Whose chain.
            newest: Its newest revision's object; None where it has to be looked at for itself.
            listed_at: When the list was begun, by `changes.steady`.

        Raises:
            StoreError: The store failed, which says nothing about the chain.
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
            return False  # a folder made by hand
        except (DamagedRevisionError, StoreWentBackwardsError):
            return True  # the next read says so
        before = head.revision.commit_id if head else None
        return found is not None and found.revision.commit_id != before

    def taken_all(self, generation: int) -> None:
        """Say that `take` was called for every chain since the feed's generation began."""
        self._complete_in = generation

    def all_known(self) -> list[str]:
        """Return the names of the heads in memory, and of the chains that cannot be read. No I/O."""
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
            CommitConflictError: Somebody else was first.
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
        """Read the head afresh, change it and commit, again and again while others commit first.

        Args:
            name: Whose head.
            change: Gives the new value and what changed in words, or None when there is nothing to do. Called once
                per try; what it raises ends the edit.
            actor: Who commits.
            commit_id: See `Chain.append`.

        Returns:
            The head after the change (None only where there was none and nothing to do).

        Raises:
            CommitConflictError: Others were first, `EDIT_TRIES` times.
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
            f"{name!r}: others committed first, {EDIT_TRIES} times in a row; try again later", name=name
        )

    def _chain_name(self, name: str) -> str:
        return f"{self._kind}/{name}" if self._kind else name

    def _parse(self, revision: Revision, name: str) -> T:
        try:
            return self._model.model_validate(revision.body)
        except ValidationError as error:
            raise DamagedRevisionError(
                f"revision {revision.number} of {self._chain_name(name)} cannot be read: {invalid_field(error)}; if a "
                "newer release wrote it, use that release",
                key=self._chain_of(name).key(revision.number),
            ) from error

    def _remembered(self, chain: Chain) -> Revision | None:
        return None if self._memory is None else self._memory.get(chain.name)

    def _remember(self, name: str, revision: Revision, checked_at: float) -> Head[T]:
        with self._guard:
            before = self._heads.get(name)
            if before is not None and _order(before.revision) > _order(revision):
                return before  # a slower look must not take back what a faster one has seen
            if before is not None and before.revision.commit_id == revision.commit_id:
                newest = revision if revision.stamp else before.revision
                head = Head(newest, before.value, max(before.checked_at, checked_at))
            else:
                head = Head(revision, self._parse(revision, name), checked_at)
            if self._memory is not None:
                self._memory.put(self._chain_name(name), head.revision)
            self._heads[name] = head
            return head


def _order(revision: Revision) -> tuple[int, int]:
    return revision.epoch, revision.number
