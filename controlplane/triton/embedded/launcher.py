r"""Runs one server (Triton or HAProxy) and ends it, with all its processes, when the parent dies or requests it.

The command may be bubblewrap's, which starts the server in separate namespaces; signals go to the server itself.

This is a separate program, run as ``python -I launcher.py STOP_SECONDS SHM_PREFIX COMMAND…``. Its stdin is one end of a
pipe. The kernel closes the other end when the parent dies for any reason, so no parent can leave a server behind. The
launcher has one thread, so that ``PR_SET_PDEATHSIG`` (which fires when the creating *thread* ends, see prctl(2)) is
safe to use: the server dies with the launcher. As a child subreaper it inherits the stubs of a killed server and can
wait for their end, and it removes the shared memory they leave in ``/dev/shm``.

Input from the parent: ``stop\n`` requests SIGTERM and a deadline; end of file without it means an immediate kill.
Exit status: that of the server, or 128 + n if signal n ended it.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_POLL_MILLISECONDS = 50


def main(arguments: list[str]) -> int:
    """Run the server until it ends, the parent requests its end, or the parent dies."""
    stop_seconds, shm_prefix, command = float(arguments[0]), arguments[1], arguments[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Ctrl-C reaches the whole foreground group; the parent decides what happens next, through the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    # The descriptors that the parent passed on belong to the server: sockets that outlive it. Python's own files are
    # never inherited.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare, close_fds=False) as server:
        _supervise(server, stop_seconds)
        _end_group()
        _reap(deadline=time.monotonic() + 5.0)
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):
        if region.is_dir() and not region.is_symlink():
            shutil.rmtree(region, ignore_errors=True)
        else:
            region.unlink(missing_ok=True)
    return 128 - server.returncode if server.returncode < 0 else server.returncode


def _supervise(server: "subprocess.Popen[bytes]", stop_seconds: float) -> None:
    """Wait until the server has ended; stop or kill it on request."""
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    deadline: float | None = None
    while server.poll() is None:
        events = poller.poll(_POLL_MILLISECONDS)
        if events:
            asked = os.read(0, 64)
            poller.unregister(0) if not asked else None
            if asked and deadline is None:
                _signal(server, signal.SIGTERM)
                deadline = time.monotonic() + stop_seconds
            elif not asked and deadline is None:
                server.kill()
        if deadline is not None and time.monotonic() > deadline:
            server.kill()
            deadline = float("inf")


def _signal(server: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to the server, below bubblewrap's two processes, which do not forward signals.

    A kill goes to bubblewrap itself instead: the kernel then ends all processes in its namespaces.
    """
    pid = server.pid
    try:
        while Path(f"/proc/{pid}/comm").read_text().strip() == "bwrap":
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if not children:
                break  # bubblewrap is about to start the server, or to end
            pid = int(children[0])
        os.kill(pid, number)
    except (FileNotFoundError, ProcessLookupError):
        return


def _end_group() -> None:
    """Kill all other processes of the process group."""
    for pid in _members():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _members() -> list[int]:
    group, own, found = os.getpgid(0), os.getpid(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != own:
            try:
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def _reap(deadline: float) -> None:
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
