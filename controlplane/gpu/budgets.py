"""How much of a device models may use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.settings import MemorySettings, TritonServerSettings


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """The rules of one server.

    Attributes:
        bytes: Budget by device; what is not in it gets a share.
        share: Share of a GPU's or MIG instance's total.
        host_share: Share of the host's total, which the server itself and everybody else there live in too.
        headroom_bytes: Left free on every device that gets a share, besides.
    """

    bytes: Mapping[str, int] = field(default_factory=dict, hash=False)
    share: float = 0.9
    host_share: float = 0.8
    headroom_bytes: int = 0

    @classmethod
    def from_settings(cls, memory: MemorySettings, server: TritonServerSettings | None = None) -> "BudgetRules":
        """Return the rules of a server: its own settings where it has some, else those for all.

        A server's own share counts for its host too.
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
        """Return the budget of a device: never more than it has, nothing of one that is lost or not to be loaded on."""
        if reading.lost or not reading.allocatable:
            return 0
        if reading.name in self.bytes:
            return min(self.bytes[reading.name], reading.total_bytes)
        share = self.host_share if reading.kind is DeviceKind.HOST else self.share
        return max(int(reading.total_bytes * share) - self.headroom_bytes, 0)
