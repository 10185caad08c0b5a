"""The open routes to models and the requests in flight on them: used by the activator and by drains."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from controlplane.reconciler.routes import Route

logger = logging.getLogger(__name__)


def version_label(route: Route | None) -> str:
    """Return the version that a route leads to, as a metrics label."""
    return str(route.version) if route is not None and route.version is not None else "mixed" if route else ""


@asynccontextmanager
async def waiting_at_most(seconds: float, server: str, model: str) -> AsyncIterator[None]:
    """Bound the wait for requests to a model before its unload; on timeout log a warning and continue."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        logger.warning(
            "drain of %s on %s timed out after %g s (requests in flight or a peer did not acknowledge); "
            "unloading anyway",
            model,
            server,
            seconds,
        )


class Routes:
    """The open routes, and the activator's own requests on them. For one event loop.

    Args:
        pauses: Counts pauses of this process; routes that were set before the latest pause are not used.
    """

    def __init__(self, pauses: Callable[[], int] = lambda: 0) -> None:
        self._pauses = pauses
        self.pauses = 0
        """The number of pauses when the routes were read."""
        self._routes: dict[str, Route] = {}
        self._given: Mapping[str, Route] | None = None
        self._withdrawn: Counter[tuple[str, str]] = Counter()
        self._open: dict[str, Route] = {}
        self._used: Counter[tuple[str, str]] = Counter()
        self._moved = asyncio.Event()
        self._idle = asyncio.Event()

    @property
    def open(self) -> Mapping[str, Route]:
        """The routes, without those that are being drained."""
        return self._open

    def set(self, routes: Mapping[str, Route], pauses: int = 0) -> None:
        """Set the current routes, and the number of pauses before they were read."""
        self.pauses = pauses
        if routes is self._given:
            return  # the same mapping has the same routes, and none was closed since it was set
        self._given, self._routes = routes, dict(routes)
        self._settle()

    def choose(self, model: str, select: Callable[[Sequence[str]], str] | None = None) -> str | None:
        """Return a server of a model; None if there is none.

        Args:
            model: The model.
            select: Selects one of the servers; default: the one with the fewest requests from this activator.
        """
        route = self._open.get(model)
        if route is None or self._pauses() != self.pauses:
            return None
        if select is not None:
            return select(route.servers)
        return min(route.servers, key=lambda server: self._busy(server))

    def withdrawn(self, server: str, model: str) -> bool:
        """Return whether a model is being drained on a server."""
        return self._withdrawn[server, model] > 0

    def version(self, model: str, named: str) -> str:
        """Return the version that a request is for, as a metrics label; ``named`` if the client chose another one."""
        answers = version_label(self._open.get(model))
        return answers if named in ("", answers) else "named"

    def _busy(self, server: str) -> int:
        return sum(count for (where, _), count in self._used.items() if where == server)

    @contextmanager
    def used(self, server: str, model: str) -> Iterator[None]:
        """Count a request to a model on a server while the context is open."""
        key = (server, model)
        self._used[key] += 1
        try:
            yield
        finally:
            self._used[key] -= 1
            if not self._used[key]:
                del self._used[key]
                self._idle.set()
                self._idle = asyncio.Event()

    def requests(self) -> Mapping[tuple[str, str], int]:
        """Return the number of requests in flight, by server and model."""
        return self._used

    @contextmanager
    def without(self, server: str, model: str) -> Iterator[None]:
        """Close a route while the context is open, and after that until the next `set` contains it."""
        key = (server, model)
        self._withdrawn[key] += 1
        self._settle()
        try:
            yield
        finally:
            self._withdrawn[key] -= 1
            if not self._withdrawn[key]:
                del self._withdrawn[key]
            if route := self._routes.get(model):
                self._given = None
                self._routes[model] = replace(route, servers=tuple(name for name in route.servers if name != server))

    async def wait_idle(self, server: str, model: str) -> None:
        """Wait until this activator has no request in flight to a model on a server."""
        while self._used[server, model]:
            await self._idle.wait()

    async def wait_closed(self, server: str, model: str) -> None:
        """Wait until the route to a model on a server is closed."""
        while True:
            moved = self._moved
            route = self._open.get(model)
            if route is None or server not in route.servers:
                return
            await moved.wait()

    @property
    def moved(self) -> asyncio.Event:
        """Event that is set when the open routes change. Each change makes a new event: get it before you check."""
        return self._moved

    def _settle(self) -> None:
        opened = {}
        for model, route in self._routes.items():
            servers = tuple(name for name in route.servers if (name, model) not in self._withdrawn)
            if servers:
                opened[model] = replace(route, servers=servers)
        if opened != self._open:
            self._open = opened
            self._moved.set()
            self._moved = asyncio.Event()
