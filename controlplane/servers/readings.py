"""Measures a server: its devices, its model processes and its request counters. I/O only."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.errors import ControlPlaneError
from controlplane.gpu.base import DeviceReading
from controlplane.servers.server import ManagedServer
from controlplane.triton.embedded.processes import InstanceMemory, resident_bytes
from controlplane.triton.statistics import VersionCounters, VersionKey, read_pending

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerReading:
    """Result of one measurement of a server's memory and counters.

    Attributes:
        devices: The devices; None if no device source exists or the read failed.
        instances: Memory of the model processes by Triton name and version; None for an external server.
        server_bytes: Resident memory of the server process itself; 0 if it cannot be read.
        generation: Start count of an embedded server at the time of the reading.
        counters: Requests by Triton name and version; None if they were not requested or could not be read.
        pending: Requests that are queued or running now; None likewise.
        metrics: Whether the server's metrics could be read; None if no read was attempted.
    """

    devices: tuple[DeviceReading, ...] | None = None
    instances: Mapping[VersionKey, InstanceMemory] | None = None
    server_bytes: int = 0
    generation: int = 0
    counters: Mapping[VersionKey, VersionCounters] | None = field(default=None, repr=False)
    pending: Mapping[VersionKey, int] | None = None
    metrics: bool | None = None


async def read_server(server: ManagedServer, *, counters: bool) -> ServerReading:
    """Measure a server, omitting values that cannot be read.

    Args:
        server: The server.
        counters: Whether to read the request counters as well.
    """
    memory = asyncio.create_task(asyncio.to_thread(_memory, server))
    try:
        told = await _counters(server) if counters else (None, None, None)
    finally:
        reading = await memory
    return ServerReading(reading.devices, reading.instances, reading.server_bytes, reading.generation, *told)


async def _counters(
    server: ManagedServer,
) -> tuple[Mapping[VersionKey, VersionCounters] | None, Mapping[VersionKey, int] | None, bool | None]:
    try:
        counters = await server.client.statistics()
    except ControlPlaneError as error:
        logger.debug("failed to read the statistics of %s: %s", server.name, error)
        return None, None, None
    if server.page is None:
        return counters, None, None
    pending = await asyncio.to_thread(read_pending, server.page, server.client.timeouts.request_seconds)
    return counters, pending, pending is not None


def _memory(server: ManagedServer) -> ServerReading:
    embedded = server.embedded
    generation = embedded.generation if embedded else 0
    devices = None
    if server.devices is not None:
        try:
            devices = server.devices.read()
        except ControlPlaneError as error:
            logger.debug("failed to read the devices of %s: %s", server.name, error)
    if embedded is None:
        return ServerReading(devices)
    pid = embedded.pid
    return ServerReading(devices, embedded.instances() if pid else {}, resident_bytes(pid) if pid else 0, generation)


def differences(before: ServerReading | None, after: ServerReading | None) -> dict[str, int]:
    """Return by how many bytes the use of each device has grown between two readings."""
    if before is None or after is None or before.devices is None or after.devices is None:
        return {}
    used = {device.name: device.used_bytes for device in before.devices}
    return {
        device.name: device.used_bytes - earlier
        for device in after.devices
        if device.used_bytes is not None and (earlier := used.get(device.name)) is not None
    }
