"""Prometheus metrics of the models: Triton's counters, and the state of the objectives.

Labels are bounded: deployed models, the versions that the monitor keeps of each, Triton's four reasons, and the windows
of the settings. No label contains text that clients choose.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.monitoring.monitor import Monitor
from controlplane.monitoring.series import FAILED, INDEX
from controlplane.services.monitoring import Monitoring

_LABELS = ("server", "model", "version")
_COUNTERS = {
    "requests": ("tritonctl_model_requests", "Successful requests, by Triton's count."),
    "inferences": ("tritonctl_model_inferences", "Inferences: a batch of 8 counts as 8."),
    "executions": ("tritonctl_model_executions", "Executions of a model."),
    "cpu_seconds": ("tritonctl_model_cpu_seconds", "Processor time of the processes of a model's instances."),
}
_STAGES = {
    "request": "request_seconds",
    "queue": "queue_seconds",
    "compute_input": "compute_input_seconds",
    "compute_infer": "compute_infer_seconds",
    "compute_output": "compute_output_seconds",
}
_LATENCY_SECONDS = 60.0
"""Triton's summaries cover about the last minute."""


class MonitoringMetrics(Collector):
    """Reads the windows at each scrape."""

    def __init__(self, monitoring: Monitoring) -> None:
        self._monitoring = monitoring

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        deployed = self._monitoring.deployed()
        yield from _models(self._monitoring.monitor, frozenset(deployed))
        yield from _servers(self._monitoring.monitor)
        yield from self._objectives()
        lag = GaugeMetricFamily(
            "tritonctl_deployment_lag_seconds",
            "Time since a deployment's observed state began to differ from the desired state; 0 if they agree.",
            labels=("model",),
        )
        for model, seconds in self._monitoring.propagation_lag().items():
            lag.add_metric((model,), seconds)
        yield lag

    def _objectives(self) -> Iterator[Metric]:
        rates = GaugeMetricFamily(
            "tritonctl_objective_burn_rate",
            "Burn rate of an objective's error budget over a window; 1 uses the budget up exactly.",
            labels=("model", "objective", "window_seconds"),
        )
        limits = GaugeMetricFamily(
            "tritonctl_objective_burn_limit",
            "Burn rate at which an objective alerts, by its long window.",
            labels=("model", "objective", "window_seconds"),
        )
        burning = GaugeMetricFamily(
            "tritonctl_objective_burning", "Whether an objective is missed.", labels=("model", "objective")
        )
        for model, states in self._monitoring.states().items():
            for state in states:
                burning.add_metric((model, state.kind.value), float(state.burning))
                reported = set()
                for one in state.windows:
                    limits.add_metric((model, state.kind.value, f"{one.long_seconds:g}"), one.factor)
                    for seconds, rate in ((one.long_seconds, one.long_rate), (one.short_seconds, one.short_rate)):
                        if seconds not in reported:
                            reported.add(seconds)
                            rates.add_metric((model, state.kind.value, f"{seconds:g}"), rate)
        webhook = self._monitoring.webhook
        webhooks = CounterMetricFamily(
            "tritonctl_webhooks", "Webhooks by outcome; failed counts attempts.", labels=("outcome",)
        )
        for outcome in ("delivered", "failed", "given_up", "dropped"):
            webhooks.add_metric((outcome,), webhook.outcomes[outcome])
        queue = GaugeMetricFamily("tritonctl_webhooks_waiting", "Webhooks that are waiting for delivery.")
        queue.add_metric((), webhook.waiting)
        yield from (rates, limits, burning, webhooks, queue)


def _models(monitor: Monitor, deployed: frozenset[str]) -> Iterator[Metric]:
    counters = {name: CounterMetricFamily(*described, labels=_LABELS) for name, described in _COUNTERS.items()}
    failures = CounterMetricFamily(
        "tritonctl_model_failures", "Failed requests, by Triton's reason.", labels=(*_LABELS, "reason")
    )
    seconds = CounterMetricFamily(
        "tritonctl_model_seconds", "Seconds that successful requests took, by stage.", labels=(*_LABELS, "stage")
    )
    pending = GaugeMetricFamily(
        "tritonctl_model_pending_requests", "Requests that are waiting or running.", labels=_LABELS
    )
    latency = GaugeMetricFamily(
        "tritonctl_model_latency_seconds",
        "Latency percentiles of about the last minute, and their source.",
        labels=(*_LABELS, "percentile", "source"),
    )
    for watched in monitor.watched():
        for (model, version), series in watched.series.items():
            if model not in deployed:
                continue
            labels = (watched.source.name, model, str(version))
            for name, family in counters.items():
                if name != "cpu_seconds" or watched.source.cpu_seconds is not None:
                    family.add_metric(labels, float(series.totals[INDEX[name]]))
            for name in FAILED:
                failures.add_metric((*labels, name.partition(":")[2]), float(series.totals[INDEX[name]]))
            for stage, name in _STAGES.items():
                seconds.add_metric((*labels, stage), float(series.totals[INDEX[name]]))
            pending.add_metric(labels, series.pending)
            found = monitor.traffic_stats(model, version, _LATENCY_SECONDS, watched.source.name).latency
            for percentile in (50, 90, 99):
                value = getattr(found, f"p{percentile}_seconds")
                if value is not None:
                    latency.add_metric((*labels, str(percentile), found.source.value), value)
    yield from counters.values()
    yield from (failures, seconds, pending, latency)


def _servers(monitor: Monitor) -> Iterator[Metric]:
    scrapes = CounterMetricFamily(
        "tritonctl_triton_scrapes", "Scrapes of a server's metrics, by result.", labels=("server", "result")
    )
    seconds = CounterMetricFamily(
        "tritonctl_triton_scrape_seconds", "Seconds that scrapes of a server's metrics took.", labels=("server",)
    )
    size = GaugeMetricFamily("tritonctl_triton_metrics_bytes", "Size of a server's metrics page.", labels=("server",))
    held = GaugeMetricFamily(
        "tritonctl_window_bytes",
        "Memory that the windows of a server's models use in the control plane.",
        labels=("server",),
    )
    cpu = GaugeMetricFamily(
        "tritonctl_server_cpu_utilisation", "Fraction of a server's processors in use, 0 to 1.", labels=("server",)
    )
    gpu = GaugeMetricFamily(
        "tritonctl_server_gpu_utilisation", "Fraction of the time that a GPU is busy, 0 to 1.", labels=("server", "gpu")
    )
    for watched in monitor.watched():
        name = watched.source.name
        for result in ("ok", "failed"):
            scrapes.add_metric((name, result), watched.looks[result])
        seconds.add_metric((name,), watched.seconds)
        size.add_metric((name,), watched.page_bytes)
        held.add_metric((name,), sum(series.nbytes for series in watched.series.values()))
    for use in monitor.use():
        if use.cpu_utilisation is not None:
            cpu.add_metric((use.server,), use.cpu_utilisation)
        for uuid, share in use.gpu_utilisation.items():
            gpu.add_metric((use.server, uuid), share)
    yield from (scrapes, seconds, size, held, cpu, gpu)
