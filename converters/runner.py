"""Execution of jobs in separate processes, with limits on their time and memory.

A converter reads untrusted files with C++ parsers, may use any amount of memory, and may crash. It therefore runs in a
worker process, and a crash of the worker becomes an error message here.
"""

import dataclasses
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import psutil

import converters
from controlplane import errors
from controlplane.domain.samples import decode_samples, encode_samples
from controlplane.errors import ControlPlaneError, ConversionFailedError
from controlplane.sandbox import Sandbox, View, find_sandbox
from converters.jobs import (
    DEFAULT_MEMORY_BYTES,
    DEFAULT_TIMEOUT_SECONDS,
    ConversionResult,
    ConvertJob,
    Inspection,
    InspectJob,
    Job,
    RecordJob,
    RecordResult,
    ValidateJob,
    ValidationReport,
    WorkerEvent,
    WorkerResult,
)
from converters.results import read_result
from converters.worker_output import BoundedLog, how_it_died, read_own

logger = logging.getLogger(__name__)

_ROOT = Path(converters.__file__).resolve().parent.parent
POLL_SECONDS = 0.05
MAX_RESULT_BYTES = 64 * 1024**2
MAX_EVENT_LINE_BYTES = 64 * 1024

# The worker runs code that comes with models. It gets the variables that Python and the runtimes need, no credentials.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "2")


