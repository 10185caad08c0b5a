"""The host's memory: the machine's, or the container's where that is less."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.cgroup import memory_levels

_LOAD_SECONDS = 0.5
"""Core-seconds that make a figure: the kernel counts in hundredths."""

Processes = Callable[[], Iterable[int]]
"""Gives process ids; called at each reading."""


class HostSource:
    """Reads the memory that processes on the CPU can have.

    The total is the least of the machine's memory and the limits of all control groups above this process. What is
    used is the total less what can still be had: where a container's limit leaves room that the machine has not, the
    machine's room counts. Page cache that the kernel takes back when it needs room counts as free.

    Args:
        processes: Process ids of the server and its models, for the bytes of each; None leaves them out.
        contained: Whether the limits of this process's control groups count. They do not for a server that runs in
            another container.
        root: Where ``proc/self`` and the control groups are looked for.
    """

    def __init__(self, processes: Processes | None = None, *, contained: bool = True, root: Path = Path("/")) -> None:
        self._processes = processes
        self._contained = contained
        self._root = root
        self._load = _Load()

    def read(self) -> tuple[DeviceReading, ...]:
        """Return the one device ``host``."""
        machine = psutil.virtual_memory()
        total, free = machine.total, machine.available
        for level in memory_levels(self._root) if self._contained else ():
            total = min(total, level.limit_bytes)
            free = min(free, level.free_bytes)
        return (
            DeviceReading(
                name=HOST,
                kind=DeviceKind.HOST,
                total_bytes=total,
                used_bytes=total - min(free, total),
                processes=None if self._processes is None else resident_bytes(self._processes()),
                utilisation=self._load.share(),
            ),
        )

    def close(self) -> None:
        """Nothing is held."""


class _Load:
    """The share of the time that all cores together work, since the reading before.

    Not `psutil.cpu_percent`: it remembers the reading before by thread, and a pool's threads are many.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy, self._total = _cpu_seconds()
        self._share: float | None = None

    def share(self) -> float | None:
        """Return it; None until there was time enough to tell."""
        with self._lock:
            busy, total = _cpu_seconds()
            if total - self._total >= _LOAD_SECONDS:
                self._share = min(max((busy - self._busy) / (total - self._total), 0.0), 1.0)
                self._busy, self._total = busy, total
            return self._share


def _cpu_seconds() -> tuple[float, float]:
    """Return the seconds that all cores worked, and all their seconds, since the machine was started."""
    times = psutil.cpu_times()
    # Guests' time is in the user's time already; a core that waits for a disk does not work.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def resident_bytes(pids: Iterable[int]) -> dict[int, int]:
    """Return the resident memory of processes; one that ended meanwhile is left out.

    Pages that several processes share, libraries above all, count for each of them: the sum is never too low.
    """
    found = {}
    for pid in pids:
        try:
            found[pid] = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return found
