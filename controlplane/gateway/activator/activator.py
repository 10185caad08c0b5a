"""Finds a server for a request whose model has no direct route, and has the model loaded if it is not.

It handles the requests that HAProxy cannot route itself. It makes one demand per model, however many requests wait for
it, and withdraws the demand when no request waits any more.
"""

import asyncio
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
from controlplane.gateway.activator.sequence_router import SequenceRouter
from controlplane.gateway.auth import Access
from controlplane.gateway.lost import RETRY_AFTER_SECONDS
from controlplane.gateway.recording import TrafficRecorder
from controlplane.gateway.rollout.split import TrafficSplits
from controlplane.gateway.routes import Routes
from controlplane.gateway.sequences import Sequences
from controlplane.gateway.stats import GatewayStats
from controlplane.reconciler.controller import Reconciler

Resolve = Callable[[Reference], int]
"""Returns the version that an alias points to."""

_OUTAGE_SECONDS = 1.0
"""Time between two checks whether any server of a model is reachable, while requests wait for it."""
_AGAIN_SECONDS = 0.25
"""Time until a model that is reported as ready, but has no route, is demanded again."""


class Activator:
    """Holds requests until their models are loaded. For one event loop.

    Args:
        reconciler: Loads models.
        open_routes: The open routes.
        room: The queue of waiting requests.
        stats: Counts the requests.
        resolve: Returns the version of an alias; may block.
        access: Checks which client may use which model.
        timeout_seconds: How long a request waits for its model.
        outage_seconds: How long requests wait while no server of their model is reachable.
        splits: The models with a rollout in progress.
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
        outage_seconds: float,
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
        self._outage_seconds = outage_seconds
        self.router = SequenceRouter(Sequences(), open_routes, splits, self._wait, reconciler.takes_sequences)
        self.recorder = TrafficRecorder()
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._interested: Counter[str] = Counter()

    async def close(self) -> None:
        """Cancel all demands."""
        tasks = list(self._bringing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def resolve(self, name: str, version: str) -> tuple[str, str]:
        """Return the model and version that a name in a request refers to: ``name@alias`` is a version of ``name``.

        Raises:
            NotFoundError: The alias or the model does not exist.
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
        """Return whether a request would be answered, if necessary after a load: *ready* as the gateway defines it."""
        spec, status = self._reconciler.spec(model), self._reconciler.status(model)
        if spec is None or not spec.loaded or status is None or status.phase is Phase.FAILED:
            return False
        split = self.splits.get(model)
        return not version or version == str(spec.version) or (split is not None and split.named(version) is not None)

    def at_once(self, model: str) -> bool:
        """Return whether a request for the model can be sent without waiting."""
        return self.open_routes.choose(model) is not None

    def known(self, model: str) -> bool:
        """Return whether the model is deployed."""
        return self._reconciler.spec(model) is not None

    @asynccontextmanager
    async def acquire(self, model: str, size: int) -> AsyncIterator[str]:
        """Wait until a model has a server, and count a request to it while the context is open.

        Args:
            model: The model.
            size: Bytes of the request that are kept in memory while it waits.

        Yields:
            The name of the server to use.

        Raises:
            NotFoundError: The model is not deployed.
            ModelUnavailableError: It cannot be loaded, or not in time, or this instance cannot load models.
            TooManyWaitingError: Too many requests are already waiting.
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
                raise ModelUnavailableError(f"{model} is not loaded and cannot be loaded now: {why}", model=model)
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
        """Wait until the model has a route or its load has failed."""
        task = self._bringing.get(model)
        if task is None:
            task = self._bringing[model] = asyncio.create_task(self._ensure_loaded(model), name=f"demand {model}")
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
            task.exception()  # all waiting requests have received it

    async def _ensure_loaded(self, model: str) -> None:
        """Demand a model and return when it has a route.

        Raises:
            NotFoundError: The model is not deployed.
            ModelUnavailableError: It cannot be loaded.
        """
        await self._reconciler.wait_read()
        before = self._reconciler.status(model)
        waiting = asyncio.create_task(self._demand(model))
        try:
            while True:
                self._require_server(model)
                moved = asyncio.ensure_future(self.open_routes.moved.wait())
                try:
                    if self.open_routes.choose(model) is not None:
                        self.stats.started(before, self._reconciler.status(model))
                        return
                    if waiting.done():
                        waiting.result()
                        # The model is ready but has no route yet: the next change adds the route, or it failed again.
                        waiting = asyncio.create_task(self._demand(model, _AGAIN_SECONDS))
                    await asyncio.wait({waiting, moved}, timeout=_OUTAGE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    moved.cancel()
        finally:
            waiting.cancel()

    def _require_server(self, model: str) -> None:
        """Raise ModelUnavailableError if no server of a model has been reachable for too long."""
        seconds = self._reconciler.outage_seconds(model)
        if seconds > self._outage_seconds:
            # Clients of models see no addresses and no logs of servers: the server's event has them.
            raise ModelUnavailableError(
                f"{model} cannot be served: none of its Triton servers has been reachable for {seconds:.0f} s; "
                "`tritonctl servers` shows the reason",
                model=model,
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    async def _demand(self, model: str, after_seconds: float = 0.0) -> None:
        await asyncio.sleep(after_seconds)
        try:
            status = await self._reconciler.wait_loaded(model, self._timeout)
        except ConflictError as error:
            raise ModelUnavailableError(error.message, model=model) from error
        if status.phase is Phase.FAILED:  # an unloaded model was evicted again at once; `_bring` demands it again
            raise ModelUnavailableError(f"{model} cannot be loaded: {status.message}", model=model)