@overload
def run_worker(
    job: InspectJob,
    *,
    timeout_seconds: float = ...,
    memory_bytes: int = ...,
    on_event: Callable[[WorkerEvent], None] = ...,
    cancel: threading.Event | None = ...,
    work_root: Path | None = ...,
    sandbox: Sandbox | None = ...,
) -> Inspection: ...
@overload
def run_worker(
    job: ConvertJob,
    *,
    timeout_seconds: float = ...,
    memory_bytes: int = ...,
    on_event: Callable[[WorkerEvent], None] = ...,
    cancel: threading.Event | None = ...,
    work_root: Path | None = ...,
    sandbox: Sandbox | None = ...,
) -> ConversionResult: ...
@overload
def run_worker(
    job: RecordJob,
    *,
    timeout_seconds: float = ...,
    memory_bytes: int = ...,
    on_event: Callable[[WorkerEvent], None] = ...,
    cancel: threading.Event | None = ...,
    work_root: Path | None = ...,
    sandbox: Sandbox | None = ...,
) -> RecordResult: ...
@overload
def run_worker(
    job: ValidateJob,
    *,
    timeout_seconds: float = ...,
    memory_bytes: int = ...,
    on_event: Callable[[WorkerEvent], None] = ...,
    cancel: threading.Event | None = ...,
    work_root: Path | None = ...,
    sandbox: Sandbox | None = ...,
) -> ValidationReport: ...
def run_worker(
    job: Job,
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    on_event: Callable[[WorkerEvent], None] = lambda _event: None,
    cancel: threading.Event | None = None,
    work_root: Path | None = None,
    sandbox: Sandbox | None = None,
) -> WorkerResult:
    """Run a job in a worker process and wait for it.

    This function blocks; asyncio code calls it with ``asyncio.to_thread``. The calling thread must live until the
    function returns, because the kernel kills the worker when that thread ends.

    Args:
        job: The job to run.
        timeout_seconds: Wall-clock limit; after it, the worker's whole process group is killed.
        memory_bytes: Limit on the resident memory of the worker and its children, checked every 50 ms.
        on_event: Called in this thread with each progress event.
        cancel: Set by another thread to kill the worker.
        work_root: Parent of the worker's temporary folder; None uses the system's default.
        sandbox: How to confine the worker; None confines it as far as this machine supports.

    Raises:
        ControlPlaneError: The error that the job raised, with the end of the worker's log in ``details["log"]``.
        ConversionFailedError: The worker was killed (by a limit, a signal, a crash) or cancelled.
    """
    folder = Path(tempfile.mkdtemp(prefix="converter-", dir=work_root))
    try:
        sandbox = sandbox or find_sandbox()
        return _Worker(job, folder, timeout_seconds, memory_bytes, on_event, cancel, sandbox).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Worker:
    """One worker process, from its start to its result."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        timeout_seconds: float,
        memory_bytes: int,
        on_event: Callable[[WorkerEvent], None],
        cancel: threading.Event | None,
        sandbox: Sandbox,
    ) -> None:
        self._job = job
        self._sandbox = sandbox
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._on_event = on_event
        self._cancel = cancel
        self._log = BoundedLog()
        self._lines = b""
        self._stage = "start"
        self._peak_bytes = 0

    def run(self) -> WorkerResult:
        self._prepare()
        started = time.monotonic()
        with self._process() as (process, events):
            reason = self._supervise(process, events, started + self._timeout_seconds)
        # The status is known only now: leaving the block kills the worker and its children, and waits for the worker.
        status = process.returncode
        seconds = time.monotonic() - started
        if reason is not None:
            raise self._failed(reason)
        document = self._document()
        if document is None:
            # bubblewrap exits with status 128 + n if signal n ended the worker.
            signalled = self._sandbox.confines and status > 128
            raise self._failed(how_it_died(128 - status if signalled else status))
        logger.debug("worker for %s ended in %.2f s, peak %d bytes", self._job.kind, seconds, self._peak_bytes)
        if "error" in document:
            raise self._error(document["error"])
        golden = read_own(self._folder / "golden.npz")
        samples = decode_samples(golden) if golden is not None else ()
        try:
            result = read_result(self._job, document["result"], samples, self._log.text())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._failed("wrote an unreadable result") from error
        if isinstance(result, ConversionResult | RecordResult):
            return dataclasses.replace(result, seconds=seconds, peak_memory_bytes=self._peak_bytes)
        return result

    def _prepare(self) -> None:
        job = self._job = self._job.model_copy(update={"source": self._job.source.absolute()})
        own = [self._folder, self._folder / "tmp"]
        if isinstance(job, ConvertJob):
            job = self._job = job.model_copy(update={"output_dir": job.output_dir.absolute()})
            job.output_dir.mkdir(parents=True, exist_ok=True)
            own.append(job.output_dir)
        (self._folder / "tmp").mkdir()
        # The worker reads both files as another user.
        for name, content in (("job.json", job.model_dump_json().encode()), ("samples.npz", self._given())):
            if content:
                (self._folder / name).write_bytes(content)
                own.append(self._folder / name)
        self._sandbox.give(*own)

    def _given(self) -> bytes:
        samples = getattr(self._job, "samples", ())
        return encode_samples(samples) if samples else b""

    def _command(self, write_fd: int) -> list[str]:
        # In bubblewrap's process namespace, the parent of the worker is process 1.
        parent = 1 if self._sandbox.confines else os.getpid()
        program = [
            *(sys.executable, "-m", "converters.worker"),
            *(str(self._folder), str(write_fd), str(parent), str(self._memory_bytes)),
        ]
        read, write = [*_source_paths(), self._job.source], [self._folder]
        if isinstance(self._job, ConvertJob):
            write.append(self._job.output_dir)
        view = View(read=read, write=write, folder=self._folder / "tmp")
        return self._sandbox.command(program, view)

    @contextmanager
    def _process(self) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        read_fd, write_fd = os.pipe()
        try:
            try:
                process = subprocess.Popen(
                    self._command(write_fd),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder / "tmp",
                    env=_environment(self._folder),
                    pass_fds=(write_fd,),
                    start_new_session=True,
                )
            finally:
                os.close(write_fd)
            with process:
                try:
                    yield process, read_fd
                finally:
                    _kill_group(process)
        finally:
            os.close(read_fd)

    def _supervise(self, process: subprocess.Popen[bytes], events: int, deadline: float) -> str | None:
        """Read the worker's events and log until it ends; return why it was killed, or None."""
        assert process.stdout is not None
        watched = psutil.Process(process.pid)
        sources: dict[int, Callable[[bytes], None]] = {
            events: self._feed_events,
            process.stdout.fileno(): self._log.feed,
        }
        with selectors.DefaultSelector() as selector:
            for descriptor in sources:
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            next_look = 0.0
            ended = False
            while True:
                for key, _ in selector.select(0 if ended else POLL_SECONDS):
                    data = os.read(key.fd, 65536)
                    if data:
                        sources[key.fd](data)
                    else:
                        selector.unregister(key.fd)
                if ended:
                    return None
                now = time.monotonic()
                if now >= next_look:
                    self._peak_bytes = max(self._peak_bytes, resident := _tree_resident_bytes(watched))
                    next_look = now + POLL_SECONDS
                    if resident > self._memory_bytes:
                        return (
                            f"was killed: it used {_mib(resident)} of memory, and its limit is "
                            f"{_mib(self._memory_bytes)}"
                        )
                if now > deadline:
                    return f"was killed: it did not finish within {self._timeout_seconds:g} s"
                if self._cancel is not None and self._cancel.is_set():
                    return "was cancelled"
                # A grandchild may keep the pipes open, so only the end of the worker itself counts.
                ended = process.poll() is not None
                if not ended and not selector.get_map():
                    time.sleep(POLL_SECONDS)

    def _feed_events(self, data: bytes) -> None:
        *lines, self._lines = (self._lines + data).split(b"\n")
        self._lines = self._lines[-MAX_EVENT_LINE_BYTES:]
        for line in lines:
            try:
                raw = json.loads(line)
                fraction = raw["fraction"]
                event = WorkerEvent(
                    str(raw["stage"])[:64], str(raw["message"])[:500], None if fraction is None else float(fraction)
                )
            except (ValueError, KeyError, TypeError):
                continue  # the worker runs untrusted code; lines that are not events are ignored
            self._stage = event.stage
            self._on_event(event)

    def _document(self) -> dict[str, Any] | None:
        content = read_own(self._folder / "result.json", MAX_RESULT_BYTES)
        if content is None:
            return None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return None
        return document if isinstance(document, dict) else None

    def _failed(self, reason: str) -> ConversionFailedError:
        log = self._log.text()
        last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
        tail = f"; the end of its log: {last[:300]}" if last else ""
        return ConversionFailedError(
            f"the {self._job.kind} worker {reason} (stage {self._stage}){tail}",
            stage=self._stage,
            log=log[-8192:],
            peak_memory_bytes=self._peak_bytes,
        )

    def _error(self, raw: dict[str, Any]) -> ControlPlaneError:
        kind = getattr(errors, str(raw.get("type")), ConversionFailedError)
        if not (isinstance(kind, type) and issubclass(kind, ControlPlaneError)):
            kind = ConversionFailedError
        details = raw.get("details")
        return kind(
            str(raw.get("message")),
            **{**(details if isinstance(details, dict) else {}), "log": self._log.text()[-8192:]},
        )


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # `-m converters.worker` must find this same package, even if it was put on the path by hand, and the worker must
    # find a module factory where this process would find it.
    path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {
        **kept,
        **_THREADS,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",
        "HOME": str(folder / "tmp"),
        "TMPDIR": str(folder / "tmp"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _source_paths() -> list[Path]:
    """Return the paths of the packages that a worker runs, and the paths where it looks for factories."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    found = [_ROOT / "converters", _ROOT / "controlplane", *(Path(part) for part in named if part)]
    return [path for path in found if path.exists()]


def _tree_resident_bytes(process: psutil.Process) -> int:
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            try:
                total += member.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker and the processes that it started, which share its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"
