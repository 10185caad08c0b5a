"""The devices of the Triton servers, read on request."""

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from controlplane.domain.devices import Device, DeviceProcess, ServerDevices
from controlplane.errors import DeviceError, NotFoundError
from controlplane.gpu.base import DeviceReading
from controlplane.servers.server import ManagedServer

logger = logging.getLogger(__name__)

_MAX_AGE_SECONDS = 0.5
"""Maximum age of a reading that is shared with other callers."""
_WAIT_SECONDS = 3.0
"""Time that a caller waits for a reading. The reading itself continues: NVML may hang for minutes on a failing GPU."""


class Devices:
    """Reports the devices. Used from one event loop.

    Args:
        servers: The servers; may change.
        wait_seconds: How long a request waits before it is answered with the last reading.
    """

    def __init__(self, servers: Iterable[ManagedServer], *, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._servers = servers
        self._wait_seconds = wait_seconds
        self._watches: dict[str, _Watch] = {}

    def _watched(self) -> dict[str, "_Watch"]:
        """Return the watches of the servers that are there now."""
        present = {}
        for server in self._servers:
            known = self._watches.get(server.name)
            same = known is not None and known.server is server
            present[server.name] = known if known is not None and same else _Watch(server, self._wait_seconds)
        self._watches = present
        return present

    async def all(self) -> tuple[ServerDevices, ...]:
        """Read the devices of all servers concurrently; an unresponsive server delays the result only briefly."""
        return tuple(await asyncio.gather(*(watch.read() for watch in self._watched().values())))

    async def of(self, server: str) -> ServerDevices:
        """Read the devices of one server.

        Raises:
            NotFoundError: No server has this name.
        """
        watch = self._watched().get(server)
        if watch is None:
            have = ", ".join(self._watches) or "none"
            raise NotFoundError(f"unknown server {server[:80]!r}; the servers are: {have}", server=server[:80])
        return await watch.read()

    def latest(self) -> tuple[ServerDevices, ...]:
        """Return the last readings, without I/O."""
        return tuple(watch.latest for watch in self._watched().values())


class _Watch:
    """One server's devices, with at most one reading at a time regardless of the number of callers."""

    def __init__(self, server: ManagedServer, wait_seconds: float) -> None:
        self.server = server
        self._wait_seconds = wait_seconds
        self._reading: asyncio.Task[None] | None = None
        self._fresh_until = 0.0
        self.latest = ServerDevices(server=server.name)

    async def read(self) -> ServerDevices:
        if time.monotonic() < self._fresh_until:
            return self.latest
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name=f"devices-{self.server.name}")
        done, _ = await asyncio.wait([self._reading], timeout=self._wait_seconds)
        if not done:
            error = f"the devices have not responded for {self._wait_seconds:g} s or more; a GPU or a server may hang"
            return self.latest.model_copy(update={"error": error})
        return self.latest

    async def _read(self) -> None:
        source = self.server.devices
        try:
            readings = () if source is None else await asyncio.to_thread(source.read)
        except DeviceError as error:
            self.latest = self.latest.model_copy(update={"error": error.message})
        except Exception as error:  # an adapter's error is reported in place of its devices
            logger.exception("unexpected error while reading the devices of server %s", self.server.name)
            self.latest = self.latest.model_copy(update={"error": f"unexpected {type(error).__name__}; see the log"})
        else:
            self.latest = ServerDevices(
                server=self.server.name,
                observed_at=datetime.now(UTC),
                devices=tuple(_device(reading, self.server) for reading in readings),
            )
        finally:
            self._fresh_until = time.monotonic() + _MAX_AGE_SECONDS
            self._reading = None


def _device(reading: DeviceReading, server: ManagedServer) -> Device:
    processes = reading.processes
    return Device(
        name=reading.name,
        kind=reading.kind,
        uuid=reading.uuid,
        product=reading.product,
        device_id=reading.device_id,
        allocatable=reading.allocatable,
        total_bytes=reading.total_bytes,
        used_bytes=reading.used_bytes,
        free_bytes=reading.free_bytes,
        budget_bytes=server.budgets.budget_bytes(reading),
        processes=None
        if processes is None
        else tuple(DeviceProcess(pid=pid, bytes=held) for pid, held in sorted(processes.items())),
        utilisation=reading.utilisation,
        temperature_celsius=reading.temperature_celsius,
        power_watts=reading.power_watts,
        power_limit_watts=reading.power_limit_watts,
        ecc_corrected=reading.ecc_corrected,
        ecc_uncorrected=reading.ecc_uncorrected,
        throttle_reasons=reading.throttle_reasons,
        parent=reading.parent,
        error=reading.error,
        lost=reading.lost,
    )
