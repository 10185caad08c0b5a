"""The leader's lease: of any number of control planes on one bucket, one acts, the others observe.

The lease is a pruned chain; holding it means having committed its newest revision. Whoever sees the newest revision
unchanged for its whole duration, by a clock of its own, may commit the next one: no two machines' clocks are ever
compared. The holder counts from *before* it sent its commit, so it stops before anybody else can start. The revision's
number is the fencing number.

What this cannot give: a call to Triton that was sent while the lease was held may still be at work when it ended.
Triton's own order of calls on one model and the proofs keep that harmless: the new leader looks at what is there.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from controlplane.errors import CommitConflictError, CommitOutcomeUnknownError, StoreError
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "leases/reconciler/"
_KEPT = 3
_RENEWALS = 3
"""Renewals per duration: two may fail before the lease is lost."""
_MARGIN = 0.9
"""The holder trusts its lease for this part of the duration only, for clocks that run at slightly different speeds."""


def _awake_or_not() -> float:
    """Seconds that also pass while the process is stopped or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease; enough to tell on the same machine whether it still runs.

    Attributes:
        id: Unique to one start of one process.
        machine: Machine, boot and process namespace; processes of equal machines see each other.
        pid: Process id there.
        started: The process's start time, which tells it from a later one of the same id.
        host: For people.
    """

    id: str
    machine: str
    pid: int
    started: float
    host: str

    @classmethod
    def myself(cls) -> "Holder":
        """Describe this process."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, _machine(), pid, psutil.Process(pid).create_time(), socket.gethostname())

    def is_gone(self, observer: "Holder") -> bool:
        """Whether ``observer`` can see that this holder's process has ended. False where it cannot see it."""
        if not self.machine or self.machine != observer.machine:
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1.0
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def to_body(self, seconds: float) -> dict[str, Any]:
        """Return what the chain's revision says."""
        return {**self.__dict__, "seconds": seconds}

    @classmethod
    def of(cls, body: dict[str, Any]) -> "Holder | None":
        """Read who holds a revision; None where it was given back."""
        if not body.get("id"):
            return None
        return cls(
            str(body["id"]),
            str(body.get("machine", "")),
            int(body.get("pid", 0)),
            float(body.get("started", 0.0)),
            str(body.get("host", "")),
        )


class Lease:
    """One process's view of the lease. `keep` belongs to one task; `held` may be read anywhere.

    Args:
        store: The bucket.
        seconds: The duration. All replicas should have the same; each takes the holder's own where it is longer.
        clock: A monotonic clock that goes on while the process is stopped.
        on_change: Called when it was won or lost.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        seconds: float,
        clock: Callable[[], float] = _awake_or_not,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._chain = Chain(store, PREFIX, pruned=True)
        self._seconds = seconds
        self._clock = clock
        self._on_change = on_change
        self._me = Holder.myself()
        self._known: Revision | None = None
        self._seen_at = 0.0
        self._held_until = 0.0
        self._was_held = False
        self._taken = 0
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""
        """Why the store could not be asked the last time; empty where it could."""
        # A thread of its own: a renewal must not queue behind downloads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lease")

    @property
    def held(self) -> bool:
        """Whether this process may act at this moment."""
        return self._clock() < self._held_until

    @property
    def tenure(self) -> int:
        """Who had the same before, other than 0, knows that nobody else held it in between; 0 while it is not held."""
        return self._taken if self.held else 0

    @property
    def fencing_number(self) -> int:
        """The number of the newest revision this process committed or saw."""
        return self._known.number if self._known else 0

    @property
    def leader(self) -> str:
        """Who holds it, for people."""
        holder = Holder.of(self._known.body) if self._known else None
        return f"{holder.host} (process {holder.pid})" if holder else "nobody"

    async def start(self) -> None:
        """Try to get it once, then keep trying, or keep it, in a task."""
        await self._attempt()
        self._task = asyncio.create_task(self._keep(), name="lease")

    async def stop(self) -> None:
        """Give it back, so that another need not wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.held:
            self._held_until = 0.0
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._release)
            except (CommitConflictError, StoreError) as error:
                logger.info("the lease was not given back and ends by itself: %s", error)
        self._thread.shutdown(wait=False)

    def attempt(self) -> None:
        """Renew it, or take it where nobody holds it. One or two requests; blocks.

        Raises:
            StoreError: The store failed.
        """
        began = self._clock()
        newest = self._chain.refresh(self._known)
        if newest is not None and (self._known is None or newest.commit_id != self._known.commit_id):
            self._known, self._seen_at = newest, self._clock()
        if newest is not None and not self._may_follow(newest):
            return
        mine = newest is not None and newest.body.get("id") == self._me.id
        try:
            self._known = self._chain.append(
                self._me.to_body(self._seconds), after=newest, actor=self._me.host, reason="renew" if mine else "take"
            )
        except CommitConflictError:
            self._held_until = 0.0
            return
        if not mine:
            self._taken = self._known.number
        self._seen_at = began
        self._held_until = began + self._seconds * _MARGIN
        if self._known.number % _KEPT == 0:
            self._chain.prune(_KEPT)

    def _may_follow(self, newest: Revision) -> bool:
        holder = Holder.of(newest.body)
        if holder is None or holder.id == self._me.id:
            return True
        if holder.is_gone(self._me):
            return True
        duration = max(self._seconds, float(newest.body.get("seconds", self._seconds)))
        return self._clock() - self._seen_at > duration

    def _release(self) -> None:
        if self._known is not None:
            self._chain.append(
                {"id": "", "seconds": self._seconds}, after=self._known, actor=self._me.host, reason="give back"
            )

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / _RENEWALS)
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.attempt)
        except (StoreError, CommitOutcomeUnknownError) as error:
            self.trouble = str(error)
            logger.warning("the lease cannot be renewed or looked at: %s", error)
        else:
            self.trouble = ""
        if self.held != self._was_held:
            self._was_held = self.held
            self._on_change()


def _machine() -> str:
    """Name what processes that can see each other share; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
