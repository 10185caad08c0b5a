"""Runs conversion jobs as the worker process does, each in a fork of a warm process: that takes milliseconds.

Run as a script; reads one JSON request a line (``folder``, ``seconds``, ``memory_bytes``), answers each with the exit
status and the largest resident memory of the fork that did it. The job and its result are files in the folder.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import onnxruntime  # noqa: F401 - imported here once for all forks
import torch  # noqa: F401

import converters.conversion
import converters.golden_samples  # noqa: F401
from converters.worker import run


def _work(folder: Path, seconds: int, memory_bytes: int) -> None:
    with contextlib.suppress(OSError):
        os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    signal.alarm(seconds)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    warnings.simplefilter("ignore")
    document = run(folder, lambda event: None)
    (folder / "result.json").write_text(json.dumps(document))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _work(Path(request["folder"]), request["seconds"], request["memory_bytes"])
                status = 0
            except BaseException as error:  # noqa: BLE001 - reported, and the child must not return to the loop
                (Path(request["folder"]) / "surprise").write_text(repr(error))
            finally:
                os._exit(status)
        _, status, usage = os.wait4(child, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, file=answers, flush=True)


if __name__ == "__main__":
    main()
