"""Parses and serialises large JSON inferences in a bounded number of processes, to keep the event loop responsive."""

import asyncio
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from controlplane.domain.arrays import Array
from controlplane.errors import ControlPlaneError, InvalidInputError, TooManyWaitingError
from controlplane.services.json_worker import Parsed

LARGE_BYTES = 1024 * 1024
"""Size from which a body, or the tensors of a response, is large."""
_PROCESSES = 2
_WAITING = 16
_SECONDS = 120.0
_MODULE = "controlplane.services.json_worker"


class LargeJson:
    """Starts worker processes for one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_PROCESSES, thread_name_prefix="large json")
        self._count = 0

    def close(self) -> None:
        """Start no more jobs; running ones end on their own."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def parse(self, body: bytes) -> Parsed:
        """Parse an inference request.

        Raises:
            InvalidInputError: It is not JSON, or not an inference request.
            TooManyWaitingError: Too many requests are being parsed.
        """
        parsed: Parsed = await self._run(("parse", body))
        return parsed

    async def render(self, document: dict[str, Any], tensors: list[tuple[str, Array]]) -> bytes:
        """Serialise a response: the document with the tensors as its outputs.

        Raises:
            TooManyWaitingError: Too many responses are being serialised.
        """
        rendered: bytes = await self._run(("render", document, tensors))
        return rendered

    async def _run(self, job: tuple[Any, ...]) -> Any:
        if self._count >= _WAITING:
            raise TooManyWaitingError(
                f"the limit of {self._count} large JSON bodies in progress is reached; try again "
                "soon, or send tensors in binary to Triton's own ports",
                limit=_WAITING,
            )
        self._count += 1
        try:
            kind, result = await asyncio.get_running_loop().run_in_executor(self._threads, _worked, job)
        finally:
            self._count -= 1
        if kind == "refused":
            raise InvalidInputError(str(result))
        return result


def _worked(job: tuple[Any, ...]) -> tuple[str, Any]:
    """Run a worker process to its end. Its input and output are anonymous memory, so no pipe has to carry them."""
    with (
        os.fdopen(os.memfd_create("json-job"), "w+b") as given,
        os.fdopen(os.memfd_create("json-result"), "w+b") as taken,
    ):
        pickle.dump(job, given, protocol=5)
        given.seek(0)
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-m", _MODULE],
                stdin=given,
                stdout=taken,
                stderr=subprocess.DEVNULL,
                env={},
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "refused", f"it takes longer than {_SECONDS:g} s"
        if done.returncode != 0:
            raise ControlPlaneError(f"the process that reads a large JSON body ended with status {done.returncode}")
        taken.seek(0)
        result: tuple[str, Any] = pickle.load(taken)
        return result
