"""Mutable memory state of one model on one server. Owned by the control loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.domain.deployment import Switch
from controlplane.memory.policy.eviction import EvictionRules, early_evictions
from controlplane.memory.policy.residency import ResidencyDecision
from controlplane.memory.policy.types import Footprint, Slot, Usage
from controlplane.memory.policy.usage import used
from controlplane.memory.views import EvictionRecord
from controlplane.triton.statistics import VersionKey


@dataclass(frozen=True, slots=True)
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


@dataclass(slots=True)
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


@dataclass(slots=True)
class Demand:
    """Who wants the model, and how it was used.

    Attributes:
        usage: Its usage.
        since: Since when a client waits for it.
        held_until: The end of its longest hold.
        counts: Requests by version as of the latest poll.
        probe_requests: Requests of the control plane's probes that the counters do not show yet.
    """

    usage: Usage = field(default_factory=Usage)
    since: datetime | None = None
    held_until: datetime | None = None
    counts: dict[VersionKey, int] = field(default_factory=dict)
    probe_requests: int = 0

    def begin(self, now: datetime) -> None:
        """Record that a client waits, unless one did before."""
        self.since = self.since or now

    def end(self) -> None:
        """Record that no client waits any more, and that the model was not used."""
        self.since = None

    def satisfy(self, now: datetime) -> None:
        """Record that the waiting clients use the model now."""
        self.since, self.usage = None, used(self.usage, now)

    def use(self, at: datetime, requests: int = 1) -> None:
        """Record a use."""
        self.usage = used(self.usage, at, requests)

    def set_pending(self, requests: int) -> None:
        """Record how many requests are in Triton's queue or in execution."""
        if requests != self.usage.pending:
            self.usage = replace(self.usage, pending=requests)

    def hold(self, until: datetime | None) -> None:
        """Record the end of the longest hold; None without one."""
        self.held_until = until

    def count(self, key: VersionKey, requests: int) -> None:
        """Record what Triton counted for a version."""
        self.counts[key] = requests

    def reset_counts(self, triton_name: str | None = None) -> None:
        """Forget the counts of one Triton name, or of all: Triton counts from zero again."""
        for key in [key for key in self.counts if triton_name in (None, key[0])]:
            del self.counts[key]

    def probed(self, requests: int) -> None:
        """Record requests of the control plane itself."""
        self.probe_requests += requests

    def without_probes(self, asked: int) -> int:
        """Return how many of the counted requests are of clients; the others were probes."""
        probes = min(self.probe_requests, asked)
        self.probe_requests -= probes
        return asked - probes


@dataclass(slots=True)
class LoadTicket:
    """The load that waits, or that is in progress.

    Attributes:
        request: The load that waits.
        loading: The reservation of the load in progress.
        processes: The processes of each version under the same name, as of the start of that load.
        gpus: The GPUs that were considered usable when the most recent load began.
        exclusive: Whether no other load or unload ran on the server during it.
        stage_seconds: Duration of fetching and staging for the load that follows.
        retried_after_oom: Whether Triton refused it once for lack of memory; a second refusal is final.
        refused: Why the model cannot be loaded; empty if there is no known reason.
    """

    request: PendingLoad | None = None
    loading: MemoryRequirement | None = None
    processes: dict[int, frozenset[int]] = field(default_factory=dict)
    gpus: frozenset[str] = frozenset()
    exclusive: bool = True
    stage_seconds: float = 0.0
    retried_after_oom: bool = False
    refused: str = ""

    def wait(self, request: PendingLoad) -> None:
        """Record a load that waits for memory."""
        self.request = request

    def withdraw(self) -> None:
        """Drop the load that waits."""
        self.request = None

    def refuse(self, why: str) -> None:
        """Drop the load that waits, and record why the model cannot be loaded."""
        self.request, self.refused = None, why

    def set_refused(self, why: str) -> None:
        """Record why the model cannot be loaded; empty if it can."""
        self.refused = why

    def forget_refusals(self) -> None:
        """Forget why the model could not be loaded: it may be possible now."""
        self.refused, self.retried_after_oom = "", False

    def retry_after_oom(self, *, retry: bool) -> None:
        """Record whether the load is tried once more after Triton ran out of memory."""
        self.retried_after_oom = retry

    def disturb(self) -> None:
        """Record that another load or unload runs beside it, so that measurements are not of this load alone."""
        self.exclusive = False

    def starting(self, gpus: frozenset[str] | None, *, exclusive: bool) -> None:
        """Record the start of a load, with the GPUs that are considered usable, or of an unload (None)."""
        self.exclusive = exclusive
        self.gpus = self.gpus if gpus is None else gpus

    def begin(self, request: PendingLoad, processes: dict[int, frozenset[int]]) -> None:
        """Turn the granted request into the load in progress."""
        self.loading, self.request, self.processes = request.need, None, processes

    def staged(self, seconds: float) -> None:
        """Record the duration of fetching and staging."""
        self.stage_seconds = seconds

    def end(self) -> MemoryRequirement | None:
        """End the load in progress and return its reservation."""
        need, self.loading = self.loading, None
        return need

    def take_stage_seconds(self) -> float:
        """Return the duration of fetching and staging, for the load that just ended."""
        seconds, self.stage_seconds = self.stage_seconds, 0.0
        return seconds

    def lost(self) -> None:
        """Drop everything in progress: the server was lost."""
        self.loading = self.request = None


