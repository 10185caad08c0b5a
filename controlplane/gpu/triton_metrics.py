"""The devices of a Triton server elsewhere, from its own metrics (``nv_gpu_*`` and ``nv_cpu_*``).

Read in Triton's source (core, ``src/metrics.cc``): figures are taken every two seconds by default
(``--metrics-interval-ms``); GPU memory comes from DCGM in whole MiB; a GPU that DCGM cannot ask any more stays at zero
or at its last figures; only GPUs that CUDA shows to the server are there, labelled by UUID alone. The host's figures
are those of the machine (``/proc/meminfo``), whatever the limit of the server's container.
"""

import time
from collections.abc import Mapping, Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from controlplane.errors import DeviceError
from controlplane.gpu.base import HOST, DeviceKind, DeviceReading

_DEVICE_LINES = tuple(f"{comment}{name}" for comment in ("", "# TYPE ") for name in ("nv_gpu_", "nv_cpu_"))
"""How lines about devices begin. Most of a page is about models; to parse that too takes a hundred times as long."""
_MAX_BYTES = 64 * 1024 * 1024
"""A dozen counters of ten thousand models make 7 MB."""

_NOTHING_YET = "the server's metrics say 0: it just started, or could not read it, which its log says"
"""Measured on Triton 2.51: every figure is 0 for the first two seconds. Read: and once DCGM failed on a GPU."""

Figures = Mapping[str, Mapping[str, float]]
"""Value by GPU UUID (empty: none) by name of the metric."""


class TritonMetricsSource:
    """Reads a server's metrics page.

    Args:
        url: Its address, ``http://host:8002/metrics``.
        uuids: UUIDs of the server's GPUs in the order of its device numbers. Empty: all it tells of, in the order of
            their UUIDs; with more than one GPU their numbers are then not known.
        deadline_seconds: How long an answer may take while it comes; twice that where it stalls just before the end.
    """

    def __init__(self, url: str, uuids: Sequence[str] = (), *, deadline_seconds: float = 5.0) -> None:
        self._url = url
        self._uuids = tuple(uuids)
        self._deadline_seconds = deadline_seconds

    def read(self) -> tuple[DeviceReading, ...]:
        """Ask the server for its host and its GPUs.

        Raises:
            DeviceError: It does not answer in time, or not with metrics.
        """
        return devices(parse(self._fetch(), self._url), self._uuids)

    def close(self) -> None:
        """Nothing is held: a connection kept open would cost the server a thread."""

    def _fetch(self) -> str:
        end = time.monotonic() + self._deadline_seconds
        received = bytearray()
        try:
            # A proxy set for the internet is not meant for a server's metrics port. What TLS needs takes 20 ms to read.
            tls = self._url.startswith("https:")
            with (
                httpx.Client(timeout=self._deadline_seconds, trust_env=False, verify=tls) as client,
                client.stream("GET", self._url) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise self._unreadable(f"answers {response.status_code} {response.reason_phrase}")
                for part in response.iter_bytes():
                    received += part
                    if time.monotonic() > end:
                        raise self._unreadable(f"has not answered fully after {self._deadline_seconds:g} s")
                    if len(received) > _MAX_BYTES:
                        raise self._unreadable(f"sends more than {_MAX_BYTES} bytes; is it a metrics page?")
        except httpx.TimeoutException as error:
            raise self._unreadable(f"has not answered after {self._deadline_seconds:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreadable(f"cannot be reached: {error}") from error
        return received.decode(errors="replace")

    def _unreadable(self, why: str) -> DeviceError:
        return DeviceError(f"the metrics at {self._url} cannot be read: the server {why}", url=self._url)


def parse(text: str, url: str = "") -> Figures:
    """Return the device metrics of a page in Prometheus' text format.

    Raises:
        DeviceError: It is none.
    """
    figures: dict[str, dict[str, float]] = {}
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_DEVICE_LINES))
    try:
        for family in text_string_to_metric_families(wanted):
            for sample in family.samples:
                figures.setdefault(sample.name, {})[sample.labels.get("gpu_uuid", "")] = sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise DeviceError(f"what {url or 'the server'} answers are no Prometheus metrics: {error}", url=url) from error
    return figures


def devices(figures: Figures, uuids: Sequence[str] = ()) -> tuple[DeviceReading, ...]:
    """Return the devices that metrics tell of.

    Args:
        figures: What `parse` found.
        uuids: As `TritonMetricsSource` takes them.
    """
    readings = []
    host_bytes = _bytes(figures, "nv_cpu_memory_total_bytes")
    if host_bytes is not None:
        readings.append(
            DeviceReading(
                name=HOST,
                kind=DeviceKind.HOST,
                total_bytes=host_bytes,
                used_bytes=_bytes(figures, "nv_cpu_memory_used_bytes") if host_bytes else None,
                utilisation=figures.get("nv_cpu_utilization", {}).get("") if host_bytes else None,
                error="" if host_bytes else _NOTHING_YET,
            )
        )
    told = sorted({uuid for name, by_gpu in figures.items() if name.startswith("nv_gpu_") for uuid in by_gpu if uuid})
    wanted = list(uuids) or told
    for number, start in enumerate(wanted):
        uuid = next((one for one in told if one.casefold().startswith(start.casefold())), None)
        # The order of UUIDs says nothing about the order of devices; of a single GPU there is but one.
        certain = bool(uuids) or len(told) == 1
        readings.append(_gpu(figures, number, start if uuid is None else uuid, known=uuid is not None, certain=certain))
    return tuple(readings)


def _gpu(figures: Figures, number: int, uuid: str, *, known: bool, certain: bool) -> DeviceReading:
    total = _bytes(figures, "nv_gpu_memory_total_bytes", uuid) or 0
    error = ""
    if not known:
        error = f"the server's metrics tell of no GPU with the UUID {uuid!r}"
    elif not total:
        error = _NOTHING_YET
    return DeviceReading(
        name=f"gpu:{number}",
        kind=DeviceKind.GPU,
        total_bytes=total,
        used_bytes=None if error else _bytes(figures, "nv_gpu_memory_used_bytes", uuid),
        uuid=uuid,
        device_id=number if certain else None,
        utilisation=None if error else figures.get("nv_gpu_utilization", {}).get(uuid),
        power_watts=None if error else _positive(figures, "nv_gpu_power_usage", uuid),
        power_limit_watts=None if error else _positive(figures, "nv_gpu_power_limit", uuid),
        error=error,
    )


def _bytes(figures: Figures, name: str, uuid: str = "") -> int | None:
    value = figures.get(name, {}).get(uuid)
    return None if value is None or not 0 <= value < 1 << 62 else int(value)  # the comparison is false for NaN too


def _positive(figures: Figures, name: str, uuid: str) -> float | None:
    """Return a figure; zero is what Triton tells of what it cannot read."""
    return figures.get(name, {}).get(uuid) or None
