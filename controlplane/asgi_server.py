"""uvicorn as we run it: inside a loop that has other work, on a socket of ours."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process decides what a signal means, from its first moment on."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def begin(self, listener: socket.socket) -> "asyncio.Task[None]":
        """Start serving on a socket; return the task once requests are taken, or it has ended."""
        serving = asyncio.create_task(self.serve(sockets=[listener]))
        try:
            while not (self.started or serving.done()):  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            serving.cancel()
            raise
        return serving