@dataclass(slots=True)
class Residency:
    """Whether the model is loaded, should be, and what its current load needs.

    Attributes:
        loaded_at: When it was loaded.
        leaving: The eviction in progress; the model is not desired until it is unloaded.
        restore: Whether it was loaded when the server was lost, so that it is loaded again where there is room.
        downtime_reason: Why the old version is unloaded before the new one is loaded; empty if it is not.
        verdict: The latest decision whether it is to be loaded.
        measured: Whether the current load was measured.
        load_peak: The peak memory of its processes at the end of its load; 0 if they cannot be read.
        load_growth: Growth of the memory in use on each device during the load under its own name; empty if the growth
            cannot be attributed to it.
    """

    loaded_at: datetime | None = None
    leaving: EvictionRecord | None = None
    restore: bool = False
    downtime_reason: str = ""
    verdict: ResidencyDecision | None = None
    measured: bool = False
    load_peak: int = 0
    load_growth: dict[str, int] = field(default_factory=dict)

    @property
    def engaged(self) -> bool:
        """Whether it is being evicted, or unloaded for its next version."""
        return self.leaving is not None or bool(self.downtime_reason)

    def decide(self, verdict: ResidencyDecision | None) -> None:
        """Record the decision whether it is to be loaded; None if memory does not decide."""
        self.verdict = verdict

    def evict(self, record: EvictionRecord, why: str) -> None:
        """Record the start of an eviction."""
        self.leaving, self.verdict = record, ResidencyDecision(loaded=False, why=why)

    def unload_first(self, reason: str) -> None:
        """Record that the old version is unloaded before the new one is loaded."""
        self.downtime_reason, self.verdict = reason, ResidencyDecision(loaded=False, why=reason)

    def stay(self) -> None:
        """Drop the eviction and the unload for the next version."""
        self.leaving, self.downtime_reason = None, ""

    def gone(self) -> bool:
        """Record that nothing of it is loaded; return whether its next version is to be loaded at once."""
        at_once = bool(self.downtime_reason)
        self.stay()
        return at_once

    def new_load(self) -> None:
        """Forget what was measured at the previous load."""
        self.load_growth, self.load_peak = {}, 0

    def grew(self, growth: dict[str, int], peak: int) -> None:
        """Record what the load needed."""
        self.load_growth, self.load_peak = growth, peak

    def loaded(self, now: datetime) -> None:
        """Record the end of a load under the model's own name."""
        self.loaded_at, self.measured = now, False

    def set_loaded_at(self, at: datetime | None) -> None:
        """Record since when it counts as loaded; None if it is not."""
        self.loaded_at = at

    def was_measured(self) -> None:
        """Record that the current load was measured."""
        self.measured = True

    def taken_away(self) -> None:
        """Record that another client unloaded it, or an unsupervised server was restarted."""
        self.restore, self.loaded_at = self.leaving is None, None

    def restored(self) -> None:
        """Record that it is loaded, or need not be loaded again here."""
        self.restore = False

    def restore_here(self) -> None:
        """Record that it was loaded elsewhere, and is to be loaded here where there is room."""
        self.restore = True

    def lost(self) -> None:
        """Record that the server was restarted: nothing is loaded."""
        self.restore = self.restore or (self.loaded_at is not None and self.leaving is None)
        self.loaded_at = None
        self.stay()


@dataclass(slots=True)
class LoadStats:
    """Counts and durations.

    Attributes:
        load_seconds: Duration of the most recent load, from fetch to proof.
        loads: How often it was loaded.
        evictions: How often it was evicted.
        early_evictions: Early evictions; see `ModelMemory.evictions`.
        evicted_at: The last eviction, if it is not yet evaluated as early or not.
    """

    load_seconds: float | None = None
    loads: int = 0
    evictions: int = 0
    early_evictions: int = 0
    evicted_at: datetime | None = None

    def loaded(self) -> None:
        """Count a load under the model's own name."""
        self.loads += 1

    def took(self, seconds: float) -> None:
        """Record the duration of a load."""
        self.load_seconds = seconds

    def evicted(self, now: datetime) -> None:
        """Count an eviction."""
        self.evictions += 1
        self.evicted_at = now

    def wanted_again(self, now: datetime, rules: EvictionRules) -> None:
        """Evaluate whether the last eviction was early: a client wants the model again."""
        self.early_evictions = early_evictions(self.early_evictions, self.evicted_at, now, rules)
        self.evicted_at = None


@dataclass(slots=True)
class ModelMemoryState:
    """Memory state of one model on one server: four values, each changed by its own methods only.

    Attributes:
        model: The model name.
        demand: Who wants it.
        ticket: The load that waits, or that is in progress.
        residency: Whether it is loaded and should be.
        stats: Counts and durations.
    """

    model: str
    demand: Demand = field(default_factory=Demand)
    ticket: LoadTicket = field(default_factory=LoadTicket)
    residency: Residency = field(default_factory=Residency)
    stats: LoadStats = field(default_factory=LoadStats)


def _sum(one: Footprint, other: Footprint) -> Footprint:
    return Footprint(
        one.bytes + other.bytes, one.error_bytes + other.error_bytes, one.source, one.peak_bytes + other.peak_bytes
    )
