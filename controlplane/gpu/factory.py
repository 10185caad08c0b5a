"""Which sources tell of a server's devices."""

from controlplane.gpu.base import DeviceSource
from controlplane.gpu.combined import CombinedSource
from controlplane.gpu.host import HostSource, Processes
from controlplane.gpu.nvml import NvmlSource
from controlplane.gpu.triton_metrics import MetricsPage, TritonMetricsSource
from controlplane.settings import TritonServerSettings, TritonSettings


def embedded_devices(settings: TritonSettings, processes: Processes | None = None) -> DeviceSource:
    """Return what tells of the devices of the server that this process runs: it lives under the same limits.

    Args:
        settings: Its settings; ``gpus`` says which GPUs it uses.
        processes: Process ids of the server and its models.
    """
    return CombinedSource((HostSource(processes), NvmlSource(settings.gpus)))


def server_devices(settings: TritonServerSettings, page: MetricsPage | None, deadline_seconds: float) -> DeviceSource:
    """Return what tells of the devices of a server that somebody else runs.

    On this machine its GPUs are read through NVML and its host's memory from the operating system, without the limits
    of *this* process's container, in which it is not. Elsewhere its metrics tell; without their address there are no
    devices.

    Args:
        settings: Its settings.
        page: Its metrics; None where their address is not known.
        deadline_seconds: How long its metrics may take.
    """
    if settings.local:
        return CombinedSource((HostSource(contained=False), NvmlSource(settings.gpus)))
    if page is not None:
        return TritonMetricsSource(page, settings.gpus, deadline_seconds=deadline_seconds)
    return CombinedSource(())
