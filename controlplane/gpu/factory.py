"""Selects the sources of a server's device readings."""

from controlplane.gpu.base import DeviceSource
from controlplane.gpu.combined import CombinedSource
from controlplane.gpu.host import HostSource, Processes
from controlplane.gpu.nvml import NvmlSource
from controlplane.gpu.triton_metrics import MetricsPage, TritonMetricsSource
from controlplane.settings import TritonServerSettings, TritonSettings


def embedded_devices(settings: TritonSettings, processes: Processes | None = None) -> DeviceSource:
    """Return the source of the embedded server's devices; the server has the same container limits as this process.

    Args:
        settings: Its settings; ``gpus`` lists the GPUs it uses.
        processes: Process ids of the server and its models.
    """
    return CombinedSource((HostSource(processes), NvmlSource(settings.gpus)))


def server_devices(settings: TritonServerSettings, page: MetricsPage | None, deadline_seconds: float) -> DeviceSource:
    """Return the source of the devices of an external server.

    For a server on this machine, GPUs are read through NVML and the host's memory from the operating system, without
    the limits of *this* process's container, because the server is not in it. For a server elsewhere, its metrics are
    read; if their address is not known, there are no devices.

    Args:
        settings: Its settings.
        page: Its metrics; None if their address is not known.
        deadline_seconds: Timeout for its metrics.
    """
    if settings.local:
        return CombinedSource((HostSource(contained=False), NvmlSource(settings.gpus)))
    if page is not None:
        return TritonMetricsSource(page, settings.gpus, deadline_seconds=deadline_seconds)
    return CombinedSource(())
