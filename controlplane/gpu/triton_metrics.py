"""Reads the devices of a remote Triton server from its own metrics (``nv_gpu_*`` and ``nv_cpu_*``).

According to Triton's source (core, ``src/metrics.cc``), values are updated every two seconds by default
(``--metrics-interval-ms``); GPU memory comes from DCGM in whole MiB; a GPU that DCGM can no longer read stays at zero
or at its last values; only GPUs that CUDA shows to the server are listed, labelled only by UUID. The host's values are
those of the machine (``/proc/meminfo``), whatever the limit of the server's container.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from prometheus_client.parser import text_string_to_metric_families

from controlplane.errors import DeviceError, TritonError
from controlplane.gpu.base import HOST, DeviceKind, DeviceReading

_DEVICE_LINES = tuple(f"{comment}{name}" for comment in ("", "# TYPE ") for name in ("nv_gpu_", "nv_cpu_"))
"""Prefixes of lines about devices. Most of a page is about models; parsing all of it takes a hundred times as long."""

_NOTHING_YET = "the server's metrics report 0: it has just started, or it cannot read the device (see its log)"
"""Every value is 0 for the first two seconds (measured on Triton 2.51), and after DCGM failed on a GPU (its source)."""

MetricValues = Mapping[str, Mapping[str, float]]
"""Values by metric name and GPU UUID; the UUID is empty for metrics without one."""


class GotPage(Protocol):
    """A page that was read."""

    @property
    def text(self) -> str:
        """The text of the page."""


class MetricsPage(Protocol):
    """A server's metrics page, shared with other readers."""

    @property
    def url(self) -> str:
        """Its address, ``http://host:8002/metrics``."""

    def read(self, deadline_seconds: float, *, fresh: bool) -> GotPage:
        """Return the page or raise a `TritonError`; with ``fresh``, a page that was requested after this call."""


class TritonMetricsSource:
    """Reads the devices from a server's metrics page.

    Args:
        page: The page.
        uuids: UUIDs of the server's GPUs in the order of its device numbers. Empty means all GPUs on the page, in the
            order of their UUIDs; if there is more than one, their numbers are not known.
        deadline_seconds: Timeout for reading the page.
    """

    def __init__(self, page: MetricsPage, uuids: Sequence[str] = (), *, deadline_seconds: float = 5.0) -> None:
        self._page = page
        self._uuids = tuple(uuids)
        self._deadline_seconds = deadline_seconds

    def read(self) -> tuple[DeviceReading, ...]:
        """Read the server's host and GPUs from a fresh page: the memory of a load is the difference of two readings.

        Raises:
            DeviceError: The server does not answer in time, or not with metrics.
        """
        url = self._page.url
        try:
            text = self._page.read(self._deadline_seconds, fresh=True).text
        except TritonError as error:
            raise DeviceError(f"the devices cannot be read: {error}", url=url) from error
        return devices(parse(text, url), self._uuids)

    def close(self) -> None:
        """Do nothing: the owner of the page closes it."""


def parse(text: str, url: str = "") -> MetricValues:
    """Return the device metrics of a page in Prometheus' text format.

    Raises:
        DeviceError: The page does not have this format.
    """
    values: dict[str, dict[str, float]] = {}
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_DEVICE_LINES))
    try:
        for family in text_string_to_metric_families(wanted):
            for sample in family.samples:
                values.setdefault(sample.name, {})[sample.labels.get("gpu_uuid", "")] = sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise DeviceError(f"{url or 'the server'} did not return Prometheus metrics: {error}", url=url) from error
    return values


def devices(values: MetricValues, uuids: Sequence[str] = ()) -> tuple[DeviceReading, ...]:
    """Return the devices that metrics describe.

    Args:
        values: The result of `parse`.
        uuids: See `TritonMetricsSource`.
    """
    readings = []
    host_bytes = _bytes(values, "nv_cpu_memory_total_bytes")
    if host_bytes is not None:
        readings.append(
            DeviceReading(
                name=HOST,
                kind=DeviceKind.HOST,
                total_bytes=host_bytes,
                used_bytes=_bytes(values, "nv_cpu_memory_used_bytes") if host_bytes else None,
                utilisation=values.get("nv_cpu_utilization", {}).get("") if host_bytes else None,
                error="" if host_bytes else _NOTHING_YET,
            )
        )
    told = sorted({uuid for name, by_gpu in values.items() if name.startswith("nv_gpu_") for uuid in by_gpu if uuid})
    wanted = list(uuids) or told
    for number, start in enumerate(wanted):
        uuid = next((one for one in told if one.casefold().startswith(start.casefold())), None)
        # The order of UUIDs does not give the order of devices, but a single GPU has a certain number.
        certain = bool(uuids) or len(told) == 1
        readings.append(_gpu(values, number, start if uuid is None else uuid, known=uuid is not None, certain=certain))
    return tuple(readings)


def _gpu(values: MetricValues, number: int, uuid: str, *, known: bool, certain: bool) -> DeviceReading:
    total = _bytes(values, "nv_gpu_memory_total_bytes", uuid) or 0
    error = ""
    if not known:
        error = f"the server's metrics list no GPU with the UUID {uuid!r}"
    elif not total:
        error = _NOTHING_YET
    return DeviceReading(
        name=f"gpu:{number}",
        kind=DeviceKind.GPU,
        total_bytes=total,
        used_bytes=None if error else _bytes(values, "nv_gpu_memory_used_bytes", uuid),
        uuid=uuid,
        device_id=number if certain else None,
        utilisation=None if error else values.get("nv_gpu_utilization", {}).get(uuid),
        power_watts=None if error else _positive(values, "nv_gpu_power_usage", uuid),
        power_limit_watts=None if error else _positive(values, "nv_gpu_power_limit", uuid),
        error=error,
    )


def _bytes(values: MetricValues, name: str, uuid: str = "") -> int | None:
    value = values.get(name, {}).get(uuid)
    return None if value is None or not 0 <= value < 1 << 62 else int(value)  # the comparison is false for NaN too


def _positive(values: MetricValues, name: str, uuid: str) -> float | None:
    """Return a value; None for zero, which Triton reports for values that it cannot read."""
    return values.get(name, {}).get(uuid) or None
