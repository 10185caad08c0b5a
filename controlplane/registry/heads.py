"""The newest revisions of many chains, in memory: reads may be a little old, commits never are."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from controlplane.errors import CommitConflictError
from controlplane.registry.chain import Chain, Revision
from controlplane.registry.head_memory import HeadMemory

T = TypeVar("T", bound=BaseModel)

EDIT_TRIES = 50
_LOCKS = 64


@dataclass(frozen=True, slots=True)
class Head(Generic[T]):
    """A revision and what its body says.

    Attributes:
        revision: The revision.
        value: Its body, parsed.
        checked_at: Monotonic time at which the look that found it to be the head began.
    """

    revision: Revision
    value: T
    checked_at: float


class HeadCache(Generic[T]):
    """Cached heads by name. Safe to use from several threads; a process sees its own commits at once.

    Args:
        chain_of: Gives the chain of a name; validates the name.
        model: What a body is parsed into.
        max_age_seconds: How old the last look may be for a plain read.
        memory: Remembers the heads across restarts, so that a loss while this process was down is noticed.
    """

    def __init__(
        self,
        chain_of: Callable[[str], Chain],
        model: type[T],
        *,
        max_age_seconds: float,
        memory: HeadMemory | None = None,
    ) -> None:
        self._chain_of = chain_of
        self._memory = memory
        self._model = model
        self._max_age = max_age_seconds
        self._heads: dict[str, Head[T]] = {}
        self._guard = threading.Lock()
        # Striped, so that names asked for and never found leave nothing behind. Held during a look, so that many
        # readers cause one request.
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))

    def peek(self, name: str) -> Head[T] | None:
        """Return the head if it is in memory and young enough. No I/O."""
        head = self._heads.get(name)
        return head if head is not None and head.checked_at >= time.monotonic() - self._max_age else None

    def read(self, name: str, *, fresh: bool = False) -> Head[T] | None:
        """Return the head, None for an empty chain.

        Args:
            name: Whose head.
            fresh: Look, however young the cached one is.

        Raises:
            StoreWentBackwardsError: The store lost the head that this process, or another one, knew.
        """
        not_before = time.monotonic() - (0 if fresh else self._max_age)
        head = self._heads.get(name)
        if head is not None and head.checked_at >= not_before:
            return head
        with self._locks[hash(name) % _LOCKS]:
            head = self._heads.get(name)
            if head is not None and head.checked_at >= not_before:
                return head  # somebody's look began after we asked
            chain = self._chain_of(name)
            known = head.revision if head else self._remembered(chain)
            began = time.monotonic()
            revision = chain.refresh(known)
            return self._remember(name, revision, began) if revision else None

    def append(
        self, name: str, value: T, *, after: Revision | None, actor: str, reason: str, commit_id: str | None = None
    ) -> Head[T]:
        """Commit ``value`` as the revision that follows ``after``.

        Raises:
            CommitConflictError: Somebody else was first.
        """
        began = time.monotonic()
        revision = self._chain_of(name).append(
            value.model_dump(mode="json"), after=after, actor=actor, reason=reason, commit_id=commit_id
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
                head = Head(revision, self._model.model_validate(revision.body), checked_at)
                if self._memory is not None:
                    self._memory.put(self._chain_of(name).name, revision)
            self._heads[name] = head
            return head


def _order(revision: Revision) -> tuple[int, int]:
    return revision.epoch, revision.number
