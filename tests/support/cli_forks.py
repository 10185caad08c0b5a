"""Runs `tritonctl` as processes that are forked from one that has imported it, which saves the start of an interpreter.

A test process starts one server (`Forks`). For each command the server forks a process with the command's own
arguments, environment, folder and files, and sends back its exit status.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_IMPORTED = (
    "controlplane.cli.main",
    *("controlplane.cli.views.deployment", "controlplane.cli.views.health", "controlplane.cli.views.version"),
    *("controlplane.cli.workflows.deploy", "controlplane.cli.workflows.infer", "controlplane.cli.workflows.push"),
    *("controlplane.cli.workflows.upload", "httpx", "rich.progress", "rich.table"),
)
"""What most commands import."""
_LENGTH = struct.Struct("!I")
_PID = struct.Struct("!i")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Forks:
    """A server process that forks commands."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = str(Path(self._folder.name) / "s")
        command = [sys.executable, "-m", "tests.support.cli_forks", self._path]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End the server; it ends when its standard input is closed."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(30)
        self._folder.cleanup()

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str | None, timeout: float
    ) -> Ended:
        """Run a command to its end.

        Raises:
            subprocess.TimeoutExpired: It did not end in time; it was killed.
        """
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write((stdin or "").encode())
            files[0].seek(0)
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(self._path)
            connection.settimeout(timeout)
            request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
            socket.send_fds(connection, [_LENGTH.pack(len(request))], [file.fileno() for file in files])
            connection.sendall(request)
            (pid,) = _PID.unpack(_receive(connection, _PID.size))
            try:
                (code,) = _PID.unpack(_receive(connection, _PID.size))
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), timeout) from None
            texts = []
            for file in files[1:]:
                file.seek(0)
                texts.append(file.read().decode())
            return Ended(code, *texts)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionError("the server of forked commands ended")
        parts += part
    return parts


def _serve(path: str) -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _handle(connection)
        connection.close()


def _handle(connection: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    request = json.loads(_receive(connection, _LENGTH.unpack(head)[0]))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _command(request, fds)
    connection.sendall(_PID.pack(pid))
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # the caller gave up
        connection.sendall(_PID.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _command(request: Any, fds: Sequence[int]) -> NoReturn:
    """Run the command as a new interpreter would, and end this process."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["tritonctl", *request["arguments"]]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    code: Any = 1
    try:
        from controlplane.cli.main import main

        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - as an interpreter ends
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    _serve(sys.argv[1])
