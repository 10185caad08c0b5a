"""Inputs and results of the memory policies. Frozen values only; sizes in bytes, times in UTC.

A *device* is one pool of memory of one Triton server: a GPU, a MIG instance, or the host memory (``host``) that models
on the CPU use. A *holding* is the memory that one version occupies, or has reserved, on one device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from controlplane.domain.deployment import Mode as Mode

HOST = "host"
"""Name of the device that models on the CPU use."""


class FootprintSource(StrEnum):
    """Origin of a footprint."""

    ESTIMATE = "estimate"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory that one version needs on one device.

    Attributes:
        bytes: The size to reserve.
        error_bytes: How much more than `bytes` the version may need.
        source: Estimate or measurement.
        peak_bytes: The largest size seen during a load; at least `bytes`.
    """

    bytes: int
    error_bytes: int = 0
    source: FootprintSource = FootprintSource.ESTIMATE
    peak_bytes: int = 0

    @property
    def reserve_bytes(self) -> int:
        """The size of a reservation: `bytes` plus the error, or the peak of the load if that is larger."""
        return max(self.bytes + self.error_bytes, self.peak_bytes)


class HoldingState(StrEnum):
    """State of a holding."""

    RESERVED = "reserved"
    LOADING = "loading"
    RESIDENT = "resident"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """Holder of memory: one version of one model under one Triton name.

    Attributes:
        triton_name: The name of the model or of its candidate.
        version: The version number.
    """

    triton_name: str
    version: int


@dataclass(frozen=True, slots=True)
class Holding:
    """Memory held on one device.

    Attributes:
        slot: The holder.
        device: The device.
        bytes: How much counts against the budget in this state.
        state: Reserved, loading, resident or unloading.
        since: When it entered this state.
        over_bytes: The part of the measured size that exceeded the free budget; it counts as unaccounted memory.
    """

    slot: Slot
    device: str
    bytes: int
    state: HoldingState
    since: datetime
    over_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """The part of one device's memory that models can use.

    Attributes:
        device: The device name, unique on its server.
        bytes: The budget; the sum of the holdings never exceeds it.
        total_bytes: The total memory of the device.
        used_bytes: Memory in use as reported by the device; None if the device cannot be queried.
        baseline_bytes: The part of `used_bytes` that belongs to no model (the server itself, the system). It was in use
            before the first load and is outside the budget.
    """

    device: str
    bytes: int
    total_bytes: int
    used_bytes: int | None = None
    baseline_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of a model.

    Attributes:
        last_used_at: The most recent use; None if the model was never used.
        rate_per_second: Exponentially decaying rate of requests, as of `last_used_at`; see
            `controlplane.memory.policy.usage`.
        pending: Requests that wait or run now; while there are any, the model is not evicted.
        visits_per_second: Exponentially decaying rate of visits, as of `last_used_at`. A visit is a series of requests
            with only short pauses.
    """

    last_used_at: datetime | None = None
    rate_per_second: float = 0.0
    pending: int = 0
    visits_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """One model on one server, as the policies see it.

    Attributes:
        model: The model name.
        mode: The memory mode: pinned, resident or on-demand.
        priority: A higher priority is first in the queue and last in eviction.
        keep_alive_seconds: How long an unused on-demand model stays loaded; None for no limit.
        version: The active version, or the version that will become active.
        devices: The devices that it is loaded on (all of them).
        footprint: By device, for `version`.
        load_seconds: Cost of a reload: fetch and load, measured or estimated.
        loaded: Whether it is loaded now.
        busy: Whether it is being loaded, unloaded or proved.
        loaded_at: When it was loaded.
        usage: Its usage.
        held_until: The end of its longest hold; None without one.
        demanded_at: Since when a client waits for it to be loaded (a `load` call, a hold, a first use); None if no
            client does.
        evictions: How often it was recently evicted and requested again within its minimum residence time; the back-off
            grows with it.
        needed_by: Pipelines on the server that need it.
        needed_now: Whether one of them may evict other models for its members.
        unit: What a pipeline's members need that are not loaded yet, by device.
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
    needed_by: tuple[str, ...] = ()
    needed_now: bool = False
    unit: Mapping[str, Footprint] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that the model is loaded on."""
        return tuple(self.footprint)
