"""What the steward remembers of one model on one server. Mutable; the loop's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.deployment import Switch
from controlplane.memory.residency import Wanted
from controlplane.memory.types import Footprint, Slot, Usage
from controlplane.reconciler.memory_view import EvictionRecord
from controlplane.triton.statistics import VersionKey


@dataclass
class Request:
    """A load that asks for memory.

    Attributes:
        slot: For which version, under which Triton name.
        footprint: How much, by device.
        since: Since when it waits.
        deadline: When it is given up.
        why: What it waits for, as one sentence.
        granted: Whether its memory is reserved, so that it may begin.
        trial: Whether it is for a rollout's new version.
        switch: How it gets memory while another version of the model is loaded.
    """

    slot: Slot
    footprint: Mapping[str, Footprint]
    since: datetime
    deadline: datetime
    why: str = "its turn has not come"
    granted: bool = False
    trial: bool = False
    switch: Switch = Switch.AUTO


@dataclass
class Tenant:
    """One model on one server, as far as memory goes.

    Attributes:
        model: Its name.
        usage: How it is used.
        demanded_at: Since when somebody waits for it.
        held_until: The end of its longest client lease.
        loaded_at: Since when it is loaded.
        load_seconds: What its newest load took, from fetch to proof.
        stage_seconds: What fetching and staging took, for the load that follows.
        loads: How often it was loaded.
        evictions: How often it was evicted.
        thrash: Early evictions; see `ModelMemory.evictions`.
        evicted_at: When it was evicted last and that was not counted yet.
        leaving: The eviction under way: it is not wanted until it is gone.
        refused: Why it cannot be loaded; empty where nothing is known against it.
        restore: It was loaded when the server was lost, so it comes back where there is room.
        request: The load that waits.
        loading: The slot of the load under way.
        alone: Whether no other load or unload ran on the server during it.
        counts: Requests by version as of the newest poll.
        ours: Requests of our own probes that the counters still have to show.
        second_round: Triton refused it for lack of memory once already; the next time is the last.
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
    thrash: int = 0
    evicted_at: datetime | None = None
    leaving: EvictionRecord | None = None
    refused: str = ""
    restore: bool = False
    request: Request | None = None
    loading: Slot | None = None
    alone: bool = True
    counts: dict[VersionKey, int] = field(default_factory=dict)
    ours: int = 0
    second_round: bool = False
    gap: str = ""
    verdict: Wanted | None = None
    measured: bool = False
    load_peak: int = 0
    load_growth: dict[str, int] = field(default_factory=dict)
