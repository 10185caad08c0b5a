"""Port through which the reconciler drains traffic from the servers.

A model is unloaded only after no more requests are sent to it on that server: the executor drains the model for the
duration of the unload. The reconciler depends on this port, not on the gateway.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol


class TrafficDrainer(Protocol):
    """A component that sends requests to the servers and can stop doing so."""

    def withdrawn(self, server: str, model: str) -> AbstractAsyncContextManager[None]:
        """Drain a model on a server while the context is open.

        Entering waits until the requests in flight are answered, up to a deadline of the implementation.

        Args:
            server: The server's name.
            model: The model's own name; a candidate's name only to wait for the candidate's open sequences.
        """
        ...


class DirectTraffic:
    """Drainer for clients that use Triton's own ports, whose traffic cannot be drained."""

    @asynccontextmanager
    async def withdrawn(self, server: str, model: str) -> AsyncIterator[None]:  # noqa: ARG002 - the port's
        """Return immediately."""
        yield
