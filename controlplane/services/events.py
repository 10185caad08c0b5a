"""Events that this instance has recorded: what changed, and why."""

import time
from collections.abc import AsyncIterator

from controlplane.domain.states import Event
from controlplane.reconciler.controller import Reconciler


class Events:
    """Returns and follows events."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def after(self, event_id: int) -> list[Event]:
        """Return the events with a greater id, oldest first, as far back as they are kept."""
        return self._reconciler.events(event_id)

    async def follow(self, after: int, *, heartbeat_seconds: float) -> AsyncIterator[Event | None]:
        """Yield events as they occur, and None after each silent ``heartbeat_seconds``. Never ends on its own."""
        last = after
        silent_since = time.monotonic()
        while True:
            for event in self._reconciler.events(last):
                yield event
                last, silent_since = event.id, time.monotonic()
            await self._reconciler.wait_event(last, heartbeat_seconds)
            if time.monotonic() - silent_since >= heartbeat_seconds:
                yield None
                silent_since = time.monotonic()
