"""Change feed: finds the chains that were committed to recently with one request, for any number of chains.

Before a guarded chain gets a revision, its writer creates an empty object whose key contains all information::

    changes/20261130T115123.456-3f2a9c01-00017~000000000007~deployments~resnet

The parts are the store's time, the writer, the writer's sequence number, the revision's number, and the chain. A reader
lists the entries since its last poll and so knows which chains to read. Four rules make this safe:

* The entry is written first. A writer that is killed between the entry and the commit leaves a superfluous entry, but
  never a commit without an entry. Until a reader has found the number that an entry names, it reads the chain on each
  access for `OPEN_SECONDS`.
* A writer whose entry took longer than `SLOW_SECONDS` to write creates another one before it commits, and one whose
  commit took longer creates another one after it. So an entry becomes visible soon after the time in its key.
* A poll begins `OVERLAP_SECONDS` before the last one, which covers slow entries and differently measured clocks. All
  writers use the store's time, so the clocks of the machines do not matter.
* Changes that these rules cannot cover (a restored bucket, entries that were removed by hand) are found by a slow pass
  over the heads of all chains (`controlplane.registry.sweep`).
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlplane.errors import CommitOutcomeUnknownError, ObjectExistsError, StoreError, StoreUnavailableError
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "changes/"
SLOW_SECONDS = 5.0
OVERLAP_SECONDS = 30.0
OPEN_SECONDS = 30.0
KEPT_SECONDS = 3600.0
"""How long entries stay in the store."""
_GAP_SECONDS = KEPT_SECONDS / 2
"""Maximum time without a poll; after it entries may be missing and the reader starts over."""
_COLLECTED_AT_ONCE = 1000
_DELETING_THREADS = 8
_ENTRY_TRIES = 4
_EARLY_THREADS = 4
_ENTRY = re.compile(r"(\d{8}T\d{6}\.\d{3})-([0-9a-f]{8})-\d+~(\d{12})~([a-z]+(?:~[^~/]+)?)")
_TIME = "%Y%m%dT%H%M%S.%f"


def steady() -> float:
    """Return monotonic seconds that also advance while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _stamp(at: datetime) -> str:
    return at.strftime(_TIME)[:-3]


class ChangeLog:
    """Writer of entries. Safe to use from several threads.

    Args:
        store: The bucket.
        clock: Provides the store's time.

    Attributes:
        writer: The name of this process in its entries.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._count = 0
        self._guard = threading.Lock()
        self._threads = ThreadPoolExecutor(_EARLY_THREADS, thread_name_prefix="changes")
        self.writer = uuid.uuid4().hex[:8]

    def announce(self, chain: str, number: int) -> float:
        """Announce that a chain is about to get a revision; return the time of the announcement, by `steady`.

        Raises:
            StoreError: The store failed. The caller must not commit.
        """
        unknown: StoreError | None = None
        for _ in range(_ENTRY_TRIES):
            began = steady()
            key = self._key(chain, number)
            try:
                self._store.create(key, b"")
            except ObjectExistsError:
                pass  # a retry that met its own first attempt: no other process writes this key
            except CommitOutcomeUnknownError as error:
                unknown = error
                continue
            if steady() - began <= SLOW_SECONDS:
                return began
        raise StoreUnavailableError(
            f"the store is too slow or does not confirm writes: announcing a change of {chain} took longer than "
            f"{SLOW_SECONDS:g} s in {_ENTRY_TRIES} attempts; nothing was changed, try again",
            chain=chain,
        ) from unknown

    def announce_early(self, chain: str, number: int) -> Callable[[], float]:
        """Start `announce` concurrently with other requests; the returned function waits for its end."""
        return self._threads.submit(self.announce, chain, number).result

    def finished(self, chain: str, number: int, announced: float) -> None:
        """Announce a revision again if its commit took so long that readers may no longer expect it.

        Args:
            chain: The chain's name.
            number: The revision's number.
            announced: The return value of `announce`.
        """
        if steady() - announced <= SLOW_SECONDS:
            return
        try:
            self._store.create(self._key(chain, number), b"")
        except (StoreError, ObjectExistsError, CommitOutcomeUnknownError) as error:
            logger.info(
                "failed to announce revision %d of %s again; other instances may see it late: %s", number, chain, error
            )

    def collect(self) -> int:
        """Remove the obsolete entries; return how many.

        Raises:
            StoreError: The store failed.
        """
        horizon = PREFIX + _stamp(self._clock() - timedelta(seconds=KEPT_SECONDS))
        removed, first = 0, ""
        while True:
            old = [info.key for info in self._store.list(PREFIX, limit=_COLLECTED_AT_ONCE) if info.key < horizon]
            with ThreadPoolExecutor(_DELETING_THREADS, thread_name_prefix="changes") as threads:
                for _ in threads.map(self._store.delete, old):
                    pass
            removed += len(old)
            if len(old) < _COLLECTED_AT_ONCE or old[0] == first:  # a store that lists what it deleted: the next sweep
                return removed
            first = old[0]

    def _key(self, chain: str, number: int) -> str:
        with self._guard:
            self._count += 1
            count = self._count
        at = _stamp(self._clock())
        return f"{PREFIX}{at}-{self.writer}-{count:05d}~{number:012d}~{chain.replace('/', '~')}"


@dataclass(frozen=True, slots=True)
class Entry:
    """An announced change.

    Attributes:
        chain: The chain's name.
        number: The number of the announced revision.
        writer: The process that announced it.
    """

    chain: str
    number: int
    writer: str

    @classmethod
    def of(cls, key: str) -> "Entry | None":
        """Parse an entry's key; return None if the key is not an entry."""
        match = _ENTRY.fullmatch(key.removeprefix(PREFIX))
        return None if match is None else cls(match[4].replace("~", "/", 1), int(match[3]), match[2])


