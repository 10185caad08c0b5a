"""Computes how much of a device's memory models may use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.settings import MemorySettings, TritonServerSettings


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """The budget rules of one server.

    Attributes:
        bytes: Fixed budget by device; other devices get a share.
        share: Share of the total memory of a GPU or MIG instance.
        host_share: Share of the host's total memory, which the server itself and all other processes use, too.
        headroom_bytes: Additional free space on every device that gets a share.
    """

    bytes: Mapping[str, int] = field(default_factory=dict, hash=False)
    share: float = 0.9
    host_share: float = 0.8
    headroom_bytes: int = 0

    @classmethod
    def from_settings(cls, memory: MemorySettings, server: TritonServerSettings | None = None) -> "BudgetRules":
        """Return the rules of a server: its own settings if it has them, else the common ones.

        A server's own share applies to its host, too.
        """
        if server is None:
            return cls(
                dict(memory.budget_bytes),
                memory.gpu_budget_fraction,
                memory.host_budget_fraction,
                memory.headroom_bytes,
            )
        own = server.gpu_budget_fraction
        return cls(
            {**memory.budget_bytes, **server.budget_bytes},
            memory.gpu_budget_fraction if own is None else own,
            memory.host_budget_fraction if own is None else own,
            memory.headroom_bytes if server.headroom_bytes is None else server.headroom_bytes,
        )

    def budget_bytes(self, reading: DeviceReading) -> int:
        """Return the budget of a device: at most its total; 0 for a device that is lost or cannot hold models."""
        if reading.lost or not reading.allocatable:
            return 0
        if reading.name in self.bytes:
            return min(self.bytes[reading.name], reading.total_bytes)
        share = self.host_share if reading.kind is DeviceKind.HOST else self.share
        return max(int(reading.total_bytes * share) - self.headroom_bytes, 0)
