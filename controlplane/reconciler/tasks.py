"""Slow work other than actions: snapshots, readings, cleaning, writes. Most tasks send a message when they are done."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from controlplane.domain.report import VersionReport
from controlplane.errors import ControlPlaneError
from controlplane.memory.footprint_recorder import FootprintSample
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.messages import FootprintsKept, Message, ReadingTaken, RepositoryCleaned, SnapshotTaken
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.holds import ModelHold
from controlplane.registry.registry import Registry
from controlplane.servers.readings import read_server
from controlplane.servers.snapshot import take_snapshot

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.05
_WAIT_GROWTH = 1.15
"""Delay of the next snapshot while Triton is busy; it grows up to the interval between cycles."""


class TaskRunner:
    """The loop's tasks. At most one snapshot, one reading and one cleaning at a time for each server.

    Args:
        state: The loop's state; only read here, except for the servers' task handles.
        post: Puts a message into the inbox.
        leading: Whether this process may change anything.
        owns: Whether no other process may change the servers.
        registry: Stores measured footprints.
        interval_seconds: Maximum pause between two snapshots of a busy server.
    """

    def __init__(
        self,
        state: LoopState,
        *,
        post: Callable[[Message], None],
        leading: Callable[[], bool],
        owns: Callable[[], bool],
        registry: Registry,
        interval_seconds: float,
    ) -> None:
        self._state = state
        self._post = post
        self._leading = leading
        self._owns = owns
        self._registry = registry
        self._interval_seconds = interval_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Run a coroutine beside the loop."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self) -> None:
        """Cancel all tasks."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._state.servers.values():
            if server.later:
                server.later.cancel()

    def look(self, server: TrackedServer) -> None:
        """Take a snapshot of a server; if one is in progress, take another one after it."""
        if server.looking is not None:
            server.look_again = True
            return
        began = self._state.step
        models = self._state.desired_state.keys()

        async def seen() -> None:
            snapshot = await take_snapshot(server.managed, models, server.snapshot.version, restarted=server.away)
            self._post(SnapshotTaken(server, began, snapshot))

        server.looking = self.spawn(seen(), f"observe {server.name}")

    def look_later(self, server: TrackedServer) -> None:
        """Take a snapshot of a busy server after a short delay."""
        if server.later is None:

            def now() -> None:
                server.later = None
                self.look(server)

            pause = min(_WAIT_SECONDS * _WAIT_GROWTH ** min(server.waits, 100), self._interval_seconds)
            server.waits += 1
            server.later = asyncio.get_running_loop().call_later(pause, now)

    def gauge(self, server: TrackedServer) -> None:
        """Take a reading of a server, unless one is in progress."""
        if server.gauging is not None:
            return
        began, counters = self._state.step, not server.away

        async def gauged() -> None:
            self._post(ReadingTaken(server, began, await read_server(server.managed, counters=counters)))

        server.gauging = self.spawn(gauged(), f"read {server.name}")

    def clean(self, server: TrackedServer) -> None:
        """Remove the remains of a crash from a model repository, unless another process may be using it."""
        if not self._owns() or server.cleaned or server.cleaning is not None:
            return

        async def clean() -> None:
            try:
                await asyncio.to_thread(server.managed.repository.clean)
            except ControlPlaneError as error:
                logger.warning("failed to clean the model repository of %s: %s", server.name, error)
                self._post(RepositoryCleaned(server, done=False))
            else:
                self._post(RepositoryCleaned(server, done=True))

        server.cleaning = self.spawn(clean(), f"clean {server.name}")

    def keep(self, server: TrackedServer, measurements: list[FootprintSample]) -> None:
        """Store measured footprints with their versions in the bucket."""
        if not measurements or not self._leading():
            return

        def put() -> None:
            for one in measurements:
                self._registry.footprints.put(one.key, one.measured, actor=f"reconciler on {server.name}")

        async def run() -> None:
            try:
                await asyncio.to_thread(put)
            except ControlPlaneError as error:
                logger.warning("failed to store a measured footprint: %s", error)
            self._post(FootprintsKept(frozenset(one.key.model for one in measurements)))

        self.spawn(run(), "store footprints")

    def give_back(self, lease: ModelHold) -> None:
        """Release a hold of this process; if that fails, the hold expires."""

        async def run() -> None:
            with suppress(ControlPlaneError):
                await asyncio.to_thread(self._registry.holds.release, lease.model, lease.id)

        self.spawn(run(), f"release hold on {lease.model}")

    def keep_report(self, report: VersionReport) -> None:
        """Store the report of a version in the bucket."""
        if not self._leading():
            return

        async def run() -> None:
            try:
                await asyncio.to_thread(self._registry.reports.put, report, actor="reconciler")
            except ControlPlaneError as error:
                logger.warning("failed to store the report of %s:%d: %s", report.model, report.version, error)

        self.spawn(run(), "store report")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task %s failed", task.get_name(), exc_info=error)
