"""Prometheus metrics of the devices."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.services.devices import Devices

_GAUGES = {
    "total_bytes": "Total memory.",
    "used_bytes": "Memory in use by any process.",
    "budget_bytes": "Memory budget for models.",
    "utilisation": "Fraction of the time that the device is busy, 0 to 1.",
    "temperature_celsius": "Temperature.",
    "power_watts": "Power drawn.",
    "power_limit_watts": "Power limit.",
    "ecc_corrected": "Corrected memory errors since the driver started.",
    "ecc_uncorrected": "Uncorrected memory errors since the driver started.",
}
_LABELS = ("server", "device", "kind", "uuid")


class DeviceMetrics(Collector):
    """Exports the last readings; the caller reads the devices before it collects."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each metric; a device that does not report a metric is not in its family."""
        found = [(one, device) for one in self._devices.latest() for device in one.devices]
        up = GaugeMetricFamily("tritonctl_device_up", "Whether a device can be read.", labels=_LABELS)
        throttled = GaugeMetricFamily(
            "tritonctl_device_throttled", "Whether the device's clocks are throttled.", labels=(*_LABELS, "reason")
        )
        gauges = {
            name: GaugeMetricFamily(f"tritonctl_device_{name}", text, labels=_LABELS) for name, text in _GAUGES.items()
        }
        for server, device in found:
            labels = (server.server, device.name, device.kind.value, device.uuid)
            readable = not (server.error or device.error)
            up.add_metric(labels, float(readable))
            if not readable:
                continue  # old values must not be taken for present ones
            for reason in device.throttle_reasons or ():
                throttled.add_metric((*labels, reason), 1)
            for name, family in gauges.items():
                value = getattr(device, name)
                if value is not None:
                    family.add_metric(labels, value)
        yield up
        yield throttled
        yield from gauges.values()
