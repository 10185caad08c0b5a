"""A chain of which the store has exactly one, such as the API keys: one request shows whether it changed."""

from collections.abc import Callable
from typing import Generic, TypeVar

from pydantic import BaseModel

from controlplane.registry.chain import Chain
from controlplane.registry.changes import ChangeFeed, ChangeLog, steady
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.heads import Head, HeadCache
from controlplane.storage.base import ObjectStore

T = TypeVar("T", bound=BaseModel)


class SingleChain(Generic[T]):
    """Reads and edits the value of one guarded chain. Blocks; safe to use from several threads.

    Args:
        store: The store.
        name: The chain's name; its revisions are under ``name/revisions/``.
        model: The type of the value; its defaults are the value of a chain without revisions.
        changes: Announces commits.
        feed: Reads announcements.
        memory: The heads that this instance remembers.
    """

    def __init__(
        self,
        store: ObjectStore,
        name: str,
        model: type[T],
        *,
        changes: ChangeLog | None = None,
        feed: ChangeFeed | None = None,
        memory: HeadMemory | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._feed = feed
        self._empty_at: float | None = None
        chain = Chain(store, f"{name}/revisions/", guarded=True, changes=changes)
        self._heads: HeadCache[T] = HeadCache(
            lambda _: chain, model, kind="", max_age_seconds=0, feed=feed, memory=memory
        )

    def read(self, *, max_age_seconds: float = 0.0) -> tuple[int, T]:
        """Return the number of the newest revision (0 if there is none) and the value.

        Args:
            max_age_seconds: Maximum age of the last read, or of the last poll of the change feed; 0 reads the store,
                which costs one request if nothing changed.

        Raises:
            StoreError: The store failed.
        """
        fresh, feed = max_age_seconds <= 0, self._feed
        if not fresh and self._empty_at is not None and feed is not None and feed.followed:
            feed.poll(not_before=steady() - max_age_seconds)
            if feed.confirms(self._name, 0, self._empty_at):
                return 0, self._model()
        began = steady()
        head: Head[T] | None = self._heads.read(self._name, fresh=fresh, not_before=steady() - max_age_seconds)
        self._empty_at = began if head is None else None
        return (0, self._model()) if head is None else (head.revision.number, head.value)

    def edit(self, change: Callable[[T], tuple[T, str] | None], *, actor: str) -> tuple[int, T]:
        """Change the value and commit it; retry while other writers commit first (see `HeadCache.edit`).

        Args:
            change: Returns the new value and a description of the change, or None if there is nothing to do.
            actor: The author of the commit.

        Returns:
            The number of the newest revision (0 if there is none) and the value after the change.
        """
        head = self._heads.edit(
            self._name, lambda value: change(self._model() if value is None else value), actor=actor
        )
        if head is None:
            return 0, self._model()
        self._empty_at = None  # the feed may not have this commit yet
        return head.revision.number, head.value
