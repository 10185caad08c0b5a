"""The gateway: HAProxy, the activator behind it, and the loop that keeps HAProxy's table in sync with the servers."""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn

from controlplane.asgi_server import Server
from controlplane.domain.rollout.sampling import PARTS
from controlplane.errors import GatewayError, InvalidInputError
from controlplane.gateway.activator.activator import Activator, Resolve
from controlplane.gateway.activator.grpc import GrpcProxy
from controlplane.gateway.activator.http import HttpProxy
from controlplane.gateway.activator.request_queue import QueueLimits, RequestQueue
from controlplane.gateway.auth import Access
from controlplane.gateway.drain.follower import no_peers
from controlplane.gateway.handover import listen
from controlplane.gateway.haproxy import route_table as tables
from controlplane.gateway.haproxy.backends import Backends
from controlplane.gateway.haproxy.config import (
    ACTIVATOR_GRPC,
    ACTIVATOR_HTTP,
    ADMIN_SOCKET,
    Sockets,
    render,
    slots_for,
)
from controlplane.gateway.haproxy.process import HAProxy
from controlplane.gateway.haproxy.route_table import MAPS, Table
from controlplane.gateway.haproxy.runtime_api import RuntimeApi
from controlplane.gateway.rollout.split import TrafficSplits
from controlplane.gateway.routes import Routes, waiting_at_most
from controlplane.gateway.stats import GatewayStats
from controlplane.gateway.views import GatewayAddress, GatewayView, ModelRoute, Way
from controlplane.reconciler.controller import Reconciler
from controlplane.reconciler.routes import Route
from controlplane.servers.server import ManagedServer
from controlplane.servers.server_set import ServerSet
from controlplane.settings import GatewaySettings

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.005
"""Time between two checks of the routes, so that changes that occur together are applied together."""
_DRAIN_SECONDS = 0.005
_DRAIN_MAX_SECONDS = 0.1
_BACKLOG = 1024
_OWN_FILES = 256
"""File descriptors that HAProxy needs besides those of clients: listeners, health checks, idle server connections."""


