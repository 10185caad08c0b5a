"""Metrics of the scrub."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.services.scrubbing import Scrubbing


class ScrubMetrics(Collector):
    """Reads the state of the scrub at each scrape."""

    def __init__(self, scrubbing: Scrubbing) -> None:
        self._scrubbing = scrubbing

    def collect(self) -> Iterator[Metric]:
        """Yield the scrub's metrics."""
        record = self._scrubbing.view().record
        damaged = GaugeMetricFamily(
            "tritonctl_damaged_blobs", "Blobs that are damaged in the store or missing from it.", labels=["kind"]
        )
        missing = sum(damage.missing for damage in record.damages.values())
        damaged.add_metric(["missing"], missing)
        damaged.add_metric(["damaged"], len(record.damages) - missing)
        yield damaged
        yield CounterMetricFamily(
            "tritonctl_scrub_read_bytes", "Bytes that this process read in scrubs.", value=self._scrubbing.read_bytes
        )
        yield CounterMetricFamily(
            "tritonctl_scrub_requests",
            "Requests that this process made in scrubs, except writes of the position.",
            value=self._scrubbing.requests,
        )
        finished = GaugeMetricFamily(
            "tritonctl_scrub_finished_timestamp_seconds",
            "Time when the last complete pass ended; absent before the first.",
        )
        if record.finished_at is not None:
            finished.add_metric([], record.finished_at.timestamp())
        yield finished
