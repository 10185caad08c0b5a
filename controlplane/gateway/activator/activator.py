"""Brings a request to a server that answers for its model, loading the model where it is not loaded.

The way of a request that HAProxy cannot send on by itself. One demand is made for a model however many requests wait
for it, and it is given up when the last of them is gone.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from controlplane.domain.names import Reference
from controlplane.domain.states import Phase
from controlplane.errors import (
    ConflictError,
    ControlPlaneError,
    InvalidInputError,
    ModelUnavailableError,
    NotFoundError,
    TooManyWaitingError,
)
from controlplane.gateway.activator.request_queue import RequestQueue
from controlplane.gateway.auth import Access
from controlplane.gateway.rollout.split import TrafficSplits
from controlplane.gateway.routes import Routes
from controlplane.gateway.stats import GatewayStats
from controlplane.reconciler.controller import Reconciler

logger = logging.getLogger(__name__)

Resolve = Callable[[Reference], int]
"""Gives the version an alias points at."""

_AGAIN_SECONDS = 0.25
"""Time until a model that is said to be ready, and that no road leads to, is demanded again."""


class Activator:
    """The meeting point of requests and loads. For one event loop.

    Args:
        reconciler: Gets models loaded.
        open_routes: Where models can be asked now.
        room: Where requests wait.
        stats: Counts how they fare.
        resolve: Gives the version of an alias; may block.
        access: Who may ask which model.
        timeout_seconds: How long a request waits for its model.
        splits: Which models have a rollout under way.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        open_routes: Routes,
        room: RequestQueue,
        stats: GatewayStats,
        resolve: Resolve,
        access: Access,
        *,
        timeout_seconds: float,
        splits: TrafficSplits,
    ) -> None:
        self.splits = splits
        self._reconciler = reconciler
        self.open_routes = open_routes
        self.room = room
        self.stats = stats
        self._resolve = resolve
        self.access = access
        self._timeout = timeout_seconds
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._interested: Counter[str] = Counter()

    async def close(self) -> None:
        """Give up what is being waited for."""
        tasks = list(self._bringing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def meant(self, name: str, version: str) -> tuple[str, str]:
        """Return the model and the version that a name in a request means: ``name@alias`` is a version of ``name``.

        Raises:
            NotFoundError: There is no such alias or model.
        """
        if "@" not in name:
            return name, version
        try:
            reference = Reference.parse(name)
            number = await asyncio.to_thread(self._resolve, reference)
        except InvalidInputError as error:
            raise NotFoundError(error.message, model=name) from error
        return reference.model, str(number)

    def can_serve(self, model: str, version: str) -> bool:
        """Whether a request would be answered, if need be after a load: what *ready* means at the gateway."""
        spec, status = self._reconciler.spec(model), self._reconciler.status(model)
        if spec is None or not spec.loaded or status is None or status.phase is Phase.FAILED:
            return False
        split = self.splits.get(model)
        return not version or version == str(spec.version) or (split is not None and split.named(version) is not None)

    def at_once(self, model: str) -> bool:
        """Whether it can be asked without waiting."""
        return self.open_routes.choose(model) is not None

    def known(self, model: str) -> bool:
        """Whether it is deployed."""
        return self._reconciler.spec(model) is not None

    @asynccontextmanager
    async def at(self, model: str, size: int) -> AsyncIterator[str]:
        """Wait until a model can be asked, and count a request to it while the context is open.

        Args:
            model: The model.
            size: Bytes of the request that are held meanwhile.

        Yields:
            The name of the server to ask.

        Raises:
            NotFoundError: It is not deployed.
            ModelUnavailableError: It cannot be loaded, or is not in time, or this instance can load nothing.
            TooManyWaitingError: Too many requests wait already.
        """
        server = self.open_routes.choose(model)
        if server is None:
            server = await self._wait(model, size)
        with self.open_routes.used(server, model):
            yield server

    async def _wait(self, model: str, size: int) -> str:
        began = time.monotonic()
        outcome = "gone"
        try:
            if why := self._reconciler.refusal():
                raise ModelUnavailableError(f"{model} is not loaded, and cannot be now: {why}", model=model)
            with self.room.place(model, size):
                async with asyncio.timeout(self._timeout):
                    while (server := self.open_routes.choose(model)) is None:
                        await self._brought(model)
            outcome = "loaded"
        except TooManyWaitingError:
            outcome = "refused"
            raise
        except TimeoutError:
            outcome = "late"
            raise ModelUnavailableError(
                f"{model} was not loaded within {self._timeout:g} s; `tritonctl explain {model}` says what it waits "
                f"for",
                model=model,
            ) from None
        except ControlPlaneError:
            outcome = "failed"
            raise
        else:
            return server
        finally:
            self.stats.waited(model, outcome, time.monotonic() - began)

    async def _brought(self, model: str) -> None:
        """Wait until something is known: the model can be asked, or it cannot be loaded."""
        task = self._bringing.get(model)
        if task is None:
            task = self._bringing[model] = asyncio.create_task(self._bring(model), name=f"demand {model}")
            task.add_done_callback(lambda done: self._forget(model, done))
        self._interested[model] += 1
        try:
            await asyncio.shield(task)
        finally:
            self._interested[model] -= 1
            if not self._interested[model]:
                del self._interested[model]
                task.cancel()

    def _forget(self, model: str, task: "asyncio.Task[None]") -> None:
        if self._bringing.get(model) is task:
            del self._bringing[model]
        if not task.cancelled():
            task.exception()  # everybody who waited got it

    async def _bring(self, model: str) -> None:
        """Demand a model and return when it can be asked somewhere.

        Raises:
            NotFoundError: It is not deployed.
            ModelUnavailableError: It cannot be loaded.
        """
        await self._reconciler.wait_read()
        before = self._reconciler.status(model)
        waiting = asyncio.create_task(self._demand(model))
        try:
            while True:
                moved = asyncio.ensure_future(self.open_routes.moved.wait())
                try:
                    if self.open_routes.choose(model) is not None:
                        self.stats.started(before, self._reconciler.status(model))
                        return
                    if waiting.done():
                        waiting.result()
                        # It is ready, and on no road yet: that comes with the next move, or it went wrong again.
                        waiting = asyncio.create_task(self._demand(model, _AGAIN_SECONDS))
                    await asyncio.wait({waiting, moved}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    moved.cancel()
        finally:
            waiting.cancel()

    async def _demand(self, model: str, after_seconds: float = 0.0) -> None:
        await asyncio.sleep(after_seconds)
        try:
            status = await self._reconciler.wait_loaded(model, self._timeout)
        except ConflictError as error:
            raise ModelUnavailableError(error.message, model=model) from error
        if status.phase is Phase.FAILED:  # one that is unloaded had to go again at once: it is demanded anew
            raise ModelUnavailableError(f"{model} cannot be loaded: {status.message}", model=model)
