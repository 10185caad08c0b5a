"""The host's memory: the machine's, or the container's where that is less."""

from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.cgroup import memory_levels

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
                # Of all cores since the reading before; the first has nothing to compare with and says 0.
                utilisation=psutil.cpu_percent(interval=None) / 100,
            ),
        )

    def close(self) -> None:
        """Nothing is held."""


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
