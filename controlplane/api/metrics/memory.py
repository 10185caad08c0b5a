"""Prometheus metrics of the ledgers."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.services.memory import Memory

_STATES = ("resident", "reserved", "loading", "unloading", "unaccounted", "free")
_COUNTERS = {
    "loads": ("model_loads", "Models loaded."),
    "cold_starts": ("cold_starts", "Loads that a request or client waited for."),
    "evictions": ("evictions", "Models unloaded to make room for another model."),
    "expirations": ("expirations", "Models unloaded because they were idle."),
    "refusals": ("load_refusals", "Loads that were refused for lack of memory."),
    "out_of_memory": ("load_out_of_memory", "Loads that failed because Triton ran out of memory."),
    "gaps": ("switch_gaps", "Version switches during which no version was active for some time."),
    "measured": ("footprints_measured", "Footprints measured after a load."),
    "estimate_error_bytes": ("footprint_estimate_error_bytes", "Sum of |measured - estimated| of footprints."),
}
_STAGES = ("wait", "fetch", "stage", "load", "prove")


class MemoryMetrics(Collector):
    """Reads the ledgers at each scrape."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        """Yield bytes by device, by model and state, and the counters since the start."""
        servers = self._memory.servers()
        devices = GaugeMetricFamily(
            "tritonctl_memory_bytes",
            "Memory of a device by state.",
            labels=("server", "device", "state"),
        )
        budgets = GaugeMetricFamily(
            "tritonctl_memory_budget_bytes", "Memory budget of a device.", labels=("server", "device")
        )
        models = GaugeMetricFamily(
            "tritonctl_model_memory_bytes",
            "Memory that the ledger attributes to a model.",
            labels=("server", "device", "model", "state"),
        )
        errors = GaugeMetricFamily(
            "tritonctl_model_footprint_estimate_error_bytes",
            "Measured - estimated footprint of a loaded model on a device.",
            labels=("server", "model"),
        )
        queued = GaugeMetricFamily("tritonctl_loads_queued", "Loads that are waiting for memory.", labels=("server",))
        largest = GaugeMetricFamily(
            "tritonctl_footprint_estimate_error_max_bytes",
            "Largest measured - estimated footprint since the start.",
            labels=("server",),
        )
        excess = GaugeMetricFamily(
            "tritonctl_server_leaked_bytes",
            "Memory of a server beyond its ledger, by device, which a restart would free.",
            labels=("server", "device"),
        )
        restarts = CounterMetricFamily(
            "tritonctl_server_leak_restarts", "Restarts of a server because of leaked memory.", labels=("server",)
        )
        counters = {
            key: CounterMetricFamily(f"tritonctl_{name}", text, labels=("server",))
            for key, (name, text) in _COUNTERS.items()
        }
        seconds = CounterMetricFamily(
            "tritonctl_load_seconds", "Seconds that loads took, by stage.", labels=("server", "stage")
        )
        for one in servers:
            for device in one.devices:
                budgets.add_metric((one.server, device.device), device.budget_bytes)
                for state in _STATES:
                    devices.add_metric((one.server, device.device, state), getattr(device, f"{state}_bytes"))
            for model in one.models:
                for footprint in model.footprint:
                    if footprint.held_bytes:
                        labels = (one.server, footprint.device, model.model, model.state)
                        models.add_metric(labels, footprint.held_bytes)
                # One series for each loaded model; its footprint is the same on each of several devices.
                wrong = [
                    footprint.bytes - footprint.estimate_bytes
                    for footprint in model.footprint
                    if footprint.held_bytes and footprint.estimate_bytes is not None
                ]
                if wrong:
                    errors.add_metric((one.server, model.model), max(wrong))
            if one.leak is not None:
                restarts.add_metric((one.server,), one.leak.restarts)
                for name, size in one.leak.excess_bytes.items():
                    excess.add_metric((one.server, name), size)
            queued.add_metric((one.server,), len(one.queue))
            largest.add_metric((one.server,), one.counters.get("estimate_error_max_bytes", 0.0))
            for key, family in counters.items():
                if key in one.counters:
                    family.add_metric((one.server,), one.counters[key])
            for stage in _STAGES:
                seconds.add_metric((one.server, stage), one.counters.get(f"load_{stage}_seconds", 0.0))
        yield from (devices, budgets, models, errors, queued, largest, seconds, excess, restarts)
        yield from counters.values()
