"""Registers a gateway in the store and writes its heartbeats."""

import asyncio
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor

from controlplane.errors import ControlPlaneError, StoreError
from controlplane.gateway.drain.heartbeats import BEAT_SECONDS, GONE_SECONDS
from controlplane.reconciler.leader_election import Holder
from controlplane.registry.gateways import GatewayLog

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
"""Time until the next attempt after a heartbeat could not be written."""


class Membership:
    """The registration of one gateway in the store. Belongs to one event loop.

    Args:
        log: The gateway log in the store.
        me: The process that the gateway belongs to.

    Attributes:
        id: Unique to one start of one gateway.
    """

    def __init__(self, log: GatewayLog, me: Holder) -> None:
        self.id = uuid.uuid4().hex
        self._log = log
        self._body = me.to_body(GONE_SECONDS)
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        # A separate thread: a heartbeat must not queue behind downloads or blocked calls.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-heartbeat")

    async def start(self) -> None:
        """Register the gateway and start its heartbeats.

        Raises:
            StoreError: The store failed.
        """
        await self._beat()
        self._task = asyncio.create_task(self._live(), name="gateway heartbeat")

    async def stop(self) -> None:
        """Stop the heartbeats and deregister the gateway."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._log.leave, self.id)
        except ControlPlaneError as error:
            logger.info("could not deregister this gateway; peers will time it out: %s", error)
        self._thread.shutdown(wait=False)

    async def _beat(self) -> None:
        number = self._number + 1
        await asyncio.get_running_loop().run_in_executor(self._thread, self._log.beat, self.id, number, self._body)
        self._number = number

    async def _live(self) -> None:
        pause = BEAT_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self._beat()
                pause = BEAT_SECONDS
            except StoreError as error:
                logger.debug("failed to write a heartbeat: %s", error)
                pause = _AGAIN_SECONDS
            except Exception:
                # Outermost handler of the loop: the next heartbeat may succeed.
                logger.exception("unexpected error while writing a heartbeat")
                pause = _AGAIN_SECONDS