class Gateway:
    """One gateway. Belongs to the event loop it was started in.

    Args:
        settings: Ports and limits.
        binary: The HAProxy binary.
        folder: The folder for its files.
        reconciler: Loads models, and gives their routes.
        servers: The Triton servers.
        resolve: Returns the version of an alias.
        access: Checks which client may use which model.
        splits: The models with a rollout in progress, and the share of their requests that the activator gets.
        linger_seconds: How long HAProxy outlives this process.
        spare_servers: How many servers can join while HAProxy runs.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        binary: Path,
        folder: Path,
        reconciler: Reconciler,
        servers: ServerSet,
        resolve: Resolve,
        splits: TrafficSplits,
        access: Access,
        linger_seconds: float,
        spare_servers: int,
    ) -> None:
        self._linger_seconds = linger_seconds
        self._settings = settings.model_copy(update={"max_connections": _connections(settings.max_connections)})
        self._access = access
        self._binary = binary
        self._folder = folder.absolute()
        self._reconciler = reconciler
        self._backends = Backends(servers, spare=spare_servers)
        self._grpc_urls = {one.name: one.client.grpc_url for one in servers}
        self._http_urls = {one.name: one.http_url for one in servers}
        servers.follow(self._server_joined, self._server_left)
        self._open_routes = Routes(lambda: reconciler.pauses)
        self.stats = GatewayStats()
        limits = QueueLimits(
            settings.queue_max_requests_per_model,
            settings.queue_max_requests,
            settings.queue_max_bytes_per_model,
            settings.queue_max_bytes,
        )
        self.activator = Activator(
            reconciler,
            self._open_routes,
            RequestQueue(limits),
            self.stats,
            resolve,
            access,
            timeout_seconds=settings.load_timeout_seconds,
            outage_seconds=settings.outage_timeout_seconds,
            splits=splits,
        )
        self._applied = self._no_routes()
        self._applied_inputs: _Inputs | None = None
        self._applied_pauses = 0
        self._applying = asyncio.Lock()
        self._stack: AsyncExitStack | None = None
        self._haproxy: HAProxy | None = None
        self._api: RuntimeApi | None = None
        self._listeners: dict[str, socket.socket] = {}
        self._addresses: dict[str, str] = {}

    @property
    def http_url(self) -> str:
        """URL for HTTP clients."""
        scheme = "https" if self._settings.tls_certificate else "http"
        return f"{scheme}://{self._addresses['http']}"

    @property
    def grpc_url(self) -> str:
        """host:port for gRPC clients."""
        return self._addresses["grpc"]

    @property
    def metrics_url(self) -> str:
        """URL of HAProxy's own metrics, without servers that are out of service."""
        return f"http://{self._addresses['metrics']}/metrics?no-maint"

    @property
    def haproxy(self) -> HAProxy:
        """The HAProxy process; available after `start`."""
        assert self._haproxy is not None, "not started"
        return self._haproxy

    @property
    def _ready(self) -> bool:
        return self._haproxy is not None and self._haproxy.ready

    @property
    def api(self) -> RuntimeApi:
        """HAProxy's runtime API; available after `start`."""
        assert self._api is not None, "not started"
        return self._api

    async def start(self) -> None:
        """Listen, start HAProxy, and keep its table in sync with the servers from then on.

        Raises:
            ConflictError: A port is in use.
            GatewayError: HAProxy does not start.
        """
        async with AsyncExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The folder by its file descriptor: a socket's path has at most 107 characters.
            number = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, number)
            short = Path(f"/proc/self/fd/{number}")
            self._listeners, predecessor = listen(self._settings, short)
            for name, listener in self._listeners.items():
                stack.enter_context(listener)
                self._addresses[name] = _address(listener)
            grpc_face = GrpcProxy(self.activator, self._grpc_urls)
            stack.push_async_callback(grpc_face.close)
            await grpc_face.start(
                str(short / ACTIVATOR_GRPC), max_message_bytes=_message_limit(self._settings.queue_max_bytes_per_model)
            )
            http_face = HttpProxy(
                self.activator,
                self._http_urls,
                answer_seconds=self._settings.request_timeout_seconds,
                attended=lambda: self._applied_pauses == self._reconciler.pauses,
            )
            stack.push_async_callback(http_face.close)
            await stack.enter_async_context(_serving(http_face, short / ACTIVATOR_HTTP))
            stack.push_async_callback(self.activator.close)
            self._api = RuntimeApi(short / ADMIN_SOCKET)
            self._haproxy = HAProxy(
                self._binary,
                self._folder,
                prepare=self._prepare,
                api=self._api,
                sockets=tuple(listener.fileno() for listener in self._listeners.values()),
                linger_seconds=self._linger_seconds,
            )
            stack.push_async_callback(self._haproxy.stop)
            await self._haproxy.start()
            if predecessor is not None:
                predecessor.retire()
            following = asyncio.create_task(self._follow(), name="gateway")
            stack.push_async_callback(_cancelled, following)
            self._stack = stack.pop_all()
        logger.info("gateway listening on %s (HTTP) and %s (gRPC)", self.http_url, self.grpc_url)

    async def stop(self) -> None:
        """Stop the gateway; requests in flight are aborted."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    async def finish(self) -> None:
        """Accept no more connections and wait, within the time limit, until the requests in flight are answered."""
        for listener in self._listeners.values():
            listener.close()
        seconds = self._settings.shutdown_timeout_seconds
        if not await self.haproxy.finish(seconds):
            logger.warning(
                "requests were still in flight after %g s (gateway.shutdown_timeout_seconds); they are aborted", seconds
            )

    @asynccontextmanager
    async def closed(
        self, server: str, model: str, others: Callable[[], Awaitable[None]] = no_peers
    ) -> AsyncIterator[None]:
        """See `controlplane.gateway.drain.follower.LocalGateway`. Works also before `start` and after `stop`."""
        with self._open_routes.without(server, model):
            slot = self._applied.models.get(model)
            await self._apply()
            patience = self._settings.sequence_timeout_seconds if self._reconciler.takes_sequences(model) else 0.0
            async with waiting_at_most(patience + self._settings.drain_timeout_seconds, server, model):
                await self._started()
                await self._sequences_ended(server, model, patience)
                await self._drained(server, model, slot)
                await others()
            yield

    async def look(self, server: str, model: str) -> None:
        """See `controlplane.gateway.drain.follower.LocalGateway`."""
        await self._reconciler.look(server, model)

    def address(self) -> GatewayAddress:
        """Return the addresses of the gateway."""
        return GatewayAddress(
            http_url=self.http_url,
            grpc_url=self.grpc_url,
            metrics_url=self.metrics_url,
            tls=self._settings.tls_certificate is not None,
            ready=self.haproxy.ready,
        )

    def view(self) -> GatewayView:
        """Return the state of the gateway and its models."""
        room = self.activator.room
        waiting = dict(room.requests)
        names = sorted({*self._open_routes.open, *waiting})
        models = [
            ModelRoute(
                model=name,
                way=self._way(name),
                measured_share=self._applied.splits.get(name, 0) / PARTS,
                servers=self._open_routes.open[name].servers if name in self._open_routes.open else (),
                waiting=waiting.get(name, 0),
            )
            for name in names
        ]
        return GatewayView(
            **dict(self.address()),
            restarts=self.haproxy.restarts,
            waiting_requests=sum(waiting.values()),
            waiting_bytes=room.held.total(),
            models=tuple(models),
        )

    def _way(self, model: str) -> Way:
        if model not in self._applied.models:
            return "activator"
        return "split" if model in self._applied.splits else "direct"

    async def _prepare(self) -> None:
        """Write the files that HAProxy reads when it starts, so that it knows every route before the first request."""
        if self._backends.grow():
            self._applied = self._no_routes()
        self._applied_inputs = self._inputs()
        self._applied, self._applied_pauses = self._wanted(self._applied_inputs), self._open_routes.pauses
        sockets = Sockets(**{name: listener.fileno() for name, listener in self._listeners.items()})
        files = {
            "haproxy.cfg": render(self._settings, sockets, self._backends.all, self._applied),
            **{name: self._applied.map_text(name) for name in MAPS},
        }
        for name, text in files.items():
            # Blocking, but only a few kilobytes: nothing may change between the table and its files.
            (self._folder / name).write_text(text, encoding="utf-8")

    def _inputs(self) -> "_Inputs":
        return _Inputs(
            self._open_routes.open,
            self._access.direct(),
            {**self.activator.recorder.parts(), **self.activator.splits.parts()},
        )

    def _wanted(self, inputs: "_Inputs") -> Table:
        keys = self._backends.keys
        routes = {
            model: replace(route, servers=tuple(keys[server] for server in route.servers))
            for model, route in inputs.routes.items()
            # HAProxy cannot read which sequence a request belongs to, and may lack a server that has just joined.
            if route.sequence_idle_seconds is None and keys.keys() >= set(route.servers)
        }
        return tables.arrange(self._applied, routes, inputs.direct, inputs.splits)

    async def _apply(self) -> None:
        """Update HAProxy's table to the routes that are open now."""
        async with self._applying:
            inputs, pauses = self._inputs(), self._open_routes.pauses
            if not self._ready:
                return  # an HAProxy that starts reads everything
            try:
                await self._move_servers()
            except GatewayError as error:
                logger.warning("HAProxy does not know a server that joined; trying again: %s", error)
                return
            if self._applied_inputs is not None and inputs.same(self._applied_inputs):
                self._applied_pauses = pauses
                return
            wanted = self._wanted(inputs)
            if wanted == self._applied:
                self._applied_inputs, self._applied_pauses = inputs, pauses
                return
            try:
                keys = [backend.key for backend in self._backends.all]
                await self.api.apply(tables.commands(self._applied, wanted, keys))
            except GatewayError as error:
                if self.haproxy.ready:
                    logger.warning("restarting HAProxy: its routing table is out of sync: %s", error)
                    self.haproxy.kill()
                return
            self._applied, self._applied_inputs, self._applied_pauses = wanted, inputs, pauses

    def _no_routes(self) -> Table:
        keys = [backend.key for backend in self._backends.all]
        return tables.empty(slots_for(len(keys), self._settings.backend_slots), keys)

    def _server_joined(self, server: ManagedServer) -> None:
        self._grpc_urls[server.name], self._http_urls[server.name] = server.client.grpc_url, server.http_url
        try:
            if not self._backends.join(server):
                logger.warning(
                    "HAProxy has no spare server for %s: its requests go through the control plane until HAProxy "
                    "starts again (gateway.spare_servers)",
                    server.name,
                )
        except InvalidInputError as error:
            logger.warning("requests for models on %s go through the control plane: %s", server.name, error.message)

    def _server_left(self, server: ManagedServer) -> None:
        self._backends.leave(server.name)
        self._grpc_urls.pop(server.name, None)
        self._http_urls.pop(server.name, None)

    async def _move_servers(self) -> None:
        """Tell HAProxy the addresses of servers that joined, before any model is routed to them."""
        changed = self._backends.take_changed()
        for number, backend in enumerate(changed):
            try:
                await self.api.move(backend, len(self._applied.slots))
            except InvalidInputError as error:  # one bad address must not keep the other routes from HAProxy
                self._backends.refuse(backend)
                logger.warning(
                    "requests for models on %s go through the control plane: %s", backend.grpc, error.message
                )
            except GatewayError:
                self._backends.change_again(changed[number:])
                raise

    async def _follow(self) -> None:
        while True:
            changes = [
                asyncio.create_task(self._reconciler.wait_routes()),
                asyncio.create_task(self.activator.splits.changed.wait()),
                asyncio.create_task(self._access.wait_changed()),
            ]
            await asyncio.sleep(0)  # all of them wait before anything is read, so that no change is missed
            try:
                pauses = self._reconciler.pauses  # read before the routes: after a pause in between they are not used
                self._open_routes.set(self._reconciler.routes(), pauses)
                await self._apply()
                # The timeout is needed because an HAProxy that has just started may have missed the latest change, and
                # because keys expire.
                await asyncio.wait(changes, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            except Exception:
                # Outermost handler of the loop: an unexpected error must not leave clients without a gateway.
                logger.exception("unexpected error in the gateway loop")
            finally:
                for change in changes:
                    change.cancel()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _started(self) -> None:
        """Update an HAProxy that is starting: it may have read the table before the change."""
        if self._haproxy is not None and not self._haproxy.settled.is_set():
            await self._haproxy.settled.wait()
            await self._apply()

    async def _sequences_ended(self, server: str, model: str, seconds: float) -> None:
        """Wait for the open sequences of a model on a server, no longer than the setting allows."""
        if lost := await self.activator.router.sequences.ended(server, model, seconds):
            logger.warning(
                "%d sequences of %s were still open on %s after %g s (gateway.sequence_timeout_seconds); their next "
                "requests will fail",
                lost, model, server, seconds,
            )  # fmt: skip

    async def _drained(self, server: str, model: str, slot: int | None) -> None:
        await self._open_routes.wait_idle(server, model)
        if self._haproxy is not None and self._haproxy.finishing:
            await self._haproxy.wait_finished()
        pause = _DRAIN_SECONDS
        while slot is not None and self._ready:
            with suppress(GatewayError):  # HAProxy died, and with it the requests in flight
                if not await self.api.in_flight(slot, model):
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _DRAIN_MAX_SECONDS)