@dataclass(slots=True)
class _Open:
    """The state of one chain according to its entries.

    Attributes:
        number: The highest announced number.
        seen_at: When the newest entry was found.
        heads_valid_from: When the poll began that found the newest entry of another process; 0 if there is none. A head
            that was read before this time is not valid, whatever its number: the chain may have gone backwards.
    """

    number: int
    seen_at: float
    heads_valid_from: float


class Listener:
    """Collector of the names of changed chains, for one consumer."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._guard = threading.Lock()

    def add(self, chain: str) -> None:
        """Add a chain."""
        with self._guard:
            self._names.add(chain)

    def take(self) -> set[str]:
        """Return the names added since the last call."""
        with self._guard:
            names, self._names = self._names, set()
            return names


class ChangeFeed:
    """Reader of entries that decides which cached heads are still valid. Safe to use from several threads.

    Args:
        store: The bucket.
        clock: Provides the store's time, without I/O.
        writer: The name of this process in its own entries.

    Attributes:
        generation: Increases when entries may have been missed; all known heads must then be read again.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], datetime], writer: str) -> None:
        self._store = store
        self._clock = clock
        self._writer = writer
        self._polling = threading.Lock()
        self._guard = threading.Lock()
        self._began: float | None = None
        self._since = datetime.min.replace(tzinfo=UTC)
        self._covered_since = 0.0
        self._seen: set[str] = set()
        self._open: dict[str, _Open] = {}
        self._listeners: list[Listener] = []
        self.generation = 0

    @property
    def followed(self) -> bool:
        """Return whether this process has polled; a process that reads a few heads and ends need not poll."""
        return self.generation > 0

    def listen(self) -> Listener:
        """Return a listener that receives the chains of all future entries."""
        listener = Listener()
        with self._guard:
            self._listeners = [*self._listeners, listener]
        return listener

    def tell(self, chain: str) -> None:
        """Report a chain to the listeners after a change was found without an entry."""
        for listener in self._listeners:
            listener.add(chain)

    def poll(self, *, not_before: float | None = None) -> None:
        """Read the entries since the last poll: one LIST.

        Args:
            not_before: A poll that began after this moment, by `steady`, is sufficient; None always polls.

        Raises:
            StoreError: The store failed; the next poll reads the missing entries.
        """
        if not_before is not None and self.is_since(not_before):
            return
        asked = steady()
        with self._polling:
            if self.is_since(asked if not_before is None else not_before):
                return  # another thread's poll began after our call
            began, now = steady(), self._clock()
            again = self._began is None or began - self._began > _GAP_SECONDS
            start = PREFIX + _stamp((now if again else min(self._since, now)) - timedelta(seconds=OVERLAP_SECONDS))
            keys = [info.key for info in self._store.list(PREFIX, start_after=start)]
            self._take(keys, began, again=again)
            self._since, self._began = now, began

    def confirms(self, chain: str, number: int, checked_at: float) -> bool:
        """Return whether a cached head was still the newest when the last poll began, according to the entries. No I/O.

        Args:
            chain: The chain's name.
            number: The cached head's number.
            checked_at: When the read that found it to be the head began, by `steady`.
        """
        with self._guard:
            if self._began is None or checked_at < self._covered_since:
                return False
            found = self._open.get(chain)
            if found is None:
                return True
            if checked_at < found.heads_valid_from:
                return False
            return number >= found.number or checked_at >= found.seen_at + OPEN_SECONDS

    def contradicts(self, chain: str, checked_at: float) -> bool:
        """Return whether another process announced a change that was found after a read of the chain began. No I/O."""
        with self._guard:
            found = self._open.get(chain)
            return found is not None and checked_at < found.heads_valid_from

    def expects(self, chain: str) -> bool:
        """Return whether an announced commit may still arrive. No I/O."""
        with self._guard:
            found = self._open.get(chain)
            return found is not None and steady() - found.seen_at <= OPEN_SECONDS

    def names(self, kind: str) -> list[str]:
        """Return the names of the chains of one kind that entries named, for example ``models``. No I/O."""
        with self._guard:
            return [chain.removeprefix(f"{kind}/") for chain in self._open if chain.startswith(f"{kind}/")]

    def is_since(self, moment: float) -> bool:
        """Return whether the last successful poll began at or after a moment, by `steady`. No I/O."""
        return self._began is not None and self._began >= moment

    def _take(self, keys: list[str], began: float, *, again: bool) -> None:
        with self._guard:
            if again:
                self.generation += 1
                self._covered_since = began
                self._seen.clear()
                self._open.clear()
            new = [entry for key in keys if key not in self._seen and (entry := Entry.of(key)) is not None]
            self._seen = set(keys)
            for entry in new:
                # Kept permanently: a cached head is valid only if it was read since. At most one for each chain.
                before = self._open.get(entry.chain, _Open(0, 0.0, 0.0))
                heads_valid_from = before.heads_valid_from if entry.writer == self._writer else began
                self._open[entry.chain] = _Open(max(before.number, entry.number), steady(), heads_valid_from)
        for chain in {entry.chain for entry in new}:
            self.tell(chain)
