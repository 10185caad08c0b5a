"""Reads the host's memory: the machine's, or the container's limit if it is less."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.cgroup import memory_levels

_LOAD_SECONDS = 0.5
"""Minimum core-seconds between two measurements, because the kernel counts in hundredths of a second."""

Processes = Callable[[], Iterable[int]]
"""Returns process ids; called at each reading."""


class HostSource:
    """Reads the memory that processes on the CPU can use.

    The total is the minimum of the machine's memory and the limits of all control groups of this process. The used
    memory is the total less the available memory; if a container's limit allows more than the machine has available,
    the machine's value counts. Page cache that the kernel reclaims under pressure counts as available.

    Args:
        processes: Process ids of the server and its models, to report the bytes of each; None omits them.
        contained: Whether the limits of this process's control groups apply. They do not for a server that runs in
            another container.
        root: The folder that contains ``proc/self`` and the control groups.
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
        """Do nothing: the source holds no resources."""


class _Load:
    """The utilisation of all cores together since the previous reading.

    `psutil.cpu_percent` is not used because it stores the previous reading for each thread, and readings come from many
    threads of a pool.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy, self._total = _cpu_seconds()
        self._share: float | None = None

    def share(self) -> float | None:
        """Return the utilisation, 0 to 1; None until enough time has passed to compute it."""
        with self._lock:
            busy, total = _cpu_seconds()
            if total - self._total >= _LOAD_SECONDS:
                self._share = min(max((busy - self._busy) / (total - self._total), 0.0), 1.0)
                self._busy, self._total = busy, total
            return self._share


def _cpu_seconds() -> tuple[float, float]:
    """Return the busy seconds and the total seconds of all cores since the machine was started."""
    times = psutil.cpu_times()
    # User time already includes the time of guests; a core that waits for a disk is not busy.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def resident_bytes(pids: Iterable[int]) -> dict[int, int]:
    """Return the resident memory of processes; processes that have ended are left out.

    Pages that several processes share, mainly of libraries, count for each of them: the sum is never too low.
    """
    found = {}
    for pid in pids:
        try:
            found[pid] = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return found
