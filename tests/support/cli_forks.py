"""Runs `tritonctl` as processes that are forked from one that has imported it, which saves the start of an interpreter.

A test process starts a server of forks (`Forks`): one for short commands, and one for control planes, which import
much more. For each command the server forks a process with the command's own arguments, environment, folder and files,
and sends back its exit status. A forked process is killed when the test process ends.
"""

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

_COMMANDS = (
    "controlplane.cli.main",
    *("controlplane.cli.views.deployment", "controlplane.cli.views.health", "controlplane.cli.views.version"),
    *("controlplane.cli.workflows.deploy", "controlplane.cli.workflows.infer", "controlplane.cli.workflows.push"),
    *("controlplane.cli.workflows.upload", "httpx", "rich.progress", "rich.table"),
)
"""What most commands import."""
_CONTROL_PLANES = ("controlplane.cli.main", "controlplane.cli.workflows.up", "controlplane.process")
"""What `up` and `serve` import."""
_LENGTH = struct.Struct("!I")
_PID = struct.Struct("!i")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Forked:
    """A process that was forked for a command, with the interface of `subprocess.Popen`.

    Attributes:
        pid: Its process id.
        returncode: Its exit status; negative is the number of the signal that ended it, None means it runs.
    """

    def __init__(self, connection: socket.socket, pid: int, stdout: IO[str] | None = None) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = stdout
        self._connection = connection

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                (self.returncode,) = _PID.unpack(_receive(self._connection, _PID.size))
            except TimeoutError:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return the output of the process, once it has ended."""
        text: list[str] = []
        if (stdout := self.stdout) is not None and not stdout.closed:
            reader = threading.Thread(target=lambda: text.append(stdout.read()))
            reader.start()
            self.wait(timeout)
            reader.join()
            stdout.close()
        else:
            self.wait(timeout)
        return "".join(text), None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """A server process that forks commands.

    Args:
        imported: Modules that the server imports before it forks.
    """

    def __init__(self, imported: Sequence[str] = _COMMANDS) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = str(Path(self._folder.name) / "s")
        command = [sys.executable, "-m", "tests.support.cli_forks", self._path, *imported]
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

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        output: IO[str] | None = None,
    ) -> Forked:
        """Start a command.

        Args:
            arguments: Its words.
            cwd: Its folder.
            env: Its environment.
            stdin: Descriptor of its standard input.
            stdout: Descriptor of its standard output.
            stderr: Descriptor of its standard error.
            output: The other end of its standard output, if that is a pipe.
        """
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._path)
            connection.settimeout(120)
            request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
            socket.send_fds(connection, [_LENGTH.pack(len(request))], [stdin, stdout, stderr])
            connection.sendall(request)
            (pid,) = _PID.unpack(_receive(connection, _PID.size))
        except BaseException:
            connection.close()
            raise
        return Forked(connection, pid, output)

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
            given, out, err = (file.fileno() for file in files)
            process = self.start(arguments, cwd=cwd, env=env, stdin=given, stdout=out, stderr=err)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            texts = []
            for file in files[1:]:
                file.seek(0)
                texts.append(file.read().decode())
            return Ended(code, *texts)


@cache
def commands() -> Forks:
    """Return this process's server of short commands."""
    return _closed_at_exit(Forks())


@cache
def control_planes() -> Forks:
    """Return this process's server of control planes: `up` and `serve`."""
    return _closed_at_exit(Forks(_CONTROL_PLANES))


def _closed_at_exit(forks: Forks) -> Forks:
    atexit.register(forks.close)
    return forks


def start_control_plane(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path | None = None
) -> Forked:
    """Start `up` or `serve`.

    Args:
        arguments: Its words.
        cwd: Its folder.
        env: Its environment.
        log: File that its output is added to; None: the test's own output.
    """
    with contextlib.ExitStack() as stack:
        nothing = stack.enter_context(open(os.devnull, "rb")).fileno()  # noqa: PTH123
        out, err = (1, 2) if log is None else (stack.enter_context(log.open("ab")).fileno(),) * 2
        return control_planes().start(arguments, cwd=cwd, env=env, stdin=nothing, stdout=out, stderr=err)


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionError("the server of forked commands ended")
        parts += part
    return parts


def _serve(path: str, imported: Sequence[str]) -> None:
    for name in imported:
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
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, connection.fileno()], [], [])
    if ended not in ready:  # the caller has ended
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # the caller gave up
        connection.sendall(_PID.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _command(request: Any, fds: Sequence[int]) -> NoReturn:
    """Run the command as a new interpreter would, and end this process."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["tritonctl", *request["arguments"]]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    code: Any = 1
    try:
        os.chdir(request["cwd"])
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
    _serve(sys.argv[1], sys.argv[2:])
