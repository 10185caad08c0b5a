"""Drains a model on all gateways of the store before the leader unloads it.

Every instance that may lead has a coordinator, with or without a gateway of its own. The leader announces in the store
that it will unload a model from a server, and waits until every live gateway has acknowledged that it sends no more
requests there and has none in flight. Gateways of standbys check for announcements every second (`drain.follower`).

The leader first writes its announcement and then reads which gateways exist; a gateway first registers itself and then
reads the announcements, and it observes the servers only after that. Whatever the order, one of them sees the other.
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
from controlplane.gateway.drain.follower import DrainFollower, LocalGateway, no_peers
from controlplane.gateway.drain.heartbeats import BEAT_SECONDS, Heartbeat, update_heartbeats
from controlplane.gateway.drain.membership import Membership
from controlplane.gateway.routes import waiting_at_most
from controlplane.reconciler.leader_election import Holder
from controlplane.registry.gateways import DrainRequest, GatewayLog, Gateways

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Time between two checks of a follower for announcements: the longest time that an unload waits for a check."""
_LEAD_LOOK_SECONDS = BEAT_SECONDS
_ASK_SECONDS = 0.05
_ASK_MAX_SECONDS = 0.5
_SENT_SECONDS = 20.0
"""Generous bound for the announcement and the call to Triton, in addition to the wait for the other gateways."""
_THREADS = 4

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DrainCoordinator:
    """Drains across this instance and its peer gateways; the executor's `TrafficDrainer`. Belongs to one event loop.

    Args:
        log: The gateway log in the store.
        leading: Returns whether this process is the leader.
        drain_seconds: How long an unload waits for requests in flight, and for the peers.
        sequence_seconds: Returns how much longer the unload of a model waits for open sequences.
        gateway: The gateway of this instance; None if it has none.
        private: Names of the servers to which no other instance sends requests.
    """

    def __init__(
        self,
        log: GatewayLog,
        leading: Callable[[], bool],
        *,
        drain_seconds: float,
        gateway: LocalGateway | None = None,
        private: Collection[str] = (),
        sequence_seconds: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        self._sequence_seconds = sequence_seconds
        self._log = log
        self._leading = leading
        self._drain_seconds = drain_seconds
        self._gateway = gateway
        self._private = frozenset(private)
        self._me = Holder.myself()
        self._membership = Membership(log, self._me) if gateway is not None else None
        self._follower = DrainFollower(gateway, self._read, self._acknowledge) if gateway is not None else None
        self._looking = asyncio.Lock()
        self._gateways = Gateways({}, set(), {})
        self._began = self._ended = -BEAT_SECONDS
        self._looked = False
        self._signs: dict[str, Heartbeat] = {}
        self._holders: dict[str, Holder] = {}
        self._mine: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        # Separate threads: calls that an unload waits for must not queue behind downloads.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="gateways")

    @property
    def id(self) -> str:
        """The id of this instance's gateway; empty if it has none."""
        return self._membership.id if self._membership is not None else ""

    async def start(self) -> None:
        """Register this gateway, and close the routes of all drains that are already announced before returning.

        Raises:
            StoreError: The store failed: a gateway that its peers do not know must not be opened.
        """
        if self._membership is not None and self._follower is not None:
            await self._membership.start()
            await self._follower.follow((await self._look()).announced)
            await self._follower.wait_closed()
        self._task = asyncio.create_task(self._run(), name="drain coordinator")

    async def stop(self) -> None:
        """Deregister this gateway. Call it after requests through the gateway and unloads have stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._follower is not None:
            await self._follower.stop()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._membership is not None:
            await self._membership.stop()
        self._threads.shutdown(wait=False)

    @asynccontextmanager
    async def withdrawn(self, server: str, model: str) -> AsyncIterator[None]:
        """See `controlplane.lifecycle.traffic.TrafficDrainer`. All gateways of the store take part.

        Raises:
            StoreError: There may be peers, and the drain could not be announced to them, or not in time.
        """
        close = self._gateway.closed if self._gateway is not None else self._without_gateway
        if server in self._private:
            async with close(server, model, no_peers):
                yield
            return
        seconds = self._drain_seconds + self._sequence_seconds(model) + _SENT_SECONDS
        until = time.monotonic() + seconds
        async with self._announced(DrainRequest(server, model, seconds)) as others, close(server, model, others):
            if time.monotonic() > until:  # the peers may have opened their routes again
                raise StoreUnavailableError(f"timed out announcing the drain of {model} on {server} to peer gateways")
            yield

    @asynccontextmanager
    async def _without_gateway(
        self, server: str, model: str, others: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        async with waiting_at_most(self._drain_seconds + self._sequence_seconds(model), server, model):
            await others()
        yield

    @asynccontextmanager
    async def _announced(self, withdrawal: DrainRequest) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Announce a drain while the context is open; yield a function that waits until all peers acknowledge it."""
        name = uuid.uuid4().hex
        self._mine.add(name)
        try:
            told = await self._announce(name, withdrawal)
            yield partial(self._acknowledged, name) if told else no_peers
        finally:
            ending = asyncio.create_task(self._over(name), name="end drain")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)

    async def _announce(self, name: str, withdrawal: DrainRequest) -> bool:
        """Return whether the drain was announced; if there are no known peers, a store failure does not block it."""
        try:
            await self._call(self._log.announce, name, withdrawal)
        except StoreError as error:
            if not self._alone:
                raise
            logger.info(
                "unloading %s from %s without announcement (no peers known): %s",
                withdrawal.model,
                withdrawal.server,
                error,
            )
            return False
        return True

    async def _over(self, name: str) -> None:
        try:
            await self._call(self._log.over, name, self._gateways.acknowledged.get(name, set()))
        except ControlPlaneError as error:
            logger.warning("failed to end a drain; peer gateways may keep the route closed until it expires: %s", error)
        finally:
            self._mine.discard(name)  # the sweep removes what could not be removed here, or was written late

    async def _acknowledged(self, name: str) -> None:
        pause = _ASK_SECONDS
        while missing := await self._missing(name):
            logger.debug("waiting for gateways %s", ", ".join(sorted(missing)))
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _ASK_MAX_SECONDS)

    async def _missing(self, name: str) -> set[str]:
        """Return the live peers that have not acknowledged the drain."""
        try:
            gateways = await self._look()
        except StoreError:
            if not self._alone:
                raise
            return set()
        return self._others() - gateways.acknowledged.get(name, set())

    @property
    def _alone(self) -> bool:
        """Whether there were no live peers when the store was last read."""
        return self._looked and not self._others()

    def _others(self) -> set[str]:
        """Return the peers that were alive when the store was last read."""
        return {gateway for gateway, sign in self._signs.items() if not sign.gone and not self._ended_here(gateway)}

    def _ended_here(self, gateway: str) -> bool:
        """Return whether this process can see that the process of a peer has ended."""
        holder = self._holders.get(gateway)
        return holder is not None and holder.is_gone(self._me)

    async def _look(self) -> Gateways:
        """Return the state of all gateways, read after this call began; concurrent callers share one read.

        Raises:
            StoreError: The store failed.
        """
        asked = time.monotonic()
        async with self._looking:
            if self._looked and self._began >= asked:
                return self._gateways
            began = time.monotonic()
            gateways = await self._call(self._log.gateways)
            numbers = {gateway: number for gateway, number in gateways.present.items() if gateway != self.id}
            self._holders = {gateway: holder for gateway, holder in self._holders.items() if gateway in numbers}
            for gateway in numbers.keys() - self._holders.keys():
                if holder := Holder.of(await self._call(self._log.holder, gateway, numbers[gateway])):
                    self._holders[gateway] = holder
            self._signs = update_heartbeats(self._signs, numbers, began - self._ended)
            self._began, self._ended, self._looked, self._gateways = began, time.monotonic(), True, gateways
            return gateways

    async def _run(self) -> None:
        swept_at = -_LEAD_LOOK_SECONDS
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if not self._leading():
                    if self._follower is not None:
                        await self._follower.follow((await self._look()).announced - self._mine)
                    continue
                if self._follower is not None:
                    await self._follower.follow(set())  # the instance that announced drains is no longer the leader
                if time.monotonic() - swept_at >= _LEAD_LOOK_SECONDS:
                    await self._sweep(await self._look())
                    swept_at = time.monotonic()
            except StoreError as error:
                logger.debug("failed to read the state of the peer gateways: %s", error)
            except Exception:
                # Outermost handler of the loop: the next check may succeed.
                logger.exception("unexpected error in the drain coordinator")

    async def _sweep(self, gateways: Gateways) -> None:
        """Remove the entries of dead gateways and the announcements of former leaders."""
        for name in gateways.withdrawals - self._mine:
            await self._over(name)
        for gateway in self._signs.keys() - self._others():
            await self._call(self._log.leave, gateway)

    async def _read(self, name: str) -> DrainRequest | None:
        withdrawal = await self._call(self._log.withdrawal, name)
        if withdrawal is not None and withdrawal.server in self._private:
            await self._acknowledge(name)  # another server of the same name, to which this gateway sends no requests
            return None
        return withdrawal

    async def _acknowledge(self, name: str) -> None:
        await self._call(self._log.acknowledge, name, self.id)

    async def _call(self, act: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(act, *args, **kwargs))
