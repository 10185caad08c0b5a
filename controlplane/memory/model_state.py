"""What the steward remembers of one model on one server. Mutable; the loop's own."""

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
        slot: For which version, under which Triton name; of several that are loaded together the highest.
        versions: How much each of the versions needs, by device.
        trial: Whether it is for a rollout's new version, for which the old one never makes room.
        update_strategy: How it gets memory while another version of the model is loaded.
    """

    slot: Slot
    versions: Mapping[int, Mapping[str, Footprint]]
    trial: bool = False
    update_strategy: Switch = Switch.AUTO

    @property
    def footprint(self) -> dict[str, Footprint]:
        """How much all of them need together, by device."""
        total: dict[str, Footprint] = {}
        for by_device in self.versions.values():
            for device, one in by_device.items():
                total[device] = _sum(total[device], one) if device in total else one
        return total


@dataclass
class PendingLoad:
    """A load that asks for memory.

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
    why: str = "its turn has not come"
    granted: bool = False

    @property
    def slot(self) -> Slot:
        """For which version, under which Triton name."""
        return self.need.slot

    @property
    def footprint(self) -> Mapping[str, Footprint]:
        """How much, by device."""
        return self.need.footprint


@dataclass
class ModelMemoryState:
    """One model on one server, as far as memory goes.

    Attributes:
        model: Its name.
        usage: How it is used.
        demanded_at: Since when somebody waits for it.
        held_until: The end of its longest hold.
        loaded_at: Since when it is loaded.
        load_seconds: What its newest load took, from fetch to proof.
        stage_seconds: What fetching and staging took, for the load that follows.
        loads: How often it was loaded.
        evictions: How often it was evicted.
        early_evictions: Early evictions; see `ModelMemory.evictions`.
        evicted_at: When it was evicted last and that was not counted yet.
        leaving: The eviction under way: it is not wanted until it is gone.
        refused: Why it cannot be loaded; empty where nothing is known against it.
        restore: It was loaded when the server was lost, so it comes back where there is room.
        request: The load that waits.
        loading: What the load under way had reserved.
        processes: The processes of each version that is loaded under the same name, as of that load's begin.
        gpus: The GPUs that counted as usable when the newest load began.
        alone: Whether no other load or unload ran on the server during it.
        counts: Requests by version as of the newest poll.
        ours: Requests of our own probes that the counters still have to show.
        retried_after_oom: Triton refused it for lack of memory once already; the next time is the last.
        gap: Why the old version is unloaded before the new one is loaded; empty where it is not.
        verdict: The newest answer to whether it shall be loaded.
        measured: Whether the present load was measured.
        load_peak: The most that its processes had by the end of its load; 0 where they cannot be seen.
        load_growth: By how much the use of each device grew over its load under its own name; empty where that says
            nothing of it.
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
