"""Queueing time of requests in Triton, by model over all servers, from Triton's own counters. Mutable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.placement.autoscale import Window
from controlplane.triton.statistics import VersionCounters, VersionKey


@dataclass
class _Sum:
    requests: int = 0
    queue_seconds: float = 0.0


@dataclass
class QueuePressure:
    """Sums the growth of the counters until the end of each window."""

    _before: dict[tuple[str, VersionKey], VersionCounters] = field(default_factory=dict)
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _since: datetime | None = None
    total_seconds: dict[str, float] = field(default_factory=dict)
    """Queueing time of all requests so far, by server."""

    def take(self, server: str, counters: Mapping[VersionKey, VersionCounters]) -> None:
        """Apply a server's newest counters. The counters of a version restart at zero when it is loaded again."""
        for key, now in counters.items():
            before = self._before.get((server, key))
            self._before[server, key] = now
            if before is None:
                continue  # earlier requests say nothing about the present window
            if now.requests < before.requests:
                before = VersionCounters(0, None, 0.0)
            total = self._sums.setdefault(key[0], _Sum())
            total.requests += now.requests - before.requests
            waited = max(now.queue_seconds - before.queue_seconds, 0.0)
            total.queue_seconds += waited
            self.total_seconds[server] = self.total_seconds.get(server, 0.0) + waited

    def windows(self, now: datetime, seconds: float) -> dict[str, Window] | None:
        """Return the window that ends now, by model, and begin the next; None if the window has not ended.

        A model that is missing in the result received no requests.
        """
        if self._since is None:
            self._since = now
            self._sums.clear()
            return None
        length = (now - self._since).total_seconds()
        if length < seconds:
            return None
        found = {model: Window(one.requests, one.queue_seconds, length) for model, one in self._sums.items()}
        self._sums.clear()
        self._since = now
        return found
