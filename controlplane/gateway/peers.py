"""The other front doors on the bucket: before the leader unloads a model, all of them stop asking for it.

Every replica that may lead has this, with a front door of its own or without. The leader says in the bucket that a
model is about to leave a server, and waits until every front door that lives has said that it sends no more requests
there and that none is under way. Front doors of those that follow look every second (`keeping`).

The leader writes its announcement first and reads then who is there; a front door lists itself first and reads then
what is announced, and all that it knows of the servers it has seen since. Whatever the order, one sees the other.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from controlplane.errors import ControlPlaneError, StoreError, StoreUnavailableError
from controlplane.gateway.keeping import Door, Keeper, nobody
from controlplane.gateway.presence import Presence
from controlplane.gateway.signs import BEAT_SECONDS, Sign, heard
from controlplane.gateway.traffic import waiting_at_most
from controlplane.reconciler.lease import Holder
from controlplane.registry.doors import DoorLog, Doors, Withdrawal

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Time between two looks of a follower at what is about to leave: what an unload waits for at most."""
_LEAD_LOOK_SECONDS = BEAT_SECONDS
_ASK_SECONDS = 0.05
_ASK_MAX_SECONDS = 0.5
_SENT_SECONDS = 20.0
"""What announcing and the call to Triton may take beside the wait for the others; a bound far off."""
_THREADS = 4

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Peers:
    """This replica and the others' front doors; the executor's `Traffic`. Belongs to one event loop.

    Args:
        log: The bucket.
        leading: Whether this process leads.
        drain_seconds: How long an unload waits for requests in flight, and for the others.
        door: The front door of this replica; None where it has none.
        private: Names of the servers that no other replica sends requests to.
    """

    def __init__(
        self,
        log: DoorLog,
        leading: Callable[[], bool],
        *,
        drain_seconds: float,
        door: Door | None = None,
        private: Collection[str] = (),
    ) -> None:
        self._log = log
        self._leading = leading
        self._drain_seconds = drain_seconds
        self._door = door
        self._private = frozenset(private)
        self._me = Holder.myself()
        self._presence = Presence(log, self._me) if door is not None else None
        self._keeper = Keeper(door, self._read, self._acknowledge) if door is not None else None
        self._looking = asyncio.Lock()
        self._doors = Doors({}, set(), {})
        self._began = self._ended = -BEAT_SECONDS
        self._looked = False
        self._signs: dict[str, Sign] = {}
        self._holders: dict[str, Holder] = {}
        self._mine: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        # Threads of their own: those who wait for an unload must not queue behind downloads.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="front doors")

    @property
    def id(self) -> str:
        """The front door's, among the others; empty where there is none."""
        return self._presence.id if self._presence is not None else ""

    async def start(self) -> None:
        """Be there for the others from now on. What leaves already is kept away from when this returns.

        Raises:
            StoreError: The store failed: a front door that the others do not know must not be opened.
        """
        if self._presence is not None and self._keeper is not None:
            await self._presence.start()
            await self._keeper.follow((await self._look()).announced)
            await self._keeper.wait_closed()
        self._task = asyncio.create_task(self._run(), name="other front doors")

    async def stop(self) -> None:
        """Leave. Whoever asks through the front door, or unloads, has stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._keeper is not None:
            await self._keeper.stop()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._presence is not None:
            await self._presence.stop()
        self._threads.shutdown(wait=False)

    @asynccontextmanager
    async def withdrawn(self, server: str, model: str) -> AsyncIterator[None]:
        """See `controlplane.reconciler.traffic.Traffic`. All front doors on the bucket keep away.

        Raises:
            StoreError: There may be others, and they cannot be told, or not in time.
        """
        close = self._door.closed if self._door is not None else self._without_door
        if server in self._private:
            async with close(server, model, nobody):
                yield
            return
        seconds = self._drain_seconds + _SENT_SECONDS
        until = time.monotonic() + seconds
        async with self._announced(Withdrawal(server, model, seconds)) as others, close(server, model, others):
            if time.monotonic() > until:  # the others may ask again
                raise StoreUnavailableError(f"to tell the other front doors that {model} leaves {server} took too long")
            yield

    @asynccontextmanager
    async def _without_door(
        self, server: str, model: str, others: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        async with waiting_at_most(self._drain_seconds, server, model):
            await others()
        yield

    @asynccontextmanager
    async def _announced(self, withdrawal: Withdrawal) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Announce for the time of a context; yields what waits until all others keep away."""
        name = uuid.uuid4().hex
        self._mine.add(name)
        try:
            told = await self._announce(name, withdrawal)
            yield partial(self._acknowledged, name) if told else nobody
        finally:
            ending = asyncio.create_task(self._over(name), name="no more kept away from")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)

    async def _announce(self, name: str, withdrawal: Withdrawal) -> bool:
        """Return whether it is announced. Where nobody else was there, a bucket that fails holds up no unload."""
        try:
            await self._call(self._log.announce, name, withdrawal)
        except StoreError as error:
            if not self._alone:
                raise
            logger.info("%s leaves %s unannounced: %s", withdrawal.model, withdrawal.server, error)
            return False
        return True

    async def _over(self, name: str) -> None:
        try:
            await self._call(self._log.over, name, self._doors.acknowledged.get(name, set()))
        except ControlPlaneError as error:
            logger.warning("other front doors may keep away for longer than they have to: %s", error)
        finally:
            self._mine.discard(name)  # what could not be removed, or comes late, the sweep removes

    async def _acknowledged(self, name: str) -> None:
        pause = _ASK_SECONDS
        while missing := await self._missing(name):
            logger.debug("waiting for front doors %s", ", ".join(sorted(missing)))
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _ASK_MAX_SECONDS)

    async def _missing(self, name: str) -> set[str]:
        """Return the others that live and have not said that they keep away."""
        try:
            doors = await self._look()
        except StoreError:
            if not self._alone:
                raise
            return set()
        return self._others() - doors.acknowledged.get(name, set())

    @property
    def _alone(self) -> bool:
        """Whether nobody else was there when the bucket could be read last."""
        return self._looked and not self._others()

    def _others(self) -> set[str]:
        """Return the others that lived when the bucket was read last."""
        return {door for door, sign in self._signs.items() if not sign.gone and not self._ended_here(door)}

    def _ended_here(self, door: str) -> bool:
        """Whether this process can see that another one's has ended."""
        holder = self._holders.get(door)
        return holder is not None and holder.is_gone(self._me)

    async def _look(self) -> Doors:
        """Read what the bucket says, no earlier than now. Who asks meanwhile shares the next reading.

        Raises:
            StoreError: The store failed.
        """
        asked = time.monotonic()
        async with self._looking:
            if self._looked and self._began >= asked:
                return self._doors
            began = time.monotonic()
            doors = await self._call(self._log.doors)
            numbers = {door: number for door, number in doors.present.items() if door != self.id}
            self._holders = {door: holder for door, holder in self._holders.items() if door in numbers}
            for door in numbers.keys() - self._holders.keys():
                if holder := Holder.of(await self._call(self._log.holder, door, numbers[door])):
                    self._holders[door] = holder
            self._signs = heard(self._signs, numbers, began - self._ended)
            self._began, self._ended, self._looked, self._doors = began, time.monotonic(), True, doors
            return doors

    async def _run(self) -> None:
        swept_at = -_LEAD_LOOK_SECONDS
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if not self._leading():
                    if self._keeper is not None:
                        await self._keeper.follow((await self._look()).announced - self._mine)
                    continue
                if self._keeper is not None:
                    await self._keeper.follow(set())  # who announced that leads no more
                if time.monotonic() - swept_at >= _LEAD_LOOK_SECONDS:
                    await self._sweep(await self._look())
                    swept_at = time.monotonic()
            except StoreError as error:
                logger.debug("the other front doors are not heard now: %s", error)
            except Exception:
                # The loop's edge: the next look may fare better.
                logger.exception("a replica stumbled over the other front doors")

    async def _sweep(self, doors: Doors) -> None:
        """Remove what doors that died, and leaders that are none any more, have left."""
        for name in doors.withdrawals - self._mine:
            await self._over(name)
        for door in self._signs.keys() - self._others():
            await self._call(self._log.leave, door)

    async def _read(self, name: str) -> Withdrawal | None:
        withdrawal = await self._call(self._log.withdrawal, name)
        if withdrawal is not None and withdrawal.server in self._private:
            await self._acknowledge(name)  # it is about another server of this name, which is never asked from here
            return None
        return withdrawal

    async def _acknowledge(self, name: str) -> None:
        await self._call(self._log.acknowledge, name, self.id)

    async def _call(self, act: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(act, *args, **kwargs))
