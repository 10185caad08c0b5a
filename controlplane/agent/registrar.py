"""Keeps the agent's registration in the store, and announces that it leaves."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from controlplane.errors import ConflictError, ControlPlaneError, StoreError
from controlplane.registry.agents import AgentLog, Heartbeat
from controlplane.servers.registration import Registration
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

_BEATS_OF_ANOTHER = 3
"""Heartbeats that another agent of the same name may miss before this one takes its place."""


class Registrar:
    """Registers one agent. Belongs to one event loop.

    Args:
        open_store: Opens the store; called in a thread, and again as long as it fails.
        registration: What the agent says of itself.
        key: The control key, with which it is signed.
        folder: The agent's data folder, which keeps its token.
        seconds: Time between two heartbeats.
    """

    def __init__(
        self,
        open_store: Callable[[], ObjectStore],
        registration: Registration,
        key: str,
        folder: Path,
        *,
        seconds: float,
    ) -> None:
        self._open_store = open_store
        self._registration = registration
        self._key = key
        self._seconds = seconds
        self._token = _token(folder / "agent-token")
        self._number = 0
        self._named = False
        """Whether the name is known to be free or ours, and the number of the newest heartbeat with it."""
        self._log: AgentLog | None = None
        self._task: asyncio.Task[None] | None = None
        self._beating = asyncio.Lock()

    async def start(self) -> None:
        """Register, and keep the registration from then on.

        A store that does not answer does not stop the agent: it registers as soon as the store answers.

        Raises:
            ConflictError: Another agent that is alive has this name.
        """
        try:
            await self._beat()
        except StoreError as error:
            logger.warning("failed to register in the store; trying again: %s", error.message)
        self._task = asyncio.create_task(self._keep(), name="registration")

    async def leaving(self) -> None:
        """Announce that the agent stops as soon as its models are elsewhere."""
        self._registration = self._registration.model_copy(update={"leaving": True})
        try:
            await self._beat()
        except (StoreError, ConflictError) as error:
            logger.warning("failed to announce the end of the agent: %s", error.message)

    async def stop(self) -> None:
        """Remove the registration."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._log is not None:
            try:
                await asyncio.to_thread(self._log.leave, self._registration.name, self._token)
            except StoreError as error:
                logger.warning("failed to remove the registration from the store: %s", error.message)

    async def _opened(self) -> AgentLog:
        if self._log is None:
            self._log = AgentLog(await asyncio.to_thread(self._open_store))
        return self._log

    async def _take_name(self) -> None:
        """Make sure that no other agent that is alive has the name; remove what one that ended has left."""
        log, name = await self._opened(), self._registration.name
        present = (await asyncio.to_thread(log.present, name)).get(name, {})
        self._number = max((one.number for one in present.values()), default=0)
        others = {token: beat for token, beat in present.items() if token != self._token}
        if not others:
            self._named = True
            return
        logger.info("another agent has registered as %s; waiting to see whether it is alive", name)
        for _ in range(_BEATS_OF_ANOTHER):
            await asyncio.sleep(self._seconds)
            now = (await asyncio.to_thread(log.present, name)).get(name, {})
            for token, beat in others.items():
                if now.get(token, beat) != beat:
                    where = await asyncio.to_thread(self._where, log, token, now[token])
                    raise ConflictError(
                        f"another agent that is alive is registered as {name}{where}; give this one another name "
                        "(--name), or stop the other one",
                        server=name,
                    )
        for token in others:
            await asyncio.to_thread(log.leave, name, token)
        self._named = True

    def _where(self, log: AgentLog, token: str, beat: Heartbeat) -> str:
        try:
            data = log.read(self._registration.name, token, beat)
            return f" at {Registration.verified(data, self._key).agent_url}" if data else ""
        except ControlPlaneError:
            return ""

    async def _beat(self) -> None:
        log, registration = await self._opened(), self._registration
        async with self._beating:
            if not self._named:
                await self._take_name()
            self._number += 1
            await asyncio.to_thread(
                log.beat, registration.name, self._token, self._number, registration.digest,
                registration.signed(self._key),
            )  # fmt: skip

    async def _keep(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self._beat()
                failing = False
            except (StoreError, ConflictError) as error:
                if not failing:
                    logger.warning("failed to renew the registration; trying again: %s", error.message)
                failing = True


def _token(path: Path) -> str:
    """Return the token of a data folder; it is made at the first start."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        token = secrets.token_hex(8)
        path.write_text(token, "ascii")
        return token
