"""The leader's lease: of all control-plane instances on one bucket, one acts and the others observe.

The lease is a pruned chain; the instance that committed its newest revision holds it. An instance that sees the newest
revision unchanged for its whole duration, by its own clock, may commit the next one; clocks of different machines are
never compared. The holder counts its time from *before* it sent its commit, so it stops before another instance can
start. The revision number is the fencing number.

Limitation: a call to Triton that was sent while the lease was held may still be in progress after it ended. This is
harmless because Triton orders the calls on one model and because of the proofs: the new leader observes the result.

A thread renews the lease, with its own store client, so that neither a busy event loop nor a queue of downloads delays
a renewal. If the event loop does not run for `STALLED_SECONDS`, the instance loses the lease all the same: an instance
that cannot act must not lead.
"""

import asyncio
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from controlplane.errors import CommitConflictError, CommitOutcomeUnknownError, StoreError, StoreWentBackwardsError
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "leases/reconciler/"
_KEPT = 3
_RENEWALS = 3
"""Renewals per duration: two may fail before the lease is lost."""
MARGIN = 0.9
"""Fraction of the duration for which the holder trusts its lease; allows for clocks that run at different speeds."""
STALLED_SECONDS = 300.0
"""An event loop that has not run for this long, while the lease thread ran, counts as unable to act."""


