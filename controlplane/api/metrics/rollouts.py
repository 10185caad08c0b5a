"""Prometheus metrics of rollouts in progress, as this instance measured them."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.services.rollouts import Rollouts


class RolloutMetrics(Collector):
    """Reads the traffic splits at each scrape."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def collect(self) -> Iterator[Metric]:
        """Yield the share of the new version, and the requests and failures of both versions."""
        weights = GaugeMetricFamily(
            "tritonctl_rollout_weight", "Fraction of the requests that the new version receives.", labels=("model",)
        )
        labels = ("model", "version", "role", "strategy")
        requests = CounterMetricFamily(
            "tritonctl_rollout_requests", "Requests and copies of requests, by version.", labels=labels
        )
        failures = CounterMetricFamily("tritonctl_rollout_failures", "Failed requests, by version.", labels=labels)
        refused = CounterMetricFamily(
            "tritonctl_rollout_refused",
            "Requests that the old version answered because the new one was not loaded.",
            labels=("model",),
        )
        for model, rollout, weight, evidence in self._rollouts.measured():
            weights.add_metric((model,), weight)
            refused.add_metric((model,), evidence.refused)
            strategy = rollout.strategy.kind.value
            for role, version, counts in (
                ("old", rollout.old_version, evidence.old),
                ("new", rollout.version, evidence.new),
            ):
                requests.add_metric((model, str(version), role, strategy), counts.requests)
                failures.add_metric((model, str(version), role, strategy), counts.failures)
        yield from (weights, requests, failures, refused)
