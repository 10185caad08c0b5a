"""Bounded log of events, newest last, for `GET /v1/events`."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Literal

from controlplane.domain.states import Event

logger = logging.getLogger(__name__)

CAPACITY = 2000


class EventLog:
    """The newest events of this process. Belongs to one event loop.

    Args:
        clock: Gives the time (UTC).
        capacity: How many events are kept.
    """

    def __init__(self, clock: Callable[[], datetime], *, capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=capacity)
        self._last = 0
        self._more = asyncio.Event()

    @property
    def last_id(self) -> int:
        """The id of the newest event; 0 before the first."""
        return self._last

    def add(self, type_: Literal["Normal", "Warning"], reason: str, subject: str, message: str) -> None:
        """Append an event, log it, and wake waiting callers."""
        self._last += 1
        self._events.append(
            Event(id=self._last, at=self._clock(), type=type_, reason=reason, subject=subject, message=message)
        )
        level = logging.WARNING if type_ == "Warning" else logging.INFO
        logger.log(level, "%s: %s: %s", subject, reason, message)
        self._more.set()
        self._more = asyncio.Event()

    def after(self, event_id: int = 0) -> list[Event]:
        """Return the events with a larger id, oldest first; events that left the buffer are lost."""
        missing = self._last - event_id
        if missing <= 0:
            return []
        events = list(self._events)
        return events[-missing:] if missing < len(events) else events

    async def wait(self, after: int, timeout: float) -> list[Event]:  # noqa: ASYNC109 - a long poll
        """Return the events after ``after``, waiting up to ``timeout`` seconds for the first of them."""
        if not (found := self.after(after)):
            try:
                await asyncio.wait_for(self._more.wait(), timeout)
            except TimeoutError:
                return []
            found = self.after(after)
        return found


def record_unreadable(events: EventLog, subject: str, why: str) -> None:
    """Record that the store or one deployment cannot be read, or, if ``why`` is empty, that it can be read again."""
    lost, back = (
        ("StoreUnavailable", "StoreRecovered") if subject == "store" else ("DeploymentUnreadable", "DeploymentReadable")
    )
    if why:
        events.add("Warning", lost, subject, f"{why}; active models keep running, and reading is retried")
    else:
        events.add("Normal", back, subject, "it can be read again")