def boot_time() -> float:
    """Return a monotonic time in seconds that also advances while the process is stopped or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Holder:
    """The holder of a lease, with enough detail to check on the same machine whether its process still runs.

    Attributes:
        id: Unique to one start of one process.
        machine: Machine, boot and process namespace; processes with equal values can see each other.
        pid: Process id there.
        started: The process's start time, which distinguishes it from a later process with the same id.
        host: Host name, for people.
    """

    id: str
    machine: str
    pid: int
    started: float
    host: str

    @classmethod
    def myself(cls) -> "Holder":
        """Return the holder record of this process."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, _machine(), pid, psutil.Process(pid).create_time(), socket.gethostname())

    def is_gone(self, observer: "Holder") -> bool:
        """Return whether ``observer`` can see that this holder's process has ended. False if it cannot see it."""
        if not self.machine or self.machine != observer.machine:
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1.0
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def to_body(self, seconds: float) -> dict[str, Any]:
        """Return the body of the chain's revision."""
        return {**self.__dict__, "seconds": seconds}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Holder | None":
        """Return the holder in a revision; None if the lease was released."""
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
    """One process's view of the lease. Its own thread maintains it; the properties are thread-safe.

    Args:
        store: The bucket, by a client that only the lease uses: a renewal must not wait for a connection.
        seconds: The duration. All instances should use the same; each respects the holder's duration if it is longer.
        clock: A monotonic clock that advances while the process is stopped.
        on_change: Called in the event loop of `start` when the lease was won or lost.
        servers: The servers that this process drives while it leads, with their addresses; written into the lease.
        may_lead: Whether this process may take the lease; otherwise it only reads who holds it.

    Attributes:
        trouble: Why the last request to the store failed; empty if it succeeded.
        attempts: How often the thread has tried to take, renew or read the lease.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        seconds: float,
        clock: Callable[[], float] = boot_time,
        on_change: Callable[[], None] = lambda: None,
        servers: Mapping[str, str] | None = None,
        may_lead: bool = True,
    ) -> None:
        self._chain = Chain(store, PREFIX, pruned=True)
        self._seconds = seconds
        self._clock = clock
        self._on_change = on_change
        self._servers = dict(servers or {})
        self._may_lead = may_lead
        self._me = Holder.myself()
        self._known: Revision | None = None
        self._seen_at = 0.0
        self._held_until = 0.0
        self._not_before = 0.0
        self._known_state = (False, 0)
        self._taken = 0
        self._asked_at: float | None = None
        self._epoch = 0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._loop_ran = threading.Event()
        self.trouble = ""
        self.attempts = 0

    def drives(self, servers: Mapping[str, str]) -> None:
        """Set the servers that this process drives while it leads, with their addresses; the next renewal has them."""
        self._servers = dict(servers)

    @property
    def held(self) -> bool:
        """Whether this process may act at this moment."""
        return self._clock() < self._held_until

    @property
    def tenure(self) -> int:
        """Identifier of the present tenure; while it is unchanged and not 0, no other instance led. 0 if not held."""
        return self._taken if self.held else 0

    @property
    def in_touch(self) -> bool:
        """Whether the store has answered within the lease's duration, with or without the lease."""
        return self._asked_at is not None and self._clock() - self._asked_at < self._seconds * MARGIN

    @property
    def epoch(self) -> int:
        """The number of times that contact to the store was lost for longer than the lease's duration.

        Data read in an earlier epoch may be arbitrarily old: another instance may have led since.
        """
        return self._epoch

    @property
    def fencing_number(self) -> int:
        """The number of the newest revision this process committed or saw."""
        return self._known.number if self._known else 0

    @property
    def leader(self) -> str:
        """The holder, for people."""
        holder = Holder.of(self._known.body) if self._known else None
        return f"{holder.host} (process {holder.pid})" if holder else "no instance"

    @property
    def driven(self) -> dict[str, str] | None:
        """The servers that the holder drives, with their addresses; None if there is no holder or no such list."""
        body = self._known.body if self._known else {}
        found = body.get("servers") if body.get("id") else None
        return {str(name): str(url) for name, url in found.items()} if isinstance(found, dict) else None

    async def start(self) -> None:
        """Try to take the lease once, and start the thread that keeps trying or renews it."""
        loop = asyncio.get_running_loop()
        tried: asyncio.Future[None] = loop.create_future()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._keep, args=(loop, tried), name="lease", daemon=True)
        self._thread.start()
        await tried

    async def stop(self) -> None:
        """Release the lease, so that another instance need not wait for its end."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        # A store that hangs must not block the shutdown: the lease then expires without being released.
        await asyncio.to_thread(thread.join, self._seconds)
        self._held_until = 0.0

    def attempt(self) -> None:
        """Renew the lease, or take it if no instance holds it. Up to three requests; blocks.

        Raises:
            StoreError: The store failed.
        """
        began = self._clock()
        self.attempts += 1
        try:
            newest = self._chain.refresh(self._known)
        except StoreWentBackwardsError as error:
            logger.warning("the store lost the newest lease; waiting for its whole duration: %s", error)
            self._start_over(began)
            return
        if newest is None and began < self._not_before:
            return
        if newest is not None and (self._known is None or newest.commit_id != self._known.commit_id):
            self._known, self._seen_at = newest, self._clock()
        if not self._may_lead or (newest is not None and not self._may_follow(newest)):
            self._touched(began)
            return
        mine = newest is not None and newest.body.get("id") == self._me.id
        body = {**self._me.to_body(self._seconds), "servers": self._servers}
        try:
            self._known = self._chain.append(
                body, after=newest, actor=self._me.host, reason="renew" if mine else "take"
            )
        except CommitConflictError:
            self._held_until = 0.0
            self._touched(began)
            return
        self._touched(began)
        if not mine:
            self._taken = self._known.number
        self._seen_at = began
        self._held_until = began + self._seconds * MARGIN
        if self._known.number % _KEPT == 0:
            self._chain.prune(_KEPT)

    def _start_over(self, now: float) -> None:
        """Forget the lease and wait, because the holder of the lost revision may trust it for its whole duration."""
        self._held_until = 0.0
        self._known, self._seen_at = self._chain.head(), self._clock()
        self._not_before = self._clock() + self._seconds
        self._touched(now)
        self._epoch += 1

    def _touched(self, began: float) -> None:
        """Record that the store answered, and start a new epoch if it had been silent for too long."""
        if self._asked_at is not None and began - self._asked_at >= self._seconds * MARGIN:
            self._epoch += 1
        self._asked_at = began

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
                {"id": "", "seconds": self._seconds}, after=self._known, actor=self._me.host, reason="release"
            )

    # The thread

    def _keep(self, loop: asyncio.AbstractEventLoop, tried: "asyncio.Future[None]") -> None:
        pause, stalled = self._seconds / _RENEWALS, 0.0
        self._attempt()
        _post(loop, lambda: self._tell(tried))
        while not self._stopping.wait(pause):
            stalled = 0.0 if self._loop_ran.is_set() else stalled + pause
            self._loop_ran.clear()
            if stalled <= STALLED_SECONDS:
                self._attempt()
            elif stalled <= STALLED_SECONDS + pause:
                logger.error("the event loop has not run for %g s; the lease is not renewed", stalled)
            _post(loop, self._tell)
        self._release_quietly()

    def _attempt(self) -> None:
        try:
            self.attempt()
        except (StoreError, CommitOutcomeUnknownError) as error:
            self.trouble = str(error)
            logger.warning("failed to renew or read the lease: %s", error)
        except Exception as error:
            # Boundary of the thread: the next attempt may succeed, and without the thread no instance would lead.
            self.trouble = f"unexpected {type(error).__name__}"
            logger.exception("unexpected error renewing the lease")
        else:
            self.trouble = ""

    def _release_quietly(self) -> None:
        if not self.held:
            return
        self._held_until = 0.0
        try:
            self._release()
        except (CommitConflictError, StoreError) as error:
            logger.info("failed to release the lease; it will expire: %s", error)

    def _tell(self, tried: "asyncio.Future[None] | None" = None) -> None:
        """Record in the event loop that it runs, and report a change."""
        self._loop_ran.set()
        state = (self.held, self.tenure)
        if state != self._known_state:
            self._known_state = state
            self._on_change()
        if tried is not None and not tried.done():
            tried.set_result(None)


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop was closed
        loop.call_soon_threadsafe(call)


def _machine() -> str:
    """Return an identifier shared by processes that can see each other; empty if it cannot be determined."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
