"""Memory of a server's own processes beyond the ledger. Mutable; owned by `LedgerSync`.

The device's reading includes all processes. What a restart would free, and what a version left behind, depends only on
the server's own processes: on the host their resident memory, on a GPU what the driver reports for them.
"""

from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import HoldingState
from controlplane.servers.readings import ServerReading

_MOVING = (HoldingState.LOADING, HoldingState.UNLOADING)


class ProcessMemory:
    """Readings since the server started.

    Attributes:
        quiet: Bytes beyond the ledger and the baseline, by device, as of the last time without loads or unloads there;
            negative if holdings count for more than is in use.
        fresh: The devices for which the newest reading updated `quiet`.
    """

    def __init__(self) -> None:
        self.quiet: dict[str, int] = {}
        self.fresh: frozenset[str] = frozenset()
        self._used: dict[str, int] = {}
        self._baselines: dict[str, int] = {}

    def take(self, reading: ServerReading, ledger: Ledger, *, settled: bool = True) -> None:
        """Process a reading; the ledger must already include it.

        Args:
            reading: The reading.
            ledger: The ledger of the server.
            settled: Whether every loaded model counts with its actual size, and none with memory that it has yet to
                use.
        """
        fresh = set()
        for device in reading.devices or ():
            used = process_bytes_of(device, reading, ledger)
            if used is None:
                continue
            self._used[device.name] = used
            here = [holding for holding in ledger.holdings if holding.device == device.name]
            if not settled or any(holding.state in _MOVING for holding in here):
                continue
            beyond = used - _accounted(ledger, device.name)
            self.quiet[device.name] = beyond - self._baselines.setdefault(device.name, max(beyond, 0))
            fresh.add(device.name)
        self.fresh = frozenset(fresh)

    def excess(self, ledger: Ledger) -> dict[str, int]:
        """Return the bytes beyond the ledger now, by device; during loads and unloads it tends to be too low."""
        return {
            device: max(used - self._baselines.get(device, used) - _accounted(ledger, device), 0)
            for device, used in self._used.items()
        }


def process_bytes_of(device: DeviceReading, reading: ServerReading, ledger: Ledger) -> int | None:
    """Return the memory of the server's processes on a device, without unmanaged models; None if unknown."""
    if reading.instances is None:
        return None
    if device.kind is DeviceKind.HOST:
        held = {(holding.slot.triton_name, holding.slot.version) for holding in ledger.holdings}
        ours = (one.resident_bytes for key, one in reading.instances.items() if key in held)
        return reading.server_bytes + sum(ours)
    host = next((one for one in reading.devices or () if one.kind is DeviceKind.HOST), None)
    own = frozenset(host.processes or ()) if host else frozenset()
    if device.processes is None or not own:
        return None
    known = [size for pid, size in device.processes.items() if pid in own]
    # In a container the driver may report other process ids than ours: then none matches although some exist.
    return sum(known) if known or not device.processes else None


def _accounted(ledger: Ledger, device: str) -> int:
    return sum(
        holding.bytes + holding.over_bytes
        for holding in ledger.holdings
        if holding.device == device and holding.state is not HoldingState.RESERVED
    )
