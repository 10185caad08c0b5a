"""Finds the servers whose agents registered in the store, and notices when they leave. Belongs to the event loop.

A registration is alive while its number changes. An agent that is silent does not make its server leave as long as
Triton answers: it may have lost the store alone. Time counts only while the store answers this instance.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal, Protocol

from controlplane.errors import ControlPlaneError, StoreError
from controlplane.registry.agents import AgentLog, Heartbeat
from controlplane.servers.registration import Registration
from controlplane.servers.server import ManagedServer
from controlplane.servers.server_set import ServerSet

logger = logging.getLogger(__name__)

_GONE_POLLS = 2
"""Listings without a registration after which its server leaves."""
_CLOSE_SECONDS = 10.0
"""Time after which the connections to a server that left are closed: what is in flight ends first."""


class Report(Protocol):
    """Records an event of a server."""

    def __call__(self, type_: Literal["Normal", "Warning"], reason: str, subject: str, message: str) -> None:
        """Record it."""


@dataclass
class _Known:
    """A registration that is followed.

    Attributes:
        token: The agent's token.
        beat: Its newest heartbeat.
        registration: Its content; None if it was refused.
        silent: Polls since the number changed.
        gone: Polls in which it was not listed.
    """

    token: str
    beat: Heartbeat
    registration: Registration | None
    silent: int = 0
    gone: int = 0


class Discovery:
    """Keeps a `ServerSet` in step with the registrations.

    Args:
        log: The registrations.
        servers: The servers; those that are there at the start are left alone.
        key: The control key that all registered agents have.
        connect: Returns the server of a registration; the stack closes its connections.
        leaving: Called with the name of a server whose agent stops as soon as its models are elsewhere.
        away: Returns whether a server is known to be unreachable.
        report: Records an event.
        poll_seconds: Time between two listings.
        forget_seconds: Time without a heartbeat after which an unreachable server leaves.
    """

    def __init__(
        self,
        log: AgentLog,
        servers: ServerSet,
        key: str,
        *,
        connect: Callable[[AsyncExitStack, Registration], ManagedServer],
        leaving: Callable[[str], None],
        away: Callable[[str], bool],
        report: Report,
        poll_seconds: float,
        forget_seconds: float,
    ) -> None:
        self._log = log
        self._servers = servers
        self._key = key
        self._connect = connect
        self._leaving = leaving
        self._away = away
        self._report = report
        self._poll_seconds = poll_seconds
        self._forget_polls = max(2, round(forget_seconds / poll_seconds))
        self._fixed = {server.name for server in servers}
        self._known: dict[str, _Known] = {}
        self._told: set[tuple[str, str]] = set()
        self._stacks: dict[str, AsyncExitStack] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find the servers that are registered now, and follow the registrations from then on.

        A store that does not answer delays this only: the servers are found when it answers.
        """
        try:
            await self.poll()
        except StoreError as error:
            logger.warning("failed to read the registrations of agents; trying again: %s", error.message)
        self._task = asyncio.create_task(self._follow(), name="discovery")

    async def stop(self) -> None:
        """Stop following, and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for stack in self._stacks.values():
            await stack.aclose()

    async def poll(self) -> None:
        """Read the registrations once, and apply what changed.

        Raises:
            StoreError: The store failed.
        """
        present = await asyncio.to_thread(self._log.present)
        for name in sorted(present.keys() | self._known.keys()):
            await self._look(name, present.get(name, {}))

    async def _follow(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.poll()
                failing = False
            except StoreError as error:
                if not failing:
                    logger.warning("failed to read the registrations of agents: %s", error.message)
                failing = True
            except Exception:
                # Outermost handler of the loop: one bad registration must not hide the others.
                logger.exception("unexpected error while reading the registrations of agents")

    async def _look(self, name: str, found: Mapping[str, Heartbeat]) -> None:
        if name in self._fixed:
            self._tell_once("Warning", "AgentRefused", name, "its name is that of a server in the settings")
            return
        known = self._known.get(name)
        if known is not None:
            beat = found.get(known.token)
            known.gone = 0 if beat is not None else known.gone + 1
            known.silent = 0 if beat is not None and beat.number != known.beat.number else known.silent + 1
            if beat is not None and beat.digest != known.beat.digest:
                await self._changed(name, known, beat)
            elif beat is not None:
                known.beat = beat
            if known.gone >= _GONE_POLLS or (known.registration and known.registration.leaving and known.gone):
                self._leave(name, "its agent ended")
            elif known.silent >= self._forget_polls and self._away(name):
                self._leave(name, "its agent is silent, and Triton does not answer")
        for token, beat in sorted(found.items()):
            if name not in self._known:
                await self._join(name, token, beat)
            elif token != self._known[name].token:
                self._tell_once(
                    "Warning", "AgentRefused", name, f"a second agent (token {token}) has registered under this name"
                )

    async def _read(self, name: str, token: str, beat: Heartbeat) -> Registration | None:
        """Return a registration; None if it counts for nothing, which an event says."""
        data = await asyncio.to_thread(self._log.read, name, token, beat)
        if data is None:
            return None
        try:
            registration = Registration.verified(data, self._key)
        except ControlPlaneError as error:
            self._tell_once("Warning", "AgentRefused", name, error.message)
            return None
        if registration.name != name:
            self._tell_once("Warning", "AgentRefused", name, f"its registration names {registration.name}")
            return None
        return registration

    async def _join(self, name: str, token: str, beat: Heartbeat) -> None:
        registration = await self._read(name, token, beat)
        if registration is None or registration.leaving:
            return
        stack = AsyncExitStack()
        try:
            server = self._connect(stack, registration)
        except ControlPlaneError as error:
            await stack.aclose()
            self._tell_once("Warning", "AgentRefused", name, error.message)
            return
        self._stacks[name] = stack
        self._known[name] = _Known(token, beat, registration)
        self._servers.join(server)

    async def _changed(self, name: str, known: _Known, beat: Heartbeat) -> None:
        registration = await self._read(name, known.token, beat)
        if registration is None:
            return
        before, known.beat, known.registration = known.registration, beat, registration
        if registration.leaving:
            self._leaving(name)
        elif before is None or before.model_copy(update={"version": registration.version}) != registration:
            self._leave(name, "its agent has registered it with other values")
            await self._join(name, known.token, beat)

    def _leave(self, name: str, why: str) -> None:
        logger.info("the server %s leaves: %s", name, why)
        self._known.pop(name, None)
        self._servers.leave(name)
        stack = self._stacks.pop(name, None)
        if stack is not None:
            task = asyncio.create_task(_close_later(stack), name=f"close {name}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _tell_once(self, type_: Literal["Normal", "Warning"], reason: str, name: str, message: str) -> None:
        if (name, message) not in self._told:
            self._told.add((name, message))
            self._report(type_, reason, name, message)


async def _close_later(stack: AsyncExitStack) -> None:
    try:
        await asyncio.sleep(_CLOSE_SECONDS)
    finally:
        await stack.aclose()
