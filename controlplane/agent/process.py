"""The agent as a process: its key, its lock on the model repository, the Triton that it supervises, and its port."""

import asyncio
import logging
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvicorn
import uvloop

from controlplane.agent.blobs import Blobs
from controlplane.agent.http import AgentApi
from controlplane.agent.registrar import Registrar
from controlplane.api.connections import bounded_protocol, connection_limits, raise_descriptor_limit
from controlplane.api.tls import tls_options
from controlplane.asgi_server import Server
from controlplane.errors import ControlPlaneError, InvalidInputError
from controlplane.folders import make_folder
from controlplane.gpu.factory import embedded_devices
from controlplane.process import listen, only_one, unless
from controlplane.sandbox import choose_sandbox
from controlplane.servers.registration import NAME, Registration
from controlplane.services.health import version
from controlplane.services.keys import is_loopback
from controlplane.settings import Settings
from controlplane.storage.factory import local_folders
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.embedded.identity import repository_lock
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.repository import ModelRepository

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 5
_LOOK_SECONDS = 0.5
_KEY_LENGTH = 16


@dataclass(frozen=True)
class AgentRecord:
    """What an agent that is ready says of itself.

    Attributes:
        name: The server's name.
        url: The agent's URL.
        repository: The model repository.
        grpc_url: host:port of Triton's gRPC service; empty if it is not known.
        warning: What an operator should know.
    """

    name: str
    url: str
    repository: str
    grpc_url: str
    warning: str


def run(settings: Settings, *, on_ready: Callable[[AgentRecord], None]) -> None:
    """Run an agent until SIGINT or SIGTERM.

    Args:
        settings: Its settings.
        on_ready: Called once requests are answered.

    Raises:
        InvalidInputError: A setting is missing or invalid.
        ConflictError: Another process uses the data folder or the model repository, or the port is taken.
        ControlPlaneError: The agent cannot be started.
    """
    os.umask(0o022)  # Triton reads the model repository as another user
    _check(settings)
    make_folder(settings.data_dir, "the data folder", private=True)
    with (
        only_one(settings.data_dir, "agent or control plane"),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(settings, on_ready))


async def _serve(settings: Settings, on_ready: Callable[[AgentRecord], None]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    agent = settings.agent
    tls = tls_options(agent.tls, "agent")
    limits = connection_limits(1000, 500, 10.0, 30.0, raise_descriptor_limit())
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(agent.host, agent.port))
        root = settings.triton.repository or settings.data_dir / "model_repository"
        make_folder(root, "the model repository")
        stack.enter_context(repository_lock(root))
        blobs = await asyncio.to_thread(Blobs, settings)
        stack.callback(blobs.close)
        repository = ModelRepository(root.absolute(), blobs.cache.checked)
        await asyncio.to_thread(repository.clean)
        embedded: EmbeddedTriton | None = None
        if settings.triton.embedded:
            embedded = await _supervise(settings, stack, stopping)
            if embedded is None:
                return
        grpc_url = embedded.grpc_url if embedded else agent.grpc_url
        devices = embedded_devices(settings.triton, embedded.processes if embedded else None)
        stack.callback(devices.close)
        api = AgentApi(agent.name, _key(settings), repository, blobs, devices, _liveness(settings, stack, grpc_url))
        stack.callback(api.jobs.close)
        server = Server(
            uvicorn.Config(
                api.application(),
                http=bounded_protocol(limits),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=_GRACE_SECONDS,
                **tls,
            )
        )
        serving = await server.begin(listener)
        host, port = listener.getsockname()[:2]
        url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        logger.info("the agent of %s listens on %s; model repository %s", agent.name, url, root)
        registrar: Registrar | None = None
        if agent.register_server:
            registrar = _registrar(settings, blobs, url, embedded, grpc_url)
            stack.push_async_callback(registrar.stop)
            await registrar.start()
        warning = ""
        if not tls and not is_loopback(agent.host):
            warning = f"the control key is sent unencrypted to {url}; set agent.tls or use a network that you trust"
        on_ready(AgentRecord(agent.name, url, str(root), grpc_url, warning))
        try:
            await unless(stopping, asyncio.shield(serving))
            if registrar is not None:
                await registrar.leaving()
                await _wait_empty(settings, grpc_url)
        finally:
            server.should_exit = True
            await serving


async def _supervise(settings: Settings, stack: AsyncExitStack, stopping: asyncio.Event) -> EmbeddedTriton | None:
    """Start the embedded Triton; return None if the agent is to stop meanwhile."""
    hidden = (settings.data_dir, *local_folders(settings.store))
    sandbox = await asyncio.to_thread(choose_sandbox, settings.sandbox, *hidden)
    root = settings.triton.repository or settings.data_dir / "model_repository"
    key = settings.agent.triton_control_key.get_secret_value() if settings.agent.triton_control_key else None
    embedded = EmbeddedTriton(root, settings.data_dir / "triton", settings.triton, control_key=key, sandbox=sandbox)
    stack.push_async_callback(embedded.stop)
    return embedded if await unless(stopping, embedded.start()) else None


