"""The process that runs conversions: ``python -m converters.worker FOLDER EVENTS_FD PARENT_PID MEMORY_BYTES``.

It reads ``job.json`` (and ``samples.npz``) from its folder, writes ``result.json`` (and ``golden.npz``) there, and
sends progress as JSON lines through a separate pipe, because converters may print anything to stdout.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from controlplane.domain.samples import decode_samples, encode_samples
from controlplane.errors import ControlPlaneError, ConversionFailedError
from converters.jobs import JOB, WorkerEvent
from converters.working import execute

ADDRESS_HEADROOM_BYTES = 2 * 1024**3
"""Memory that a process reserves without using it: thread stacks, allocator arenas."""
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run one job. The exit status is 0 even if the job fails, because the result reports the failure."""
    folder, events_fd, parent_pid, memory_bytes = Path(arguments[0]), *map(int, arguments[1:4])
    _die_with(parent_pid)
    _limit(memory_bytes)
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with os.fdopen(events_fd, "w", buffering=1, encoding="utf-8") as pipe:
        document = run(folder, _writer_to(pipe.write))
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(folder / "result.json")
    return 0


def run(folder: Path, emit: Callable[[WorkerEvent], None]) -> dict[str, object]:
    """Run the job in a folder and return its result document; a failure also gives a document."""
    try:
        job = JOB.validate_json((folder / "job.json").read_bytes())
        given = folder / "samples.npz"
        if given.exists():
            job = job.model_copy(update={"samples": decode_samples(given.read_bytes())})
        outcome = execute(job, emit)
        if outcome.samples:
            (folder / "golden.npz").write_bytes(encode_samples(outcome.samples))
    except ControlPlaneError as error:
        traceback.print_exc()
        return {"error": {"type": type(error).__name__, "message": error.message, "details": error.details}}
    except MemoryError:
        traceback.print_exc()
        return _failure("the worker reached its memory limit")
    except Exception as error:
        logging.getLogger(__name__).exception("the job failed")
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return _failure(f"the converter failed with {type(error).__name__}: {first[:300]}")
    else:
        return {"result": outcome.document}


def _failure(message: str) -> dict[str, object]:
    return {"error": {"type": ConversionFailedError.__name__, "message": message, "details": {}}}


def _writer_to(write: Callable[[str], object]) -> Callable[[WorkerEvent], None]:
    def emit(event: WorkerEvent) -> None:
        line = json.dumps({"stage": event.stage, "message": event.message[:500], "fraction": event.fraction})
        write(line + "\n")

    return emit


def _die_with(parent_pid: int) -> None:
    """Make the kernel kill this process when its parent dies, even by SIGKILL."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent died before the call above
        os._exit(1)


def _limit(memory_bytes: int) -> None:
    """Limit how much memory the process can allocate between two checks of the parent, and disable core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = memory_bytes + ADDRESS_HEADROOM_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or data < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
