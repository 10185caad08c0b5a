"""Starting and stopping the servers that tests need."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tied_to_us(command: Sequence[str]) -> list[str]:
    """Return the command, changed so that it ends with the test run, even if that is killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, *, stop_timeout: float = 30) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the foreground with its output in ``log``; ask it to stop at the end, and wait for that."""
    with log.open("ab") as output:
        process = subprocess.Popen(tied_to_us(command), stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(stop_timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, timeout: float = 60) -> None:
    """Wait until a server reports that it is ready; show its log if it fails to start."""
    end = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            what = "ended" if process.poll() is not None else "was not ready in time"
            raise RuntimeError(f"{process.args!r} {what}:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)


def listening(port: int) -> bool:
    """Whether something accepts connections on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
