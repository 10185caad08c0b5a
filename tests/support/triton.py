"""A real Triton server for the tests: one per session, in its own event loop."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.settings import TritonSettings
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.repository import ModelRepository


@dataclass(frozen=True)
class RunningTriton:
    """A server that is live."""

    server: EmbeddedTriton
    repository: ModelRepository

    def client(self, **timeouts: float) -> TritonClient:
        """A new client, for the calling test's own event loop. Close it."""
        return TritonClient(
            "test",
            self.server.grpc_url,
            timeouts=TritonTimeouts(**{"load_seconds": 60.0, "unload_seconds": 30.0, **timeouts}),
            processes=self.server.processes_of,
            log_tail=self.server.log_tail,
        )


class LoopThread:
    """An event loop in a thread, for objects that outlive the loop of a single test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float = 120.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Start a task that continues in the background."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def running_triton(folder: Path, settings: TritonSettings | None = None) -> Iterator[RunningTriton]:
    """Start a server with an empty repository under `folder` and stop it at the end."""
    loop = LoopThread()
    server = EmbeddedTriton(folder / "model_repository", folder / "triton", settings or TritonSettings())
    try:
        loop.run(server.start())
        yield RunningTriton(server, ModelRepository(server.repository))
    finally:
        loop.run(server.stop())
        loop.close()
