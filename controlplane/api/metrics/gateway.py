"""Prometheus metrics of the gateway: requests by path, waiting requests, cold starts, and HAProxy's counters."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.gateway.stats import SECONDS, Histogram, RequestLabels
from controlplane.services.gateway import GatewayService

_HAPROXY = {
    "stot": ("gateway_requests", "Requests and connections that a part of HAProxy handled."),
    "econ": ("gateway_connection_errors", "Failed connections to a server."),
    "eresp": ("gateway_response_errors", "Responses of a server that were interrupted."),
    "wretr": ("gateway_retries", "Connections that were retried."),
    "bin": ("gateway_received_bytes", "Bytes from clients."),
    "bout": ("gateway_sent_bytes", "Bytes to clients."),
}


class GatewayMetrics(Collector):
    """Reads the gateway at each scrape."""

    def __init__(self, gateway: GatewayService) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; none if there is no gateway."""
        snapshot = self._gateway.snapshot
        if snapshot is None:
            return
        requests = CounterMetricFamily(
            "tritonctl_gateway_model_requests",
            "Requests by model, way (direct, activator, canary, by-version, shadow), version, "
            "protocol and code; on the direct way, the code is a class such as 2xx. Shadow "
            "requests to the new version are copies.",
            labels=list(RequestLabels._fields),
        )
        for kind, count in (*snapshot.fast.items(), *snapshot.stats.requests.items()):
            requests.add_metric(list(kind), count)
        yield requests
        waits = CounterMetricFamily(
            "tritonctl_gateway_queued_requests",
            "Requests that waited for a load, by outcome: loaded, failed, late, refused, gone.",
            labels=["model", "outcome"],
        )
        for (model, outcome), count in snapshot.stats.waits.items():
            waits.add_metric([model, outcome], count)
        yield waits
        yield _histogram(
            "tritonctl_gateway_wait_seconds",
            "Seconds that requests waited for a load.",
            "outcome",
            snapshot.stats.wait_seconds,
        )
        yield _histogram(
            "tritonctl_gateway_cold_start_seconds",
            "Loads that a request waited for, by stage.",
            "stage",
            snapshot.stats.stage_seconds,
        )
        waiting = GaugeMetricFamily("tritonctl_gateway_waiting_requests", "Requests that are waiting for a load.")
        waiting.add_metric([], snapshot.view.waiting_requests)
        yield waiting
        held = GaugeMetricFamily("tritonctl_gateway_waiting_bytes", "Bytes of the waiting requests.")
        held.add_metric([], snapshot.view.waiting_bytes)
        yield held
        up = GaugeMetricFamily("tritonctl_gateway_up", "Whether HAProxy is running and responsive.")
        up.add_metric([], float(snapshot.view.ready))
        yield up
        restarts = CounterMetricFamily("tritonctl_gateway_restarts", "Restarts of HAProxy.")
        restarts.add_metric([], snapshot.view.restarts)
        yield restarts
        for column, (name, text) in _HAPROXY.items():
            family = CounterMetricFamily(f"tritonctl_{name}", text, labels=["proxy", "part"])
            for row in snapshot.haproxy:
                if row.get("svname") in ("FRONTEND", "BACKEND") and (value := row.get(column, "")).isdigit():
                    family.add_metric([row.get("pxname", ""), row["svname"].lower()], int(value))
            yield family


def _histogram(name: str, text: str, label: str, histograms: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=[label])
    for key, histogram in histograms.items():
        buckets, total = [], 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), histogram.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric([key], buckets, histogram.sum)
    return family
