"""What a server's own processes have beyond what the ledger knows of. Mutable; the accounts' own.

The device's figure is everybody's. For what a restart would give back, and for what a version left behind, only the
server's own processes count: on the host their resident memory, on a GPU what the driver says they have.
"""

from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import HoldingState
from controlplane.servers.readings import ServerReading

_MOVING = (HoldingState.LOADING, HoldingState.UNLOADING)


class ProcessMemory:
    """The figures since the server started.

    Attributes:
        quiet: Bytes beyond the ledger and the baseline, by device, when nothing was loaded or unloaded there last;
            below 0 where holdings count for more than is there.
        fresh: The devices of which the newest reading was such a one.
    """

    def __init__(self) -> None:
        self.quiet: dict[str, int] = {}
        self.fresh: frozenset[str] = frozenset()
        self._used: dict[str, int] = {}
        self._baselines: dict[str, int] = {}

    def take(self, reading: ServerReading, ledger: Ledger, *, settled: bool = True) -> None:
        """Take in a reading; the ledger is up to date with it.

        Args:
            reading: The reading.
            ledger: Of the server.
            settled: Whether every model that is loaded counts for what it has, none for what it is still to take.
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
        """Bytes beyond the ledger now, by device. While something moves it is rather too low than too high."""
        return {
            device: max(used - self._baselines.get(device, used) - _accounted(ledger, device), 0)
            for device, used in self._used.items()
        }


def process_bytes_of(device: DeviceReading, reading: ServerReading, ledger: Ledger) -> int | None:
    """What the server's own processes have of a device, models that are no deployments left out; None: not known."""
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
    # In a container the driver may tell other process ids than ours: then none is found although some are there.
    return sum(known) if known or not device.processes else None


def _accounted(ledger: Ledger, device: str) -> int:
    return sum(
        holding.bytes + holding.over_bytes
        for holding in ledger.holdings
        if holding.device == device and holding.state is not HoldingState.RESERVED
    )
