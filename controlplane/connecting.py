"""Connects this process to its Triton servers: the embedded one, those in the settings, and those that register."""

import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from controlplane.checkedfiles import CheckedFiles
from controlplane.domain.states import ServerState
from controlplane.errors import InvalidInputError
from controlplane.folders import make_folder
from controlplane.gpu.base import DeviceSource
from controlplane.gpu.budgets import BudgetRules
from controlplane.gpu.factory import embedded_devices, server_devices
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.agents import AgentLog
from controlplane.registry.registry import Registry
from controlplane.sandbox import Sandbox
from controlplane.servers.agent import AgentClient, AgentDevices, AgentRepository
from controlplane.servers.discovery import Discovery
from controlplane.servers.registration import Registration
from controlplane.servers.repository import ServerRepository
from controlplane.servers.server import ManagedServer
from controlplane.servers.server_set import ServerSet
from controlplane.settings import Settings, TritonServerSettings
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.embedded.identity import repository_lock, server_id
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.metrics_scraper import MetricsScraper
from controlplane.triton.repository import ModelRepository

EMBEDDED_NAME = "embedded"


class ServerConnector:
    """Makes the clients of the servers.

    Args:
        settings: All settings.
        sandbox: Confines the embedded Triton.
        gateway_only: Whether this process is only a gateway, which needs no model repositories.
    """

    def __init__(self, settings: Settings, sandbox: Sandbox, *, gateway_only: bool) -> None:
        check_discovery(settings)
        self._settings = settings
        self._sandbox = sandbox
        self._gateway_only = gateway_only

    async def start(self, stack: AsyncExitStack, checked: CheckedFiles) -> ServerSet:
        """Start the embedded Triton, if there is one, and connect to the servers in the settings.

        Raises:
            InvalidInputError: A setting of a server is missing or invalid.
            TritonStartError: The embedded Triton does not start.
        """
        settings = self._settings.triton
        timeouts = TritonTimeouts.of(settings)
        servers = ServerSet()
        if settings.embedded:
            root = settings.repository or self._settings.data_dir / "model_repository"
            make_folder(root, "the model repository")
            stack.enter_context(repository_lock(root))
            run_dir = self._settings.data_dir / "triton"
            # A web page or another container that can send to a port of this machine could load a model, and so run
            # code. The key is new at each start and never written to disk.
            control_key = secrets.token_urlsafe(32) if settings.restrict_control else None
            embedded = EmbeddedTriton(root, run_dir, settings, control_key=control_key, sandbox=self._sandbox)
            stack.push_async_callback(embedded.stop)
            await embedded.start()
            client = TritonClient(
                EMBEDDED_NAME,
                embedded.grpc_url,
                timeouts=timeouts,
                processes=embedded.processes_of,
                log_tail=embedded.log_tail,
                control_key=control_key,
            )
            stack.push_async_callback(client.close)
            devices = embedded_devices(settings, embedded.processes)
            stack.callback(devices.close)
            servers.join(
                ManagedServer(
                    EMBEDDED_NAME,
                    client,
                    ModelRepository(root, checked),
                    embedded,
                    embedded.http_url,
                    self._page(stack, embedded.metrics_url),
                    devices,
                    BudgetRules.from_settings(self._settings.memory),
                    settings.zone,
                    settings.labels,
                    private=settings.restrict_control,
                    identity=server_id(EMBEDDED_NAME, run_dir),
                )
            )
        for server in settings.servers:
            if servers.find(server.name) is not None:
                raise InvalidInputError(f"two Triton servers have the name {server.name!r}", server=server.name)
            servers.join(self._connect(stack, server, checked))
        return servers

    def discovery(
        self, registry: Registry, servers: ServerSet, reconciler: Reconciler, checked: CheckedFiles
    ) -> Discovery:
        """Return what finds registered servers, not started."""
        settings = self._settings.triton
        assert settings.agent_key is not None, "checked"

        def connect(stack: AsyncExitStack, registration: Registration) -> ManagedServer:
            return self._connect(stack, registration.settings(settings), checked)

        def away(name: str) -> bool:
            return any(one.name == name and one.state is not ServerState.READY for one in reconciler.servers())

        return Discovery(
            AgentLog(registry.store),
            servers,
            settings.agent_key.get_secret_value(),
            connect=connect,
            leaving=reconciler.server_leaving,
            away=away,
            report=reconciler.record_event,
            poll_seconds=settings.discover_seconds,
            forget_seconds=settings.forget_seconds,
        )

    def _connect(self, stack: AsyncExitStack, server: TritonServerSettings, checked: CheckedFiles) -> ManagedServer:
        """Return a server that runs elsewhere; the stack closes its connections."""
        key = server.control_key.get_secret_value() if server.control_key else None
        timeouts = TritonTimeouts.of(self._settings.triton)
        client = TritonClient(server.name, server.grpc_url, timeouts=timeouts, control_key=key)
        stack.push_async_callback(client.close)
        page = self._page(stack, server.metrics_url)
        repository, devices = self._node_of(server, page, checked)
        stack.callback(devices.close)
        return ManagedServer(
            server.name,
            client,
            repository,
            None,
            server.http_url,
            page,
            devices,
            BudgetRules.from_settings(self._settings.memory, server),
            server.zone,
            server.labels,
            image=server.image,
        )

    def _node_of(
        self, server: TritonServerSettings, page: MetricsScraper | None, checked: CheckedFiles
    ) -> tuple[ServerRepository, DeviceSource]:
        """Return the model repository and the devices of a server: through its agent, or as this process sees them."""
        if server.agent_url and not self._gateway_only:
            if server.repository is not None:
                raise InvalidInputError(
                    f"the Triton server {server.name!r} has both a repository and an agent_url; its agent owns the "
                    "repository: remove `repository`",
                    server=server.name,
                )
            client = AgentClient.of(server)
            return AgentRepository(client), AgentDevices(client)
        devices = server_devices(server, page, self._settings.triton.request_timeout_seconds)
        return ModelRepository(self._repository_of(server), checked), devices

    def _repository_of(self, server: TritonServerSettings) -> Path:
        """Return the model repository of a server; a gateway has none, and does not need one to observe the server."""
        if self._gateway_only:
            return self._settings.data_dir / "no-repositories" / server.name
        if server.repository is None:
            raise InvalidInputError(
                f"the Triton server {server.name!r} has no model repository; set `repository` to its path in this "
                "process, or `agent_url` to the URL of the agent beside it",
                server=server.name,
            )
        make_folder(server.repository, f"the model repository of server {server.name!r}")
        return server.repository

    def _page(self, stack: AsyncExitStack, url: str) -> MetricsScraper | None:
        """Return a server's metrics page, shared by readers with different intervals."""
        if not url:
            return None
        looks = (self._settings.monitoring.interval_seconds, self._settings.memory.poll_interval_seconds)
        page = MetricsScraper(url, shared_seconds=min(looks) / 2)
        stack.callback(page.close)
        return page


def check_discovery(settings: Settings) -> None:
    """Ensure that registrations can be checked.

    Raises:
        InvalidInputError: There is no key to check them with.
    """
    if settings.triton.discover and settings.triton.agent_key is None:
        raise InvalidInputError(
            "triton.discover needs triton.agent_key (CONTROLPLANE_TRITON__AGENT_KEY), the control key of the agents: a "
            "registration counts only if it is signed with it"
        )