@dataclass(frozen=True)
class _Inputs:
    """The inputs of HAProxy's table.

    Attributes:
        routes: The open routes; a new mapping after each change.
        direct: The keys whose requests may go directly to Triton.
        splits: The number of requests per million that are measured, by model.
    """

    routes: Mapping[str, Route]
    direct: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, int]

    def same(self, other: "_Inputs") -> bool:
        """Return whether both inputs give the same table; the cost does not depend on the number of routes."""
        return self.routes is other.routes and self.direct == other.direct and self.splits == other.splits


@asynccontextmanager
async def _serving(face: HttpProxy, path: Path) -> AsyncIterator[None]:
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - one system call
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
        config = uvicorn.Config(
            face,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            interface="asgi3",
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)
        serving = await server.begin(listener)
        try:
            yield
        finally:
            server.should_exit = True
            await serving


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def _connections(wanted: int) -> int:
    """Return how many clients HAProxy can accept: each needs two file descriptors, and HAProxy needs some itself."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or (possible := (limit - _OWN_FILES) // 2) >= wanted:
        return wanted
    logger.warning(
        "the gateway accepts %d connections instead of %d: the process may open only %d files (ulimit -n)",
        max(1, possible), wanted, limit,
    )  # fmt: skip
    return max(1, possible)


def _message_limit(waiting_bytes: int) -> int:
    """Return gRPC's message limit, which must fit a 32-bit int."""
    return min(max(waiting_bytes, 4 * 1024 * 1024), 2**31 - 1)
