"""A slow pass over the heads of all chains, which finds changes that the change feed cannot report.

The feed misses a commit without an entry (a restored bucket, entries that were removed by hand) and revisions that the
store lost. A flat LIST returns 1,000 keys per request, and the first key of each chain is its head, with its stamp. So
a pass costs one request for several hundred chains, and none for a head that is unchanged in memory. The first pass, at
the start of an instance, reads all heads; heads that the instance remembers from its last run cost nothing.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from pydantic import BaseModel

from controlplane.registry.changes import ChangeFeed, steady
from controlplane.registry.heads import HeadCache
from controlplane.storage.base import ObjectInfo, ObjectStore, parallel_reads

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)

PAGE = 1000
_PARALLEL_READS = 16
_REVISIONS = "/revisions/"


class Sweep(Generic[T]):
    """Passes over all chains of a kind, one page at a time. Safe to use from several threads.

    Args:
        store: The bucket.
        kind: The first part of the chains' names, for example ``models``.
        heads: The heads in memory.
        feed: Receives the chains that changed without an entry.
    """

    def __init__(self, store: ObjectStore, kind: str, heads: HeadCache[T], feed: ChangeFeed) -> None:
        self._store = store
        self._parallel = parallel_reads(store, _PARALLEL_READS)
        self._kind = kind
        self._prefix = f"{kind}/"
        self._heads = heads
        self._feed = feed
        self._after = ""
        self._passed: set[str] = set()
        self._known_before: set[str] = set()
        self._generation = 0
        self._guard = threading.Lock()

    def step(self) -> bool:
        """Check the next page of keys; return whether the pass continues.

        Raises:
            StoreError: The store failed; the next step retries the page.
        """
        with self._guard:
            return self._step()

    def run(self, report: Callable[[int], None] = lambda _: None) -> None:
        """Complete a whole pass.

        Args:
            report: Called after each page with the number of chains so far.

        Raises:
            StoreError: The store failed; the next call continues.
        """
        while self.step():
            report(len(self._passed))

    def _step(self) -> bool:
        if not self._after:
            self._feed.poll(not_before=None if self._feed.generation == 0 else steady() - 1.0)
            self._generation, self._passed = self._feed.generation, set()
            self._known_before = set(self._heads.all_known())
        listed_at = steady()
        page = list(self._store.list(self._prefix, start_after=self._after, limit=PAGE))
        self._take(dict(self._first_of_each(page)), listed_at)
        if len(page) == PAGE:
            self._after = self._behind(page[-1].key)
            return True
        # A known chain that is no longer listed: reading it detects the loss and refuses the chain.
        self._take(dict.fromkeys(self._known_before - self._passed), steady())
        self._heads.taken_all(self._generation)
        self._after = ""
        return False

    def _take(self, found: dict[str, ObjectInfo | None], listed_at: float) -> None:
        def take(name: str) -> bool:
            changed = self._heads.take(name, found[name], listed_at)
            if changed and name in self._known_before:
                logger.debug(
                    "the sweep found a change of %s/%s that the change feed had not reported", self._kind, name
                )
            if changed and self._heads.complete:  # the first pass finds only new heads, and its caller reads them all
                self._feed.tell(f"{self._kind}/{name}")
            return changed

        if found:
            with ThreadPoolExecutor(min(self._parallel, len(found)), thread_name_prefix="sweep") as pool:
                list(pool.map(take, found))
        self._passed.update(found)

    def _first_of_each(self, page: list[ObjectInfo]) -> Iterator[tuple[str, ObjectInfo | None]]:
        before = ""
        for info in page:
            name, folder, file = info.key.removeprefix(self._prefix).partition(_REVISIONS)
            if not folder or "/" in name or name == before:
                continue
            # A note of a lost revision, or a foreign object: the chain is read separately.
            is_revision = file.removesuffix(".json").isdigit() and len(file) == 17
            before = name
            if name not in self._passed:
                yield name, info if is_revision else None

    def _behind(self, key: str) -> str:
        """Return the start of the next page: after the chain that contains this key, however long the chain is."""
        name, folder, _ = key.removeprefix(self._prefix).partition(_REVISIONS)
        return f"{self._prefix}{name}{_REVISIONS}~" if folder else key
