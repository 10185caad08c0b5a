"""Mutable memory state of one model on one server. Owned by the control loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.deployment import Switch
from controlplane.memory.policy.residency import ResidencyDecision
from controlplane.memory.policy.types import Footprint, Slot, Usage
from controlplane.memory.views import EvictionRecord
from controlplane.triton.statistics import VersionKey


@dataclass(frozen=True)
class MemoryRequirement:
    """Memory that a load needs.

    Attributes:
        slot: The version to load, under its Triton name; the highest of several that are loaded together.
        versions: What each version needs, by device.
        trial: Whether it is the candidate of a rollout; the old version is never unloaded for it.
        update_strategy: How it gets memory while another version of the model is loaded.
    """

    slot: Slot
    versions: Mapping[int, Mapping[str, Footprint]]
    trial: bool = False
    update_strategy: Switch = Switch.AUTO

    @property
    def footprint(self) -> dict[str, Footprint]:
        """What all versions need together, by device."""
        total: dict[str, Footprint] = {}
        for by_device in self.versions.values():
            for device, one in by_device.items():
                total[device] = _sum(total[device], one) if device in total else one
        return total


@dataclass
class PendingLoad:
    """A load that waits for memory.

    Attributes:
        need: What it needs.
        since: Since when it waits.
        deadline: When it is given up.
        why: What it waits for, as one sentence.
        granted: Whether its memory is reserved, so that it may begin.
    """

    need: MemoryRequirement
    since: datetime
    deadline: datetime
    why: str = "waiting in the load queue"
    granted: bool = False

    @property
    def slot(self) -> Slot:
        """The version to load, under its Triton name."""
        return self.need.slot

    @property
    def footprint(self) -> Mapping[str, Footprint]:
        """What it needs, by device."""
        return self.need.footprint


@dataclass
class ModelMemoryState:
    """Memory state of one model on one server.

    Attributes:
        model: The model name.
        usage: Its usage.
        demanded_at: Since when a client waits for it.
        held_until: The end of its longest hold.
        loaded_at: When it was loaded.
        load_seconds: Duration of the most recent load, from fetch to proof.
        stage_seconds: Duration of fetching and staging for the load that follows.
        loads: How often it was loaded.
        evictions: How often it was evicted.
        early_evictions: Early evictions; see `ModelMemory.evictions`.
        evicted_at: The last eviction, if it is not yet evaluated as early or not.
        leaving: The eviction in progress; the model is not desired until it is unloaded.
        refused: Why it cannot be loaded; empty if there is no known reason.
        restore: Whether it was loaded when the server was lost, so that it is loaded again where there is room.
        request: The load that waits.
        loading: The reservation of the load in progress.
        processes: The processes of each version under the same name, as of the start of that load.
        gpus: The GPUs that were considered usable when the most recent load began.
        alone: Whether no other load or unload ran on the server during it.
        counts: Requests by version as of the latest poll.
        ours: Requests of the control plane's probes that the counters do not show yet.
        retried_after_oom: Whether Triton refused it once for lack of memory; a second refusal is final.
        gap: Why the old version is unloaded before the new one is loaded; empty if it is not.
        verdict: The latest decision whether it is to be loaded.
        measured: Whether the current load was measured.
        load_peak: The peak memory of its processes at the end of its load; 0 if they cannot be read.
        load_growth: Growth of the memory in use on each device during the load under its own name; empty if the growth
            cannot be attributed to it.
    """

    model: str
    usage: Usage = field(default_factory=Usage)
    demanded_at: datetime | None = None
    held_until: datetime | None = None
    loaded_at: datetime | None = None
    load_seconds: float | None = None
    stage_seconds: float = 0.0
    loads: int = 0
    evictions: int = 0
    early_evictions: int = 0
    evicted_at: datetime | None = None
    leaving: EvictionRecord | None = None
    refused: str = ""
    restore: bool = False
    request: PendingLoad | None = None
    loading: MemoryRequirement | None = None
    processes: dict[int, frozenset[int]] = field(default_factory=dict)
    gpus: frozenset[str] = frozenset()
    alone: bool = True
    counts: dict[VersionKey, int] = field(default_factory=dict)
    ours: int = 0
    retried_after_oom: bool = False
    gap: str = ""
    verdict: ResidencyDecision | None = None
    measured: bool = False
    load_peak: int = 0
    load_growth: dict[str, int] = field(default_factory=dict)


def _sum(one: Footprint, other: Footprint) -> Footprint:
    return Footprint(
        one.bytes + other.bytes, one.error_bytes + other.error_bytes, one.source, one.peak_bytes + other.peak_bytes
    )
