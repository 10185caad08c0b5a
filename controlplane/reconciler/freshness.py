"""Prevents the use of outdated state: after pauses of the process, and on servers that no instance drives."""

import asyncio
import contextlib
from collections.abc import Callable

from controlplane.reconciler.authority import Authority
from controlplane.reconciler.leader_election import Lease
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.messages import Message, Paused
from controlplane.reconciler.pauses import PauseWatch
from controlplane.reconciler.tasks import TaskRunner


class Freshness:
    """Belongs to the loop; `pauses` may be read in any thread.

    Args:
        state: The loop's state.
        authority: Permissions of this process.
        lease: The leader's lease.
        lease_seconds: Its duration; shorter pauses do not count.
        background: Takes snapshots of servers.
        post: Puts a message into the inbox.
    """

    def __init__(
        self,
        state: LoopState,
        authority: Authority,
        lease: Lease,
        lease_seconds: float,
        background: TaskRunner,
        *,
        post: Callable[[Message], None],
    ) -> None:
        self._state = state
        self._authority = authority
        self._lease = lease
        self._background = background
        self._post = post
        self._watch = PauseWatch(lease_seconds, on_pause=self._paused_soon)
        self._seen = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start to watch for pauses."""
        self._loop = asyncio.get_running_loop()
        self._watch.start()

    def stop(self) -> None:
        """Stop watching."""
        self._watch.stop()

    @property
    def pauses(self) -> int:
        """How often this process was stopped for longer than the lease."""
        return self._watch.count

    @property
    def current(self) -> bool:
        """Whether the loop has handled the newest pause."""
        return self.pauses == self._seen

    def paused(self) -> None:
        """Withdraw all routes until the servers are observed again and have settled in the desired state."""
        self._seen = self.pauses
        message = (
            "this process was stopped for longer than its lease; it observes its servers again before it routes to them"
        )
        self._state.events.add("Warning", "Paused", "reconciler", message)
        for server in self._state.servers.values():
            for unit in server.units.values():
                unit.stale_since = self._state.step
                server.keep_watch(unit)
            self._state.plan_all_again(server)
            self._background.look(server)

    def informed(self, epoch: int) -> None:
        """Start the work that waits until all deployments are read, after the start or an outage of the store."""
        if epoch == self._state.read_epoch:
            return
        self._state.read_epoch = epoch
        for server in self._state.servers.values():
            self._background.clean(server)
            self._state.plan_all_again(server)

    def check_driven(self) -> None:
        """Update which servers no instance drives, and report each change."""
        for server in self._state.servers.values():
            why = self._authority.undriven(server.managed)
            if bool(why) is not bool(server.undriven):
                message = why or "an instance drives it again"
                self._state.events.add("Warning" if why else "Normal", "ServerNotDriven", server.name, message)
            if server.undriven != why:
                server.undriven = why
                self._state.moved.add(server.name)

    def withheld(self, model: str, server: str) -> str:
        """Return why requests for a model must not be sent to a server on which it answers; empty if they may be."""
        known = self._state.servers.get(server)
        if known is None:
            return f"the server {server} has left"
        if not self.current or known.unit(model).stale_since is not None:
            return f"this instance was stopped for a while, and its state of {model} on {server} is not current yet"
        return known.undriven

    def refusal(self) -> str:
        """Return why this instance can have no model loaded; empty if it can."""
        if not self._lease.in_touch and self._lease.trouble:  # without trouble, an attempt is in progress
            return f"the store has not answered for longer than the lease: {self._lease.trouble}"
        undriven = [server.undriven for server in self._state.servers.values()]
        return undriven[0] if undriven and all(undriven) else ""

    def _paused_soon(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop was closed
                self._loop.call_soon_threadsafe(self._post, Paused())
