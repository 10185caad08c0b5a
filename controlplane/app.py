"""Builds, starts and stops the control plane from its parts."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from controlplane import tracing
from controlplane.api.application import create_application
from controlplane.api.metrics.registry import Metrics
from controlplane.api.middleware import BodyLimits
from controlplane.connecting import ServerConnector
from controlplane.domain.states import ServerState
from controlplane.folders import make_folder
from controlplane.gateway.drain.coordinator import DrainCoordinator
from controlplane.gateway.gateway import Gateway
from controlplane.gateway.opening import build_gateway, check_role
from controlplane.gateway.rollout.split import TrafficSplits
from controlplane.monitoring.monitor import Monitor, ScrapeTarget
from controlplane.monitoring.webhook import Webhook
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.cache import BlobCache
from controlplane.registry.gateways import GatewayLog
from controlplane.registry.head_memory import open_memory
from controlplane.registry.registry import Registry
from controlplane.sandbox import UNCONFINED, choose_sandbox
from controlplane.servers.server import ManagedServer
from controlplane.servers.server_set import ServerSet
from controlplane.services.audit import AuditTrail
from controlplane.services.checking import Checking
from controlplane.services.conversions import Conversions
from controlplane.services.declarations import Declarations
from controlplane.services.deployments import Deployments
from controlplane.services.devices import Devices
from controlplane.services.events import Events
from controlplane.services.exporting import Exporting
from controlplane.services.facade import Services
from controlplane.services.garbage import Garbage
from controlplane.services.gateway import GatewayService
from controlplane.services.gateway_access import GatewayAccess
from controlplane.services.health import ConverterInfo, Health, version
from controlplane.services.holds import Holds
from controlplane.services.idempotency import Idempotency
from controlplane.services.inference import Inference
from controlplane.services.journal import Journal
from controlplane.services.keys import Keys
from controlplane.services.large_json import LargeJson
from controlplane.services.limits import RateLimits
from controlplane.services.memory import Memory
from controlplane.services.models import Models
from controlplane.services.monitoring import Monitoring
from controlplane.services.operations import Operations
from controlplane.services.placement import Placement
from controlplane.services.portability import Portability
from controlplane.services.publishing import Publishing
from controlplane.services.rollouts import Rollouts
from controlplane.services.samples import SampleRecording
from controlplane.services.scrubbing import Scrubbing
from controlplane.services.servers import Servers
from controlplane.services.sessions import Sessions
from controlplane.services.tuning.service import Tunings, room_of
from controlplane.services.uploads.service import Uploads
from controlplane.services.uploads.spool import Spool
from controlplane.services.validation import Validation
from controlplane.services.versions import Versions
from controlplane.services.workers import Workers
from controlplane.services.workspace import Workspace
from controlplane.settings import Settings
from controlplane.storage.base import ObjectStore
from controlplane.storage.clock import StoreClock
from controlplane.storage.factory import local_folders, open_lease_store, open_store
from controlplane.storage.instrumented import MeteredStore
from controlplane.storage.probe import check_store
from converters.registry import BUILT_IN

logger = logging.getLogger(__name__)


_THREADS = 64
"""Threads for blocking calls to the store: they mostly wait, so their number does not depend on the cores."""
_OBSERVE_SECONDS = 2.0


class ControlPlane:
    """One control-plane instance: the API, the reconciler, and the embedded Triton if the settings enable it.

    Attributes:
        settings: Its settings.
        gateway: The gateway; None if it is turned off.
        fastapi: The application; its lifespan starts and stops this object unless it is already started.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._metrics = Metrics()
        self._stack: AsyncExitStack | None = None
        self._registry: Registry | None = None
        self._reconciler: Reconciler | None = None
        self._keys: Keys | None = None
        limits = BodyLimits(settings.api.max_inference_bytes, settings.api.max_body_bytes)
        self._splits = TrafficSplits()
        self._sandbox = UNCONFINED
        self.gateway: Gateway | None = None
        self._gateway_only = settings.role == "gateway"
        self.fastapi: FastAPI = create_application(
            self._metrics, limits, self._lifespan, health_only=self._gateway_only
        )

    @property
    def services(self) -> Services:
        """The services; available after `start`."""
        services: Services = self.fastapi.state.services
        return services

    @property
    def keys(self) -> Keys:
        """The API keys; available after `start`."""
        assert self._keys is not None, "not started"
        return self._keys

    @property
    def registry(self) -> Registry:
        """The registry; available after `start`."""
        assert self._registry is not None, "not started"
        return self._registry

    @property
    def reconciler(self) -> Reconciler:
        """The reconciler; available after `start`."""
        assert self._reconciler is not None, "not started"
        return self._reconciler

    async def start(self) -> None:
        """Open the store, start the embedded Triton and the reconciler.

        Raises:
            UnsupportedStoreError: The store has no create-only put.
            StoreError: The store cannot be reached or used.
            TritonStartError: The embedded Triton does not start; the message contains the end of its log.
        """
        if self._stack is not None:
            return
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def wait_observed(self) -> None:
        """Wait until every server was observed once, so that readers of the ready file see their true state."""
        deadline = time.monotonic() + _OBSERVE_SECONDS
        while any(server.state is ServerState.STARTING for server in self.reconciler.servers()):
            if time.monotonic() > deadline:
                return  # an unreachable or slow server must not delay the start
            await asyncio.sleep(0.01)

    async def finish(self) -> None:
        """Finish the requests in flight if this process is only a gateway; others stop with the requests in flight."""
        if self._gateway_only and self.gateway is not None and self._stack is not None:
            await self.gateway.finish()

    async def stop(self) -> None:
        """Stop the reconciler, running operations and the embedded Triton with all its processes."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        check_role(settings)
        if settings.tracing.otlp_endpoint:
            turn_off = tracing.turn_on(settings.tracing.otlp_endpoint)
            stack.push_async_callback(asyncio.to_thread, turn_off)
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blocking")
        asyncio.get_running_loop().set_default_executor(threads)
        make_folder(settings.data_dir, "the data folder", private=True)
        hidden = (settings.data_dir, *local_folders(settings.store))
        if not self._gateway_only:
            self._sandbox = await asyncio.to_thread(choose_sandbox, settings.sandbox, *hidden)
        store: ObjectStore = await asyncio.to_thread(open_store, settings.store, settings.data_dir)
        stack.push_async_callback(asyncio.to_thread, store.close)
        await asyncio.to_thread(check_store, store)
        lease_seconds = settings.reconciler.lease_seconds
        lease_store = await asyncio.to_thread(open_lease_store, store, settings.store, settings.data_dir, lease_seconds)
        if lease_store is not store:
            stack.push_async_callback(asyncio.to_thread, lease_store.close)
        store = MeteredStore(store, self._metrics.store.observe)
        cache = BlobCache(settings.cache.path or settings.data_dir / "cache", settings.cache.max_bytes)
        registry = self._registry = Registry(
            store,
            cache,
            head_max_age_seconds=settings.store.head_max_age_seconds,
            gc=settings.gc,
            signing=settings.signing,
            clock=StoreClock(store, max_skew_seconds=settings.store.max_clock_skew_seconds),
            memory=await asyncio.to_thread(open_memory, store, settings.data_dir / "heads"),
        )
        await asyncio.to_thread(registry.clock.now)  # measured once, so that `peek` is the store's time
        keys = self._keys = Keys(registry.keys, settings.auth, settings.api.host, clock=registry.clock.peek)
        await keys.open()  # first, to detect addresses that must not be listened on before anything else is started
        stack.push_async_callback(keys.close)
        connector = ServerConnector(settings, self._sandbox, gateway_only=self._gateway_only)
        servers = await connector.start(stack, cache.checked)
        reconciler = self._reconciler = Reconciler(
            registry,
            servers,
            settings.reconciler,
            memory=settings.memory,
            placement=settings.placement,
            lease_store=MeteredStore(lease_store, self._metrics.store.observe),
            clock=registry.clock.peek,
            may_lead=not self._gateway_only,
        )
        servers.follow(reconciler.server_joined, reconciler.server_left)
        limits = RateLimits(settings.auth.rate_per_second, settings.auth.burst)
        access = GatewayAccess(keys, limits, limited=settings.auth.rate_per_second > 0)
        self.gateway = build_gateway(settings, registry, reconciler, servers, self._splits, access)
        if self.gateway is not None:
            keys.check_host(settings.gateway.host)
        services = self._build_services(stack, registry, reconciler, servers, keys, limits)
        if not self._gateway_only:
            await services.operations.recover()
        self.fastapi.state.services = services
        self._metrics.watch(services, reconciler, gateway_only=self._gateway_only)
        # Before the first observation of a server: a model observed before the gateway is registered could be unloaded
        # without an announcement to this gateway.
        peers = DrainCoordinator(
            GatewayLog(store),
            lambda: reconciler.leading,
            drain_seconds=settings.gateway.drain_timeout_seconds,
            gateway=self.gateway,
            private=[server.name for server in servers if server.private],
            sequence_seconds=lambda model: (
                settings.gateway.sequence_timeout_seconds if reconciler.takes_sequences(model) else 0.0
            ),
        )
        stack.push_async_callback(peers.stop)
        await peers.start()
        reconciler.send_through(peers)
        await reconciler.start()
        stack.push_async_callback(reconciler.stop)
        if settings.triton.discover:
            discovery = connector.discovery(registry, servers, reconciler, cache.checked)
            stack.push_async_callback(discovery.stop)
            await discovery.start()
        await services.rollouts.start()
        stack.push_async_callback(services.rollouts.stop)
        if self.gateway is not None:
            await self.gateway.start()
            stack.push_async_callback(self.gateway.stop)
        if not self._gateway_only:
            await services.monitoring.start()
            stack.push_async_callback(services.monitoring.stop)
            await services.scrubbing.start()
            stack.push_async_callback(services.scrubbing.stop)
            await services.tunings.open()
            stack.push_async_callback(services.tunings.close)
            stack.push_async_callback(services.operations.stop)
        what = "gateway" if self._gateway_only else "control plane"
        logger.info("%s %s uses the store %s", what, version(), store.url)

    def _build_services(
        self,
        stack: AsyncExitStack,
        registry: Registry,
        reconciler: Reconciler,
        servers: ServerSet,
        keys: Keys,
        limits: RateLimits,
    ) -> Services:
        settings = self.settings
        workspace = Workspace(settings.data_dir / "work")
        workers = Workers(settings.conversion, workspace.root, self._sandbox)
        stack.callback(workers.close)
        large_json = LargeJson()
        stack.callback(large_json.close)
        operations = Operations(registry.store, Journal(settings.data_dir / "operations"))
        uploads = Uploads(Spool(settings.data_dir / "uploads"), registry, max_bytes=settings.api.max_upload_bytes)
        converters = [ConverterInfo(source=source.value, target=target.value) for source, target in BUILT_IN]
        portability = Portability(servers, reconciler)
        deployments = Deployments(registry, reconciler, servers, portability, gateway=self.gateway is not None)
        memory = Memory(deployments, reconciler)
        models = Models(registry, reconciler)
        gateway = GatewayService(self.gateway)
        monitor = Monitor([_source(server) for server in servers], settings.monitoring)
        servers.follow(lambda server: monitor.join(_source(server)), lambda server: monitor.leave(server.name))
        versions = Versions(registry, servers)
        inference = Inference(registry, reconciler, servers, self.gateway)
        return Services(
            models=models,
            versions=versions,
            samples=SampleRecording(registry, reconciler, inference, versions, servers, self.gateway),
            uploads=uploads,
            publishing=Publishing(registry, uploads, operations, workers, workspace, reconciler, servers),
            conversions=Conversions(registry, uploads, operations, workers, workspace, reconciler),
            validation=Validation(registry, uploads, operations, workers, workspace, portability),
            portability=portability,
            deployments=deployments,
            exporting=Exporting(registry, reconciler),
            declarations=Declarations(registry, models, deployments, keys),
            rollouts=Rollouts(registry, deployments, reconciler, self._splits, replica=uuid.uuid4().hex),
            placement=Placement(reconciler),
            memory=memory,
            holds=Holds(registry.holds, deployments, memory, reconciler),
            large_json=large_json,
            inference=inference,
            servers=Servers(reconciler, registry.cordons),
            devices=Devices(servers),
            monitoring=Monitoring(
                monitor,
                reconciler,
                deployments,
                settings.monitoring,
                Webhook(settings.monitoring),
                registry.condition_log,
            ),
            tunings=Tunings(
                registry,
                deployments,
                operations,
                servers,
                request_timeout_seconds=settings.reconciler.proof_timeout_seconds,
                room=room_of(reconciler),
            ),
            operations=operations,
            events=Events(reconciler),
            garbage=Garbage(registry, uploads, operations, settings.gc),
            scrubbing=Scrubbing(registry, reconciler, settings.scrub),
            checking=Checking(registry, operations),
            health=Health(registry, reconciler, settings.data_dir, converters, keys, gateway, self._sandbox),
            gateway=gateway,
            idempotency=Idempotency(registry.store, registry.clock),
            keys=keys,
            audit=AuditTrail(registry.store),
            sessions=Sessions(keys),
            limits=limits,
        )

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        mine = self._stack is None
        await self.start()
        try:
            yield
        finally:
            if mine:
                await self.stop()


def build(settings: Settings) -> ControlPlane:
    """Return a control plane; nothing is opened before `ControlPlane.start`."""
    return ControlPlane(settings)


def _source(server: ManagedServer) -> ScrapeTarget:
    cpu_seconds = server.embedded.cpu_seconds if server.embedded is not None else None
    return ScrapeTarget(server.name, server.page, cpu_seconds)
