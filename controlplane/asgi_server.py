"""uvicorn on an existing socket, inside an event loop that has other work."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process handles signals itself from its start."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield

    async def begin(self, listener: socket.socket) -> "asyncio.Task[None]":
        """Start serving on a socket; return the task once requests are accepted or the task has ended."""
        serving = asyncio.create_task(self.serve(sockets=[listener]))
        try:
            while not (self.started or serving.done()):  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            serving.cancel()
            raise
        return serving
