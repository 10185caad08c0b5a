"""The port: what a device says of itself, and who can be asked.

A *device* is one pool of memory of one Triton server: a GPU, a MIG instance, or the host's memory. Adapters:
`controlplane.gpu.nvml` (GPUs of this machine), `controlplane.gpu.triton_metrics` (of a server elsewhere) and
`controlplane.gpu.host` (this machine's memory, or this container's).
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
    """One device at one moment. None is "this source cannot tell", never zero.

    Attributes:
        name: Unique on its server: ``host``, ``gpu:0``, ``gpu:0/mig:1``. It stays with the same piece of hardware as
            long as its source lives.
        kind: Host, GPU or MIG instance.
        total_bytes: What may be had at most: the container's limit where that is less than the machine's. 0 where it
            was never known.
        used_bytes: ``total_bytes`` less what can still be had, whoever uses it.
        uuid: NVML's UUID; empty for the host.
        product: The product's name, such as ``NVIDIA H200``.
        device_id: Triton's number for it (``instance_group.gpus``); None where it has none or it is not known which.
        allocatable: Whether models can be loaded on it. A GPU in MIG mode is not: its instances are.
        processes: Bytes by process id. None: cannot be told. On the host those of the server's processes alone.
        utilisation: Share of the time that it works, 0 to 1.
        temperature_celsius: Its temperature.
        power_watts: What it draws.
        power_limit_watts: What it may draw.
        ecc_corrected: Memory errors corrected since the driver was loaded.
        ecc_uncorrected: Memory errors that could not be corrected, since then.
        throttle_reasons: Why its clocks are lowered; empty: they are not.
        parent: The GPU that a MIG instance is part of.
        error: Why it cannot be read; empty if it can. Then ``total_bytes`` is what was last known.
        lost: Whether the device fell off the bus or is gone: only a reset or a reboot brings it back.
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
        """What can still be had; None where the use is not known."""
        return None if self.used_bytes is None else max(self.total_bytes - self.used_bytes, 0)


class DeviceSource(Protocol):
    """Somebody who can be asked about devices.

    Blocking; may be called from any thread, and by several at once.
    """

    def read(self) -> tuple[DeviceReading, ...]:
        """Ask every device, ordered as their numbers are.

        A device that cannot be read is there with its ``error``; it hides no other. No devices is no error.

        Raises:
            DeviceError: None of this source's devices can be asked about at this moment.
        """
        ...

    def close(self) -> None:
        """Let go of what the source holds. Reading again opens it again."""
        ...
