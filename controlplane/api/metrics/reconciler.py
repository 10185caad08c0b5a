"""Prometheus metrics of the reconciler and the store."""

from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.reconciler.controller import Reconciler
from controlplane.reconciler.loop_metrics import BOUNDS

_STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class StoreMetrics:
    """Counts operations on the store; may be called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "tritonctl_store_seconds",
            "Seconds that an operation on the store took, including retries.",
            ["operation"],
            buckets=_STORE_SECONDS,
            registry=registry,
        )
        self._operations = Counter(
            "tritonctl_store_operations",
            "Operations on the store by outcome; exists and missing are results, not errors.",
            ["operation", "outcome"],
            registry=registry,
        )

    def observe(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one operation."""
        self._seconds.labels(operation).observe(seconds)
        self._operations.labels(operation, outcome).inc()


class LoopMetrics(Collector):
    """Reads the metrics of the reconciler's loop at each scrape."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        loop = HistogramMetricFamily(
            "tritonctl_reconcile_seconds",
            "Seconds that the control loop took for a message, by kind.",
            labels=("message",),
        )
        for kind, beats in self._reconciler.loop_metrics.beats.items():
            reached, buckets = 0, []
            for bound, count in zip((*BOUNDS, float("inf")), beats.buckets, strict=True):
                reached += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), float(reached)))
            loop.add_metric((kind,), buckets, beats.seconds)
        yield loop
        inbox = GaugeMetricFamily("tritonctl_reconcile_queue_length", "Messages that are waiting for the control loop.")
        inbox.add_metric((), self._reconciler.waiting)
        yield inbox
        work = CounterMetricFamily(
            "tritonctl_loop_work",
            "Counters of the control loop's cycles, for example planned actions.",
            labels=("work",),
        )
        for name, count in self._reconciler.loop_metrics.cycles.items():
            work.add_metric((name,), count)
        yield work
        missed = CounterMetricFamily(
            "tritonctl_loop_missed",
            "Changes that only the slow pass over all models found, because no event had marked "
            "them: each one is a defect.",
            labels=("what",),
        )
        for what, count in self._reconciler.missed.items():
            missed.add_metric((what,), count)
        yield missed
        wanted = GaugeMetricFamily(
            "tritonctl_wanted_servers",
            "Servers that a pool needs for the models that are placed on it and for those that have no place; only "
            "on the leader.",
            labels=("pool",),
        )
        queued = CounterMetricFamily(
            "tritonctl_pool_queue_seconds",
            "Seconds that requests spent in Triton's queues on the servers of a pool; the rate is the mean number of "
            "waiting requests. Only on the leader.",
            labels=("pool",),
        )
        for pool, demand in self._reconciler.pools().items():
            wanted.add_metric((pool,), demand.servers)
            queued.add_metric((pool,), demand.queue_seconds)
        yield wanted
        yield queued
        age = GaugeMetricFamily(
            "tritonctl_server_observed_age_seconds",
            "Seconds since the last observation of a server.",
            labels=("server",),
        )
        cordoned = GaugeMetricFamily(
            "tritonctl_server_cordoned", "1 if a server takes no new replicas, else 0.", labels=("server",)
        )
        remaining = GaugeMetricFamily(
            "tritonctl_server_drain_remaining",
            "Models that are still on a server that is drained; absent if it is not drained.",
            labels=("server",),
        )
        now = datetime.now(UTC)
        for server in self._reconciler.servers():
            cordoned.add_metric((server.name,), server.cordon is not None)
            if server.cordon is not None and server.cordon.drain:
                remaining.add_metric((server.name,), len(server.cordon.remaining))
            if server.observed_at is not None:
                age.add_metric((server.name,), max((now - server.observed_at).total_seconds(), 0.0))
        yield age
        yield cordoned
        yield remaining
