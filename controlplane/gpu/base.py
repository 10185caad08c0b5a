"""The port for device readings: the reading of one device, and the interface of its sources.

A *device* is one pool of memory of one Triton server: a GPU, a MIG instance, or the host's memory. Adapters:
`controlplane.gpu.nvml` (GPUs of this machine), `controlplane.gpu.triton_metrics` (devices of a server elsewhere) and
`controlplane.gpu.host` (memory of this machine or container).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.domain.devices import DeviceKind

__all__ = ["HOST", "DeviceKind", "DeviceReading", "DeviceSource"]

HOST = "host"
"""The name of the device that models on the CPU use."""


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """The reading of one device at one time. None means that the source does not know the value, never zero.

    Attributes:
        name: Unique on its server: ``host``, ``gpu:0``, ``gpu:0/mig:1``. It refers to the same hardware for the
            lifetime of its source.
        kind: Host, GPU or MIG instance.
        total_bytes: The memory that can be used at most: the container's limit if it is less than the machine's memory.
            0 if it was never known.
        used_bytes: ``total_bytes`` less the available memory, whichever process uses it.
        uuid: NVML's UUID; empty for the host.
        product: The product's name, such as ``NVIDIA H200``.
        device_id: Triton's number for it (``instance_group.gpus``); None if it has none or its number is not known.
        allocatable: Whether models can be loaded on it. False for a GPU in MIG mode; its instances are allocatable.
        processes: Bytes by process id; None if unknown. On the host only those of the server's processes.
        utilisation: Share of the time that it is busy, 0 to 1.
        temperature_celsius: Its temperature.
        power_watts: Its power draw.
        power_limit_watts: Its power limit.
        ecc_corrected: Memory errors corrected since the driver was loaded.
        ecc_uncorrected: Uncorrectable memory errors since then.
        throttle_reasons: Why its clocks are reduced; empty if they are not.
        parent: The GPU of a MIG instance.
        error: Why it cannot be read; empty if it can. With an error, ``total_bytes`` is the last known value.
        lost: Whether the device fell off the bus or was removed: only a reset or a reboot restores it.
    """

    name: str
    kind: DeviceKind
    total_bytes: int
    used_bytes: int | None
    uuid: str = ""
    product: str = ""
    device_id: int | None = None
    allocatable: bool = True
    processes: Mapping[int, int] | None = field(default=None, hash=False)
    utilisation: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    parent: str | None = None
    error: str = ""
    lost: bool = False

    @property
    def free_bytes(self) -> int | None:
        """The available memory; None if the used memory is not known."""
        return None if self.used_bytes is None else max(self.total_bytes - self.used_bytes, 0)


class DeviceSource(Protocol):
    """A source of device readings.

    Calls block; they are allowed from any thread, also concurrently.
    """

    def read(self) -> tuple[DeviceReading, ...]:
        """Read every device, in the order of their numbers.

        A device that cannot be read is returned with its ``error`` and does not affect the others. Having no devices
        is not an error.

        Raises:
            DeviceError: None of this source's devices can be read now.
        """
        ...

    def close(self) -> None:
        """Release the source's resources. The next read opens it again."""
        ...
