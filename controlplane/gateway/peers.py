"""The other front doors on the bucket: before the leader unloads a model, all of them stop asking for it.

The leader says in the bucket that a model is about to leave a server, and waits until every door that lives has said
that it sends no more requests there and that none is under way. A follower looks every second, closes the road, drains
it, says so, and keeps it closed until it has looked at the server after the model left: before, it would open the road
again by what it saw earlier.

A door is listed before it opens any road, and what it opens it has looked at and proved since. So the leader knows of
every door that may ask for what leaves; where it is alone, it writes nothing.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from controlplane.errors import ControlPlaneError, StoreError
from controlplane.reconciler.lease import Holder
from controlplane.registry.doors import DoorLog, Withdrawal

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Time between two looks of a follower at what is about to leave: what an unload waits for at most."""
_BEAT_SECONDS = 5.0
_GONE_SECONDS = 20.0
"""A door that has said nothing new for so long, by the observer's own clock, is gone."""
_LOOK_AGAIN_SECONDS = 60.0
_ASK_SECONDS = 0.05
_ASK_MAX_SECONDS = 0.5

Close = Callable[[str, str], AbstractAsyncContextManager[None]]
"""Closes a road of our own, and drains it."""


class Peers:
    """This front door among the others. Belongs to one event loop.

    Args:
        log: The bucket.
        close: Closes a road (server, model), for the time of a context; entering waits until it is drained.
        look: Looks at a server anew, and returns when what was seen of a model is taken in.
        leading: Whether this process leads.
    """

    def __init__(
        self, log: DoorLog, close: Close, look: Callable[[str, str], Awaitable[None]], leading: Callable[[], bool]
    ) -> None:
        self.id = uuid.uuid4().hex
        self._log = log
        self._close = close
        self._look = look
        self._leading = leading
        self._me = Holder.myself()
        self._number = 0
        self._beat_at = 0.0
        self._swept_at = -_BEAT_SECONDS
        self._beating = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._seen: dict[str, tuple[int, float]] = {}
        self._holders: dict[str, Holder | None] = {}
        self._mine: set[str] = set()
        self._announced: dict[str, Withdrawal] = {}
        self._theirs: dict[str, asyncio.Event] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Be there for the others from now on. What leaves just now is known when this returns."""
        try:
            await self._once()
        except StoreError as error:
            logger.warning("the other front doors cannot be told that this one is open: %s", error)
        self._task = asyncio.create_task(self._run(), name="other front doors")

    async def stop(self) -> None:
        """Leave."""
        tasks = [*self._following, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.to_thread(self._log.leave, self.id)
        except ControlPlaneError as error:
            logger.info("the others find out by themselves that this front door has closed: %s", error)

    @asynccontextmanager
    async def withdrawn(self, server: str, model: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Have the others keep away from a model on a server while the context is open.

        Yields:
            Waits until all of them have said that they do. The caller bounds it.

        Raises:
            StoreError: There are others, and they cannot be told.
        """
        if not await self._others():
            yield nobody
            return
        name = uuid.uuid4().hex
        self._mine.add(name)
        try:
            await self._beat()  # nobody listens to a door that does not live
            await asyncio.to_thread(self._log.announce, name, Withdrawal(server, model, self.id))
            yield lambda: self._acknowledged(name)
        finally:
            await asyncio.shield(self._over(name))

    async def _over(self, name: str) -> None:
        try:
            await asyncio.to_thread(self._log.over, name)
        except ControlPlaneError as error:
            logger.warning("the other front doors keep away for longer than they have to: %s", error)
        finally:
            self._mine.discard(name)  # what could not be removed, the sweep removes

    async def _acknowledged(self, name: str) -> None:
        pause = _ASK_SECONDS
        while missing := await self._others() - await asyncio.to_thread(self._log.acknowledged, name):
            logger.debug("waiting for front doors %s", ", ".join(sorted(missing)))
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _ASK_MAX_SECONDS)

    async def _others(self) -> set[str]:
        """Return the other doors that live; none where that could never be read.

        Raises:
            StoreError: The bucket cannot be read, and there were others when it could.
        """
        try:
            return await self._alive()
        except StoreError:
            if self._seen:
                raise
            return set()

    async def _alive(self) -> set[str]:
        """Return the other doors that live.

        Raises:
            StoreError: The bucket cannot be read.
        """
        async with self._looking:
            present = await asyncio.to_thread(self._log.present)
            present.pop(self.id, None)
            for door in present.keys() - self._holders.keys():
                self._holders[door] = Holder.of(await asyncio.to_thread(self._log.holder, door, present[door]))
            now = time.monotonic()
            for known in (self._seen, self._holders):
                for gone in known.keys() - present.keys():
                    del known[gone]
            for door, number in present.items():
                if door not in self._seen or self._seen[door][0] != number:
                    self._seen[door] = (number, now)
            return {door for door in present if not self._is_gone(door, now)}

    def _is_gone(self, door: str, now: float) -> bool:
        holder = self._holders[door]
        return now - self._seen[door][1] > _GONE_SECONDS or (holder is not None and holder.is_gone(self._me))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._once()
            except StoreError as error:
                logger.debug("the other front doors are not heard now: %s", error)
            except Exception:
                # The loop's edge: the next look may fare better.
                logger.exception("a front door stumbled over the others")

    async def _once(self) -> None:
        await self._beat()
        if self._leading():
            self._end(set())
            if time.monotonic() - self._swept_at >= _BEAT_SECONDS:
                await self._sweep()
                self._swept_at = time.monotonic()
        else:
            await self._follow()

    async def _beat(self) -> None:
        """Give a sign of life where it is time for one."""
        async with self._beating:
            if self._number and time.monotonic() - self._beat_at < _BEAT_SECONDS:
                return
            await asyncio.to_thread(self._log.beat, self.id, self._number + 1, self._me.to_body(_GONE_SECONDS))
            self._number, self._beat_at = self._number + 1, time.monotonic()

    async def _sweep(self) -> None:
        """Remove what doors that died, and leaders that are none any more, have left."""
        for name in await asyncio.to_thread(self._log.withdrawals) - self._mine:
            await self._over(name)
        alive = await self._others()
        for door in self._seen.keys() - alive:
            await asyncio.to_thread(self._log.leave, door)

    async def _follow(self) -> None:
        announced = await asyncio.to_thread(self._log.announced) - self._mine
        for name in self._announced.keys() - announced:
            del self._announced[name]
        for name in announced - self._announced.keys():
            if withdrawal := await asyncio.to_thread(self._log.withdrawal, name):
                self._announced[name] = withdrawal
        alive = await self._alive() if self._announced else set()
        standing = {name: one for name, one in self._announced.items() if one.announcer in alive}
        self._end(set(standing))
        for name in standing.keys() - self._theirs.keys():
            self._theirs[name] = asyncio.Event()
            task = asyncio.create_task(self._keep_away(name, standing[name], self._theirs[name]), name="keep away")
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    def _end(self, announced: set[str]) -> None:
        for name in self._theirs.keys() - announced:
            self._theirs.pop(name).set()

    async def _keep_away(self, name: str, withdrawal: Withdrawal, over: asyncio.Event) -> None:
        """Close a road for as long as the leader says, and until it is known what is there after that."""
        try:
            async with self._close(withdrawal.server, withdrawal.model):
                await self._acknowledge(name, over)
                await over.wait()
                with suppress(TimeoutError):  # a server that is away is asked by nobody either
                    async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                        await self._look(withdrawal.server, withdrawal.model)
        except ControlPlaneError as error:
            logger.warning("a model that leaves is not kept away from: %s", error)
            self._theirs.pop(name, None)  # the next look tries again

    async def _acknowledge(self, name: str, over: asyncio.Event) -> None:
        """Say that a road is closed, which it has to stay: an error may be the answer to what was written."""
        while not over.is_set():
            try:
                await asyncio.to_thread(self._log.acknowledge, name, self.id)
            except StoreError as error:
                logger.warning("the leader may wait for this front door, which asks no more: %s", error)
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await over.wait()


async def nobody() -> None:
    """Wait for nobody."""
