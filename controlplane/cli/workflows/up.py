"""Starts and stops a control plane, in this process or in the background."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from controlplane.cli.output import Output
from controlplane.cli.progress import waiting
from controlplane.cli.session import Session
from controlplane.client.discovery import LOG_NAME, RECORD_NAME, UpRecord, is_locked
from controlplane.client.errors import ChildFailedError, NotRunningError, WaitTimeoutError
from controlplane.errors import ConflictError
from controlplane.folders import make_private
from controlplane.logformat import JsonFormatter, LineFormatter
from controlplane.settings import Settings

_POLL_SECONDS = 0.05


def run_here(session: Session, settings: Settings) -> None:
    """Run the control plane in this process until it is asked to stop."""
    from controlplane import process

    out = session.out()

    def ready(record: Mapping[str, object]) -> None:
        out.result(record)
        what = "gateway" if settings.role == "gateway" else "control plane"
        out.line(f"the {what} is up at {record['url']} (data in {settings.data_dir})", style="green")
        for server in record["servers"] if isinstance(record["servers"], list) else ():
            out.line(f"Triton {server['name']}: gRPC {server['grpc_url']}, HTTP {server['http_url']}")
        if isinstance(gateway := record.get("gateway"), Mapping):
            out.line(f"gateway: HTTP {gateway['http_url']}, gRPC {gateway['grpc_url']}")
        _print_warning(out, str(record.get("warning", "")))
        out.line("stop it with Ctrl-C or `tritonctl down`")

    log_to_stderr(settings)
    process.run(settings, on_ready=ready)


def log_to_stderr(settings: Settings) -> None:
    """Log to stderr as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else LineFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # At level info, these log one line for each request.
    for noisy in ("httpx", "httpcore", "botocore", "urllib3", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    for module, level in settings.log_levels.items():
        logging.getLogger(module).setLevel(level.upper())


def log_tail(path: Path, lines: int = 15, *, start: int = 0) -> str:
    """Return the end of a log file, considering only the text after byte ``start``."""
    try:
        return "\n".join(path.read_bytes()[start:].decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


def start_detached(session: Session, data_dir: Path, options: Mapping[str, object], timeout: float) -> None:
    """Start `up` with these options in the background, and return when it is ready.

    Raises:
        ConflictError: One is running already.
        ChildFailedError: It did not start; the message has the end of its log.
        WaitTimeoutError: It is not ready in time; it is stopped.
    """
    out = session.out()
    if (running := UpRecord.read(data_dir)) is not None:
        raise ConflictError(
            f"tritonctl up is already running at {running.url} (process {running.pid}) with the data folder {data_dir}",
            url=running.url,
        )
    make_private(data_dir)
    if not is_locked(data_dir):
        (data_dir / RECORD_NAME).unlink(missing_ok=True)  # left by one that was killed
    log = data_dir / LOG_NAME
    arguments = ["up", f"--data-dir={data_dir}"]
    arguments += [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value is not None
    ]
    with log.open("ab") as sink:
        start = sink.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "controlplane.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        record = _await_record(process, data_dir, timeout, log, start, out)
    except KeyboardInterrupt:
        _end(process)
        raise
    out.result(record)
    out.line(f"tritonctl is up at {record.url} (process {record.pid}, log in {log})", style="green")
    _print_warning(out, record.warning)
    out.line("stop it with `tritonctl down`")


def _print_warning(out: Output, warning: str) -> None:
    if warning:
        out.line(f"warning: {warning}", style="yellow")


def _await_record(
    process: subprocess.Popen[bytes], data_dir: Path, timeout: float, log: Path, start: int, out: Output
) -> UpRecord:
    deadline = time.monotonic() + timeout
    with waiting(out, "starting Triton and the control plane"):
        while (record := UpRecord.read(data_dir)) is None or record.pid != process.pid:
            if process.poll() is not None:
                raise ChildFailedError(
                    f"tritonctl up did not start; the end of {log}:\n{log_tail(log, start=start)}",
                    status=process.returncode,
                    log=str(log),
                )
            if time.monotonic() > deadline:
                _end(process)
                raise WaitTimeoutError(f"tritonctl up was not ready within {timeout:g} s; see {log}", log=str(log))
            time.sleep(_POLL_SECONDS)
    return record


def stop(session: Session, data_dir: Path, timeout: float) -> None:
    """Ask the running `up` to stop, and wait until it has stopped.

    Raises:
        NotRunningError: No `up` is running.
        WaitTimeoutError: It does not end in time.
    """
    out = session.out()
    record = UpRecord.read(data_dir)
    if record is None:
        if is_locked(data_dir):
            raise ConflictError(f"the tritonctl up of {data_dir} is starting or stopping; try again in a few seconds")
        raise NotRunningError(f"no tritonctl up is running with the data folder {data_dir}")
    deadline = time.monotonic() + timeout
    os.kill(record.pid, signal.SIGTERM)
    with waiting(out, f"stopping process {record.pid}"):
        # The process holds the lock until it ends, which is after its Triton has ended.
        while is_locked(data_dir):
            if time.monotonic() > deadline:
                raise WaitTimeoutError(
                    f"process {record.pid} did not stop within {timeout:g} s; see {data_dir / LOG_NAME}, or end it "
                    f"with `kill -9 {record.pid}`",
                    pid=record.pid,
                )
            time.sleep(_POLL_SECONDS)
    out.result({"stopped": record.pid})
    out.line("tritonctl is down")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