def _liveness(settings: Settings, stack: AsyncExitStack, grpc_url: str) -> Callable[[], Awaitable[bool]]:
    """Return the function that asks whether Triton is live; without its address there is nothing to ask."""
    client: TritonClient | None = None
    if grpc_url:
        client = TritonClient(settings.agent.name, grpc_url, timeouts=TritonTimeouts(request_seconds=2.0))
        stack.push_async_callback(client.close)

    async def live() -> bool:
        if client is None:
            return True
        try:
            return await client.server_live()
        except ControlPlaneError:
            return False

    return live


def _registrar(settings: Settings, blobs: Blobs, url: str, embedded: EmbeddedTriton | None, grpc_url: str) -> Registrar:
    """Return the agent's registrar; the addresses in it are those that others use."""
    agent = settings.agent
    host = agent.advertise_host or agent.host

    def seen(address: str) -> str:
        """Return a URL or host:port of this machine as others reach it."""
        scheme, separator, rest = address.rpartition("://")
        port = rest.partition("/")[0].rpartition(":")[2]
        path = rest.partition("/")[1] + rest.partition("/")[2]
        return f"{scheme}{separator}{f'[{host}]' if ':' in host else host}:{port}{path}"

    registration = Registration(
        name=agent.name,
        agent_url=seen(url),
        grpc_url=seen(embedded.grpc_url) if embedded else grpc_url,
        http_url=seen(embedded.http_url) if embedded else agent.http_url,
        metrics_url=seen(embedded.metrics_url) if embedded else agent.metrics_url,
        zone=settings.triton.zone,
        labels=settings.triton.labels,
        image=agent.image,
        version=version(),
    )
    return Registrar(blobs.opened, registration, _key(settings), settings.data_dir, seconds=agent.heartbeat_seconds)


async def _wait_empty(settings: Settings, grpc_url: str) -> None:
    """Wait until no model is loaded, within the time limit: control planes move them to other servers."""
    seconds = settings.agent.drain_seconds
    if not grpc_url or seconds <= 0:
        return
    logger.info("waiting up to %g s until the models are on other servers (agent.drain_seconds)", seconds)
    key = settings.agent.triton_control_key.get_secret_value() if settings.agent.triton_control_key else None
    client = TritonClient(settings.agent.name, grpc_url, timeouts=TritonTimeouts(request_seconds=2.0), control_key=key)
    end = time.monotonic() + seconds
    try:
        while any(entry.state == "READY" for entry in await client.index()):
            if time.monotonic() > end:
                logger.warning("models are still loaded after %g s (agent.drain_seconds)", seconds)
                return
            await asyncio.sleep(_LOOK_SECONDS)
    except ControlPlaneError as error:
        logger.warning("Triton does not answer: %s", error.message)
    finally:
        await client.close()


def _check(settings: Settings) -> None:
    agent = settings.agent
    if not agent.name:
        raise InvalidInputError(
            "the agent has no name; use --name with the server's name in the control plane's list of servers "
            "(CONTROLPLANE_AGENT__NAME)"
        )
    key = _key(settings)
    if len(key) < _KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise InvalidInputError(
            f"the agent's control key must have at least {_KEY_LENGTH} printable ASCII characters; set "
            f"CONTROLPLANE_AGENT__KEY, for example to {secrets.token_urlsafe(24)}"
        )
    if settings.triton.embedded and agent.grpc_url:
        raise InvalidInputError(
            "the agent either supervises a Triton (triton.embedded) or is beside one that runs (agent.grpc_url); give "
            "one of them"
        )
    _check_registration(settings)
    if settings.triton.embedded and settings.triton.restrict_control and agent.triton_control_key is None:
        raise InvalidInputError(
            "the embedded Triton needs a key for model control: set CONTROLPLANE_AGENT__TRITON_CONTROL_KEY, and the "
            "same as control_key in the control plane's list of servers"
        )


def _check_registration(settings: Settings) -> None:
    agent = settings.agent
    if not agent.register_server:
        return
    if NAME.fullmatch(agent.name) is None:
        raise InvalidInputError(
            f"the agent cannot register as {agent.name[:80]!r}: a name has at most 63 letters, digits, dots, hyphens "
            "and underscores, and begins with a letter or digit"
        )
    if not settings.triton.embedded and not agent.grpc_url:
        raise InvalidInputError(
            "the agent cannot register without the address of its Triton; use --triton-grpc HOST:PORT with a host name "
            "that other machines can reach, or --embedded"
        )
    host = agent.advertise_host or agent.host
    if host in {"0.0.0.0", "::"}:
        raise InvalidInputError(
            f"the agent listens on all addresses ({host}), and others need one of them: set --advertise-host to the "
            "name or the address of this machine"
        )


def _key(settings: Settings) -> str:
    return settings.agent.key.get_secret_value() if settings.agent.key else ""
