r"""Runs HAProxy, and lets it outlive a control plane that was killed, until the next one takes over.

A separate program, run in the gateway's folder as ``python -I launcher.py STOP LINGER COUNT FD… COMMAND…``. Its stdin
is one end of a pipe; the kernel closes the other end when the control plane dies, whatever the cause.

* The control plane writes ``stop\n``: the launcher sends SIGTERM, and SIGKILL after STOP seconds.
* It writes ``finish\n``: HAProxy accepts no more connections, finishes the requests in flight, and ends.
* End of file without either: HAProxy continues for at most LINGER seconds. A process that connects to
  ``handover.sock`` in that time gets the listening sockets (COUNT descriptors, in order); once it writes ``retire\n``,
  HAProxy accepts no more connections, finishes the requests in flight within STOP seconds, and ends.

Except after ``finish\n``, the listening sockets stay open throughout, so clients see no refused connection. The exit
status is that of HAProxy, or 128 + n if signal n ended it.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
HANDOVER = "handover.sock"
_POLL_SECONDS = 0.05


def main(arguments: list[str]) -> int:
    """Run HAProxy until it ends or must be ended; return the exit status."""
    stop_seconds, linger_seconds, count = float(arguments[0]), float(arguments[1]), int(arguments[2])
    listeners, command = [int(fd) for fd in arguments[3 : 3 + count]], arguments[3 + count :]
    libc = ctypes.CDLL(None, use_errno=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    # HAProxy inherits the listening sockets; files that Python opened are never inherited.
    with (
        _handover() as handover,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare, close_fds=False) as haproxy,
    ):
        if _parent_is_gone(haproxy, listeners, stop_seconds):
            _linger(haproxy, handover, listeners, stop_seconds, linger_seconds)
        haproxy.wait()
    return 128 - haproxy.returncode if haproxy.returncode < 0 else haproxy.returncode


def _parent_is_gone(haproxy: "subprocess.Popen[bytes]", listeners: list[int], stop_seconds: float) -> bool:
    """Return True when the control plane died, False when HAProxy has ended."""
    finishing = False
    while haproxy.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if not readable:
            continue
        word = os.read(0, 64)
        if not word and not finishing:
            return True
        if word == b"finish\n":
            finishing = True
            for listener in listeners:  # else connections would wait here for an HAProxy that accepts none
                os.close(listener)
            haproxy.send_signal(signal.SIGUSR1)
            continue
        haproxy.terminate()
        _wait_or_kill(haproxy, stop_seconds)
    return False


def _linger(
    haproxy: "subprocess.Popen[bytes]",
    handover: socket.socket,
    listeners: list[int],
    stop_seconds: float,
    linger_seconds: float,
) -> None:
    end = time.monotonic() + linger_seconds
    while haproxy.poll() is None and time.monotonic() < end:
        readable, _, _ = select.select([handover], [], [], _POLL_SECONDS)
        if not readable:
            continue
        with contextlib.suppress(OSError), handover.accept()[0] as successor:
            successor.settimeout(max(0.1, end - time.monotonic()))
            socket.send_fds(successor, [b"\n"], listeners)
            # If a successor dies before it writes, HAProxy is left to the next one.
            if successor.recv(64):
                haproxy.send_signal(signal.SIGUSR1)
                break
    else:
        haproxy.kill()
    _wait_or_kill(haproxy, stop_seconds)


def _wait_or_kill(haproxy: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        haproxy.wait(seconds)
    except subprocess.TimeoutExpired:
        haproxy.kill()


def _handover() -> socket.socket:
    """Listen for the successor; only the owner can access the folder and the socket."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(HANDOVER)  # noqa: PTH108 - one system call, in the folder we were started in
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(HANDOVER)
    finally:
        os.umask(before)
    listener.listen(8)
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
