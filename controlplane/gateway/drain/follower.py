"""A gateway that follows: it keeps away from what leaves a server, from the leader's word until it knows better.

It closes the road, drains it, says so, and keeps it closed until it has looked at the server after the model left:
before, it would open the road again by what it saw earlier.

An announcement is over when it is not in the bucket any more. Where the bucket cannot be read, nobody knows; but the
leader unloads within a time that its announcement gives, or not at all. So the road stays closed for that time, however
long nothing is heard, and then what is seen of the server counts again.
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
"""Until the next try, where an acknowledgement could not be written."""


async def no_peers() -> None:
    """Wait for nobody."""


class LocalGateway(Protocol):
    """A gateway of ours, as what the others say makes it act."""

    def closed(
        self, server: str, model: str, others: Callable[[], Awaitable[None]] = no_peers
    ) -> AbstractAsyncContextManager[None]:
        """Close a road for the time of a context. Entering drains it and waits for others, within the door's bounds.

        The road is closed as soon as entering begins, and stays so after the context until what is there is read anew.
        """
        ...

    async def look(self, server: str, model: str) -> None:
        """Look at a server anew, and return when what was seen of a model is taken in."""
        ...


@dataclass(slots=True)
class _Drain:
    over: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class DrainFollower:
    """What a gateway keeps away from. Belongs to one event loop; `follow` to one task.

    Args:
        gateway: The gateway.
        read: Reads an announcement by its id; None where it is over.
        acknowledge: Says that the road of an announcement is closed, by its id.
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
        """Keep away from all that is announced, and from nothing else.

        Raises:
            StoreError: What is announced cannot be read.
        """
        for name in self._drains.keys() - announced:
            self._drains.pop(name).over.set()
        for name in announced - self._drains.keys():
            withdrawal = await self._read(name)
            if withdrawal is None:
                continue
            keeping = self._drains[name] = _Drain()
            task = asyncio.create_task(self._keep(name, withdrawal, keeping), name="keep away")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def wait_closed(self) -> None:
        """Wait until everything that `follow` was told of is kept away from."""
        for keeping in list(self._drains.values()):
            await keeping.closed.wait()

    async def stop(self) -> None:
        """Forget all of it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, name: str, withdrawal: DrainRequest, keeping: _Drain) -> None:
        """Close a road for as long as the leader says, and until it is known what is there after that."""
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
                    logger.info("%s was to leave %s; nothing more was heard of that, and its time is up", model, server)
                with suppress(TimeoutError):  # a server that is away is asked by nobody either
                    async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                        await self._gateway.look(server, model)
        except ControlPlaneError as error:
            logger.warning("a model that leaves is not kept away from: %s", error)
            self._drains.pop(name, None)  # the next look tries again
        finally:
            keeping.closed.set()

    async def _acknowledge(self, name: str, over: asyncio.Event) -> None:
        """Say that a road is closed, which it has to stay: an error may be the answer to what was written."""
        while not over.is_set():
            try:
                await self._say(name)
            except StoreError as error:
                logger.warning("the leader may wait for this gateway, which asks no more: %s", error)
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS):
                    await over.wait()
