"""Locks that end with their holder: it renews them, and its silence releases them."""

import threading
import time

from controlplane.servers.agent_protocol import Lock, Result


class Locks:
    """The locks of one agent, in its memory. Thread-safe. After a restart, a renewal takes a lock again."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[str, tuple[str, float]] = {}

    def handle(self, message: Lock) -> Result:
        """Grant, renew or release a lock."""
        now = time.monotonic()
        with self._guard:
            owner, until = self._held.get(message.name, ("", 0.0))
            if owner != message.owner and until > now:
                return Result(granted=False)
            if message.seconds == 0:
                self._held.pop(message.name, None)
                return Result(granted=False)
            self._held[message.name] = (message.owner, now + message.seconds)
            return Result(granted=True)
