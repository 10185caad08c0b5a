"""Prometheus metrics of the control plane itself."""

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from controlplane.api.metrics.devices import DeviceMetrics
from controlplane.api.metrics.gateway import GatewayMetrics
from controlplane.api.metrics.memory import MemoryMetrics
from controlplane.api.metrics.models import MonitoringMetrics
from controlplane.api.metrics.reconciler import LoopMetrics, StoreMetrics
from controlplane.api.metrics.rollouts import RolloutMetrics
from controlplane.api.metrics.scrub import ScrubMetrics
from controlplane.domain.states import Phase, ServerState
from controlplane.reconciler.controller import Reconciler
from controlplane.services.facade import Services

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_UNMATCHED = "(none)"
_PREFIX = "/v1/"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


def route_of(scope: Scope) -> str:
    """Return the route of a request, as the OpenAPI document names it."""
    route: str = getattr(scope.get("route"), "path", _UNMATCHED)
    if scope["path"].startswith(_PREFIX) and route != _UNMATCHED:
        route = _PREFIX.rstrip("/") + route.removeprefix(_PREFIX.rstrip("/"))  # an included route lacks its prefix
    return route


class RequestMetrics:
    """Counts requests by route, never by path, because clients choose paths freely."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "tritonctl_http_requests", "Completed requests.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "tritonctl_http_request_seconds",
            "Time to the end of the response, in seconds.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request; status 0 means that the client disconnected before the response began."""
        route = route_of(scope)
        key = (scope["method"] if route != _UNMATCHED else "any", route, status)
        child = self._children.get(key)
        if child is None:
            method = key[0]
            child = (self._requests.labels(method, route, str(status)), self._seconds.labels(method, route))
            self._children[key] = child
        child[0].inc()
        child[1].observe(seconds)


class StateMetrics(Collector):
    """Reads the state of the control plane at each scrape."""

    def __init__(self, services: Services, reconciler: Reconciler) -> None:
        self._services = services
        self._reconciler = reconciler

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        phases = Tally(status.phase for status in self._reconciler.statuses().values())
        deployments = GaugeMetricFamily("tritonctl_deployments", "Deployments by phase.", labels=["phase"])
        for phase in Phase:
            deployments.add_metric([phase.value], phases.get(phase, 0))
        yield deployments
        versions = GaugeMetricFamily("tritonctl_serving_version", "The active version.", labels=["model", "server"])
        for model, status in self._reconciler.statuses().items():
            for server in status.servers:
                if server.serving_version is not None:
                    versions.add_metric([model, server.server], server.serving_version)
        yield versions
        servers = GaugeMetricFamily("tritonctl_server_up", "Whether a Triton server is ready.", labels=["server"])
        for state in self._reconciler.servers():
            servers.add_metric([state.name], float(state.state is ServerState.READY))
        yield servers
        leading = GaugeMetricFamily("tritonctl_leader", "Whether this instance is the leader.")
        leading.add_metric([], float(self._reconciler.leading))
        yield leading
        running = GaugeMetricFamily("tritonctl_operations_running", "Running operations.")
        running.add_metric([], self._services.operations.running)
        yield running
        finished = CounterMetricFamily("tritonctl_operations", "Ended operations.", labels=["kind", "state"])
        for (kind, end), count in self._services.operations.finished_total.items():
            finished.add_metric([kind, end], count)
        yield finished


class Metrics:
    """All metrics of one application, in a registry of its own, so that several applications can run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # its memory, processor time and open files
        self.requests = RequestMetrics(self.registry)
        self.store = StoreMetrics(self.registry)
        self._watched: tuple[Collector, ...] = ()
        self._services: Services | None = None
        self._gateway_only = False

    def watch(self, services: Services, reconciler: Reconciler, *, gateway_only: bool = False) -> None:
        """Export the metrics of these services from now on; with ``gateway_only`` those of the gateway and the loop."""
        for collector in self._watched:
            self.registry.unregister(collector)
        self._services, self._gateway_only = services, gateway_only
        self._watched = (LoopMetrics(reconciler), GatewayMetrics(services.gateway))
        if not gateway_only:
            self._watched += (
                StateMetrics(services, reconciler),
                DeviceMetrics(services.devices),
                MemoryMetrics(services.memory),
                RolloutMetrics(services.rollouts),
                MonitoringMetrics(services.monitoring),
                ScrubMetrics(services.scrubbing),
            )
        for collector in self._watched:
            self.registry.register(collector)

    async def text(self) -> bytes:
        """Return all metrics in Prometheus' text format, after reading the devices again."""
        if self._services is not None:
            if not self._gateway_only:
                await self._services.devices.all()
            await self._services.gateway.look()
        return generate_latest(self.registry)
