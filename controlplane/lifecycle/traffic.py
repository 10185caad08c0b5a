"""Who sends requests to the servers, as the reconciler sees it: a port.

A model leaves a server only after nobody sends requests for it there any more: the executor takes it out of the
traffic for the time of the unload. The reconciler knows no gateway, only this.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol


class TrafficDrainer(Protocol):
    """Whoever sends requests to the servers."""

    def withdrawn(self, server: str, model: str) -> AbstractAsyncContextManager[None]:
        """Send no request for a model to a server while the context is open.

        Entering waits until the requests in flight are answered, up to a deadline of the implementation's own.

        Args:
            server: The server's name.
            model: The model's name, its own and not a candidate's.
        """
        ...


class DirectTraffic:
    """Nobody of ours: clients talk to Triton's own ports, and nothing can be taken from them."""

    @asynccontextmanager
    async def withdrawn(self, server: str, model: str) -> AsyncIterator[None]:  # noqa: ARG002 - the port's
        """Wait for nothing."""
        yield
