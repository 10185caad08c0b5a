"""Detects that the process did not run for a while: it was stopped (SIGSTOP), or the machine slept.

An unreachable store is no pause: the observed state of the servers stays valid, and requests continue. After a pause
nothing is valid, because other instances have acted in the meantime.
"""

import threading
from collections.abc import Callable

from controlplane.reconciler.leader_election import MARGIN, boot_time

_BEATS = 6
"""Beats of the thread per lease duration."""
_BEAT_MAX_SECONDS = 1.0


class PauseWatch:
    """Counts pauses that are longer than the lease. `count` may be read in any thread.

    Args:
        lease_seconds: The lease's duration.
        on_pause: Called after each pause, in the thread that first detected it.
        clock: A monotonic clock that advances while the process is stopped.
    """

    def __init__(
        self, lease_seconds: float, *, on_pause: Callable[[], None], clock: Callable[[], float] = boot_time
    ) -> None:
        self._limit = lease_seconds * MARGIN
        self._beat = min(lease_seconds / _BEATS, _BEAT_MAX_SECONDS)
        self._on_pause = on_pause
        self._clock = clock
        self._lock = threading.Lock()
        self._ran_at = clock()
        self._count = 0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def count(self) -> int:
        """The number of pauses so far, including one that ends with this call."""
        with self._lock:
            now = self._clock()
            paused = now - self._ran_at > self._limit
            self._ran_at = now
            self._count += paused
            count = self._count
        if paused:
            self._on_pause()
        return count

    def start(self) -> None:
        """Start watching."""
        self._ran_at = self._clock()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._watch, name="pauses", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._stopping.wait(self._beat):
            _ = self.count
