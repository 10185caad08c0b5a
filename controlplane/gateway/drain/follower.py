"""Standby side of draining: stop routing to a model when the leader announces its unload, until observed again.

The follower closes the route, drains it, acknowledges the announcement, and keeps the route closed until it has
observed the server after the unload. Otherwise an earlier observation would open the route again.

A drain has ended when its announcement is no longer in the store. While the store cannot be read, the follower cannot
know this; but the leader unloads within the time that the announcement gives, or not at all. So the route stays closed
for that time even if the store is unavailable, and after it the observed state of the server counts again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Set
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.errors import ControlPlaneError, StoreError
from controlplane.registry.gateways import DrainRequest

logger = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 60.0
_AGAIN_SECONDS = 1.0
"""Time until the next attempt after an acknowledgement could not be written."""


async def no_peers() -> None:
    """Return at once: there are no peers to wait for."""


class LocalGateway(Protocol):
    """The operations of this instance's gateway that a drain needs."""

    def closed(
        self, server: str, model: str, others: Callable[[], Awaitable[None]] = no_peers
    ) -> AbstractAsyncContextManager[None]:
        """Close a route while the context is open; entering drains it and waits for the peers, within a time limit.

        The route is closed as soon as entering begins. After the context it stays closed until the routes are read
        again.
        """
        ...

    async def look(self, server: str, model: str) -> None:
        """Observe a server again, and return when the observed state of a model has been applied."""
        ...


@dataclass(slots=True)
class _Drain:
    over: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class DrainFollower:
    """The drains that a gateway takes part in. Belongs to one event loop; only one task may call `follow`.

    Args:
        gateway: The gateway.
        read: Reads an announcement by its id; returns None if it has ended.
        acknowledge: Reports that the route of an announcement is closed, by the announcement's id.
    """

    def __init__(
        self,
        gateway: LocalGateway,
        read: Callable[[str], Awaitable[DrainRequest | None]],
        acknowledge: Callable[[str], Awaitable[None]],
    ) -> None:
        self._gateway = gateway
        self._read = read
        self._say = acknowledge
        self._drains: dict[str, _Drain] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def follow(self, announced: Set[str]) -> None:
        """Follow all announced drains, and end those that are no longer announced.

        Raises:
            StoreError: An announcement cannot be read.
        """
        for name in self._drains.keys() - announced:
            self._drains.pop(name).over.set()
        for name in announced - self._drains.keys():
            withdrawal = await self._read(name)
            if withdrawal is None:
                continue
            keeping = self._drains[name] = _Drain()
            task = asyncio.create_task(self._keep(name, withdrawal, keeping), name="follow drain")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def wait_closed(self) -> None:
        """Wait until the routes of all followed drains are closed."""
        for keeping in list(self._drains.values()):
            await keeping.closed.wait()

    async def stop(self) -> None:
        """Cancel all drains."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, name: str, withdrawal: DrainRequest, keeping: _Drain) -> None:
        """Close a route until the drain ends or its time is up, and the server has been observed again."""
        server, model = withdrawal.server, withdrawal.model
        deadline = asyncio.get_running_loop().time() + withdrawal.seconds
        try:
            async with self._gateway.closed(server, model):
                keeping.closed.set()
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._acknowledge(name, keeping.over)
                        await keeping.over.wait()
                except TimeoutError:
                    logger.info("drain of %s on %s expired without a completion notice", model, server)
                with suppress(TimeoutError):  # an unreachable server has no open routes either
                    async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                        await self._gateway.look(server, model)
        except ControlPlaneError as error:
            logger.warning("failed to drain model: %s", error)
            self._drains.pop(name, None)  # the next check tries again
        finally:
            keeping.closed.set()

    async def _acknowledge(self, name: str, over: asyncio.Event) -> None:
        """Report that a route is closed, with retries; it must stay closed: a failed write may have succeeded."""
        while not over.is_set():
            try:
                await self._say(name)
            except StoreError as error:
                logger.warning("drain finished but could not be acknowledged; the leader may wait: %s", error)
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS):
                    await over.wait()
