"""What the decisions about memory are made from, and what they say. Frozen values only; sizes in bytes, times in UTC.

A *device* is one pool of memory of one Triton server: a GPU, a MIG instance, or the host's memory (``host``) that
models on the CPU use. A *holding* is the memory that one loaded version has, or is about to have, on one device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from controlplane.domain.deployment import Mode as Mode

HOST = "host"
"""The name of the device that models on the CPU use."""


class FootprintSource(StrEnum):
    """How a footprint is known."""

    ESTIMATE = "estimate"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one version needs on one device.

    Attributes:
        bytes: The figure to reserve.
        error_bytes: By how much it may be wrong, upwards.
        source: Estimate or measurement.
        peak_bytes: The most seen during a load; at least `bytes`.
    """

    bytes: int
    error_bytes: int = 0
    source: FootprintSource = FootprintSource.ESTIMATE
    peak_bytes: int = 0

    @property
    def reserve_bytes(self) -> int:
        """What a reservation takes: the figure with its error, or the peak of the load where that is more."""
        return max(self.bytes + self.error_bytes, self.peak_bytes)


class HoldingState(StrEnum):
    """Where a holding is in its life."""

    RESERVED = "reserved"
    LOADING = "loading"
    RESIDENT = "resident"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """What holds memory: one version of one model under one Triton name.

    Attributes:
        triton_name: The model's name, or its candidate's.
        version: The version number.
    """

    triton_name: str
    version: int


@dataclass(frozen=True, slots=True)
class Holding:
    """Memory held on one device.

    Attributes:
        slot: By what.
        device: Where.
        bytes: How much counts against the budget in this state.
        state: Reserved, loading, resident or unloading.
        since: Since when it is in this state.
        over_bytes: What was measured beyond what the budget had left; counts as memory that nobody accounts for.
    """

    slot: Slot
    device: str
    bytes: int
    state: HoldingState
    since: datetime
    over_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be used of one device.

    Attributes:
        device: Its name, unique on its server.
        bytes: The budget; the ledger's sum never exceeds it.
        total_bytes: What the device has.
        used_bytes: What the device itself says is in use; None where it cannot be asked.
        baseline_bytes: How much of that is known to be none of the models' (the server itself, the system); it was
            there before the first load and is outside of the budget.
    """

    device: str
    bytes: int
    total_bytes: int
    used_bytes: int | None = None
    baseline_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """How a model is used.

    Attributes:
        last_used_at: Its newest use; None where it was never used.
        rate_per_second: Exponentially decaying rate of requests, as of `last_used_at`; see
            `controlplane.memory.policy.usage`.
        pending: Requests that wait or run at this moment; with any, it is not evicted.
    """

    last_used_at: datetime | None = None
    rate_per_second: float = 0.0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """One model on one server, as the decisions see it.

    Attributes:
        model: Its name.
        mode: When it shall be loaded.
        priority: Higher goes first in the queue and last in eviction.
        keep_alive_seconds: On-demand: how long it stays without use; None for ever.
        version: The version that answers or shall answer.
        devices: The devices it would be loaded on (every one of them).
        footprint: By device; of the version that answers or shall answer.
        load_seconds: What a reload costs: fetch and load, measured or estimated.
        loaded: Whether it is loaded now.
        busy: Whether it is being loaded, unloaded or proved.
        loaded_at: Since when it is loaded.
        usage: How it is used.
        held_until: The end of its longest hold; None without one.
        demanded_at: Since when somebody waits for it to be loaded (a `load` call, a hold, a first use); None if
            nobody does.
        evictions: How often it was evicted within its minimum residence time, lately; the policy backs off by it.
    """

    model: str
    mode: Mode
    version: int
    footprint: Mapping[str, Footprint]
    priority: int = 0
    keep_alive_seconds: float | None = 300.0
    load_seconds: float = 1.0
    loaded: bool = False
    busy: bool = False
    loaded_at: datetime | None = None
    usage: Usage = field(default_factory=Usage)
    held_until: datetime | None = None
    demanded_at: datetime | None = None
    evictions: int = 0

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices it would be loaded on."""
        return tuple(self.footprint)
