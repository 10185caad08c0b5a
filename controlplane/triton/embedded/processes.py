"""The processes of each model, read from /proc because Triton's API does not report them."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

_INSTANCE_ARGUMENT = 8
"""Position of the instance's name in a stub's command line (Python backend of Triton 2.51)."""


def children_of(pid: int) -> list[int]:
    """Return the process ids of the direct children, of all the process's threads."""
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children.extend(int(child) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # the process ended during the read
    return children


def server_process(pid: int, binary: Path) -> int | None:
    """Return the process that runs a program: ``pid``, or a descendant if a sandbox starts the program."""
    wanted = os.fsencode(binary)
    while True:
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0", 1)[0] == wanted:
                return pid
        except (FileNotFoundError, ProcessLookupError):
            return None
        children = children_of(pid)
        if not children:
            return None
        pid = children[0]


def model_processes(server: int, repository: Path, model: str, version: int | None) -> list[int]:
    """Return the process ids of a model's instances among the children of a server.

    The Python backend starts each instance as ``stub <repository>/<model>/<version>/<file> …``.
    """
    folder = repository / model if version is None else repository / model / str(version)
    prefix = f"{folder}/".encode()
    found = []
    for pid in children_of(server):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(arguments) > 1 and arguments[1].startswith(prefix):
            found.append(pid)
    return found


@dataclass(frozen=True, slots=True)
class InstanceMemory:
    """Resident memory of the processes of one version.

    Attributes:
        processes: Number of processes.
        resident_bytes: Current value; pages that processes share, mainly libraries, count for each of them.
        peak_bytes: The sum of each process's peak since its start.
        started: Start time of each process, in seconds since the machine's start (`since_boot`), to a hundredth.
        pids: The process ids.
    """

    processes: int
    resident_bytes: int
    peak_bytes: int
    started: tuple[float, ...] = ()
    pids: tuple[int, ...] = ()


def instance_memory(server: int, repository: Path) -> dict[tuple[str, int], InstanceMemory]:
    """Return the memory of every model instance of a server, by Triton name and version.

    A model that was loaded with its files in the request (``file:``) is in a folder whose path does not contain its
    name. It is identified by the name of its instance group: the model's name, or that and a number, unless its
    configuration says otherwise.
    """
    prefix = f"{repository}/".encode()
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[tuple[str, int], InstanceMemory] = {}
    for pid in children_of(server):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            status = Path(f"/proc/{pid}/status").read_text()
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(arguments) < 2:
            continue
        if arguments[1].startswith(prefix):
            name, _, rest = arguments[1][len(prefix) :].decode(errors="replace").partition("/")
            version = rest.partition("/")[0]
        else:
            name, version = _brought(arguments)
        if not version.isdigit():
            continue
        key = (name, int(version))
        before = found.get(key, InstanceMemory(0, 0, 0))
        found[key] = InstanceMemory(
            before.processes + 1,
            before.resident_bytes + _status_bytes(status, "VmRSS"),
            before.peak_bytes + _status_bytes(status, "VmHWM"),
            (*before.started, int(_fields(stat)[19]) / ticks),
            (*before.pids, pid),
        )
    return found


def _brought(arguments: list[bytes]) -> tuple[str, str]:
    """Return the instance group and the version of a stub outside the repository; empty if it is not a stub."""
    if not arguments[0].endswith(b"/triton_python_backend_stub") or len(arguments) <= _INSTANCE_ARGUMENT:
        return "", ""
    name = arguments[_INSTANCE_ARGUMENT].decode(errors="replace").rpartition("_")[0]
    return name, Path(arguments[1].decode(errors="replace")).parent.name


def instance_cpu_seconds(server: int, repository: Path) -> dict[tuple[str, int], float]:
    """Return the CPU time that the instances of a server have used, by Triton name and version.

    From ``utime`` and ``stime`` of ``/proc/PID/stat`` (proc(5)), in clock ticks.
    """
    prefix = f"{repository}/".encode()
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[tuple[str, int], float] = {}
    for pid in children_of(server):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(arguments) < 2 or not arguments[1].startswith(prefix):
            continue
        name, _, rest = arguments[1][len(prefix) :].decode(errors="replace").partition("/")
        version = rest.partition("/")[0]
        fields = _fields(stat)
        if version.isdigit():
            key = (name, int(version))
            found[key] = found.get(key, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
    return found


def since_boot() -> float:
    """Return the seconds since the machine started, on the clock that the kernel uses for process start times."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _fields(stat: str) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the third on; the name before may contain blanks and brackets."""
    return stat.rpartition(")")[2].split()


_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or a device",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "a zombie",
}


def process_state(pid: int) -> str:
    """Return the state of a process according to the kernel (proc(5)); empty if it does not exist."""
    try:
        letter = _fields(Path(f"/proc/{pid}/stat").read_text())[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return ""
    return _STATES.get(letter, letter)


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory; 0 if it does not exist."""
    try:
        return _status_bytes(Path(f"/proc/{pid}/status").read_text(), "VmRSS")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _status_bytes(status: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
