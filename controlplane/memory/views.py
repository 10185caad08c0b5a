"""Memory state for the API and the CLI: holders, reasons, and the next steps. Frozen values.

Sizes are in bytes, times in UTC.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.deployment import Mode

MemoryState = Literal[
    "unloaded",
    "queued",
    "reserved",
    "loading",
    "loaded",
    "unloading",
    "pending",
    "failed",
    "disabled",
    "assigned-elsewhere",
    "unreachable",
]
"""Memory state of a model.

``unloaded``: not loaded, and no client waits for it. ``queued``: to be loaded, and waits (for memory, its turn, or an
eviction in progress). ``reserved``: its memory is reserved, and the load is about to begin. ``loading``, ``loaded``,
``unloading``. ``failed``: it cannot be loaded; ``why`` states the sizes. ``disabled``: the deployment says unloaded.
``assigned-elsewhere``: it is placed on other servers; ``why`` names them. ``pending``: desired and not processed yet.
``unreachable``: the server does not answer.
"""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceMemory(_View):
    """One pool of memory of one server: a GPU, a MIG instance, or the host."""

    device: str = Field(description="Its name on its server: host, gpu:0, ...")
    kind: Literal["cpu", "gpu"] = Field(description="Whether it is the host's memory or a GPU's.")
    total_bytes: int = Field(description="What there is.")
    budget_bytes: int = Field(description="What may be used of it.")
    used_bytes: int | None = Field(description="What the device says is in use; null where it cannot be asked.")
    reserved_bytes: int = Field(description="Set aside for loads that are about to begin.")
    loading_bytes: int = Field(description="Set aside for loads under way.")
    resident_bytes: int = Field(description="Held by loaded models.")
    unloading_bytes: int = Field(description="Held by models that are being unloaded.")
    unaccounted_bytes: int = Field(description="In use by nobody the ledger knows; counted against the budget.")
    free_bytes: int = Field(description="Budget without all of the above; never below 0.")


class DeviceFootprint(_View):
    """Memory that a version needs on one device."""

    device: str = Field(description="The device.")
    bytes: int = Field(description="The figure.")
    error_bytes: int = Field(description="By how much it may be wrong, upwards.")
    peak_bytes: int = Field(description="The most that was seen at any time; of an estimate, the figure itself.")
    load_peak_bytes: int = Field(default=0, description="The most that was seen during a load; 0: not measured.")
    inference_peak_bytes: int = Field(
        default=0, description="The most that was seen while it answered; 0: not measured."
    )
    left_bytes: int | None = Field(
        default=None, description="The most that stayed in a server after its unload; null: nobody could tell."
    )
    estimate_bytes: int | None = Field(
        default=None, description="What was estimated before it was measured; null: nobody measured it."
    )
    source: Literal["estimate", "measured"] = Field(description="How it is known.")
    held_bytes: int = Field(default=0, description="What the ledger counts for it at this moment.")


class ModelMemoryView(_View):
    """One deployed model on one server."""

    model: str = Field(description="Its name.")
    version: int = Field(description="The version that answers or shall answer.")
    mode: Mode = Field(description="When it is loaded.")
    priority: int = Field(description="Higher goes first in the queue and last in eviction.")
    keep_alive_seconds: float | None = Field(description="How long it stays without use; null: for ever.")
    state: MemoryState = Field(description="Where it is.")
    why: str = Field(description="One sentence: why it is there, and what it waits for.")
    footprint: tuple[DeviceFootprint, ...] = Field(default=(), description="By device.")
    loaded_at: datetime | None = Field(default=None, description="Since when it is loaded.")
    last_used_at: datetime | None = Field(default=None, description="Its newest use that is known.")
    rate_per_second: float = Field(default=0.0, description="Decaying rate of its requests.")
    pending: int = Field(default=0, description="Requests that wait or run now.")
    expires_at: datetime | None = Field(default=None, description="When it is unloaded unless it is used before.")
    held_until: datetime | None = Field(default=None, description="The end of its longest hold.")
    demanded_at: datetime | None = Field(default=None, description="Since when somebody waits for it.")
    load_seconds: float | None = Field(default=None, description="What its newest load took; null before the first.")
    loads: int = Field(default=0, description="How often it was loaded here by this process.")
    evictions: int = Field(default=0, description="How often it was evicted here by this process.")


class EvictionRecord(_View):
    """An eviction: one model was unloaded for another."""

    at: datetime = Field(description="When it was decided.")
    server: str = Field(description="Where.")
    victim: str = Field(description="The model that was unloaded.")
    for_model: str = Field(description="The model that needed the room; empty for an expired keep-alive.")
    bytes: dict[str, int] = Field(description="What it freed, by device.")
    why: str = Field(description="One sentence.")


class QueuedLoad(_View):
    """A load that waits for memory."""

    model: str = Field(description="The model.")
    priority: int = Field(description="Its priority.")
    since: datetime = Field(description="Since when it waits.")
    deadline: datetime = Field(description="When it is given up.")
    why: str = Field(description="What it waits for, with the figures.")


class LeakView(_View):
    """Memory that a server uses beyond its ledger, and the remedy in progress."""

    bound_bytes: int | None = Field(description="Above this it is drained and restarted; null: never.")
    state: Literal["watching", "draining", "restarting"] = Field(description="What is being done.")
    why: str = Field(default="", description="One sentence with the figures, or what is waited for; empty below it.")
    excess_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="Bytes beyond the ledger by device: of a server of ours, what its own processes have.",
    )
    over_since: datetime | None = Field(default=None, description="Since when it is above the bound.")
    draining_since: datetime | None = Field(default=None, description="Since when it is drained.")
    restarted_at: datetime | None = Field(default=None, description="When it was restarted for that last.")
    restarts: int = Field(default=0, description="How often that was since this process started.")


class ServerMemory(_View):
    """The ledger of one server."""

    server: str = Field(description="Its name.")
    policy: str = Field(description="The eviction policy: cost, lru, lfu.")
    devices: tuple[DeviceMemory, ...] = Field(description="Its devices.")
    models: tuple[ModelMemoryView, ...] = Field(description="Its models, by name.")
    queue: tuple[QueuedLoad, ...] = Field(default=(), description="Loads that wait, next first.")
    evictions: tuple[EvictionRecord, ...] = Field(default=(), description="The newest evictions, newest first.")
    next_victims: tuple[str, ...] = Field(default=(), description="Who would be evicted next, first one first.")
    leak: LeakView | None = Field(default=None, description="Memory beyond the ledger; null where nobody can tell.")
    counters: dict[str, float] = Field(
        default_factory=dict,
        description="Since the start of this process: loads, cold_starts, evictions, measured, estimate_error_bytes "
        "(sum of |measured - estimated|), estimate_error_max_bytes (largest measured - estimated), "
        "load_wait_seconds, load_fetch_seconds, load_stage_seconds, load_load_seconds, load_prove_seconds.",
    )


class MemoryHolder(_View):
    """A holder of memory that a load needs."""

    model: str = Field(description="The model; empty for memory that nobody accounts for.")
    device: str = Field(description="The device.")
    bytes: int = Field(description="How much.")
    why: str = Field(description="Why it cannot be had: pinned, a hold, requests pending, ...")


class ServerExplanation(_View):
    """Why a model has its current state on one server."""

    server: str = Field(description="The server.")
    model: ModelMemoryView = Field(description="How it stands.")
    needed: dict[str, int] = Field(default_factory=dict, description="What its load needs, by device.")
    free: dict[str, int] = Field(default_factory=dict, description="What is free, by device.")
    could_be_freed: dict[str, int] = Field(default_factory=dict, description="What eviction could free, by device.")
    holders: tuple[MemoryHolder, ...] = Field(default=(), description="What holds the rest.")
    evictions: tuple[EvictionRecord, ...] = Field(default=(), description="Evictions of it or for it, newest first.")
    next: str = Field(default="", description="What happens next, as one sentence.")


class AssignmentView(_View):
    """Placement of one replica."""

    server: str = Field(description="The server.")
    devices: tuple[str, ...] = Field(description="Its devices there.")
    bytes: int = Field(description="What the plan counts for it on each of them.")
    why: str = Field(description="Why there.")


class PlacementView(_View):
    """The servers that a model is placed on."""

    replicas: int = Field(description="How many replicas are wanted now, one on each server.")
    min_replicas: int = Field(description="How many are wanted at least.")
    max_replicas: int = Field(description="How many there may be while requests wait too long.")
    replicas_why: str = Field(default="", description="Why so many, where queues or idleness changed the number.")
    assignments: tuple[AssignmentView, ...] = Field(default=(), description="Where the replicas are placed.")
    unplaced: str = Field(default="", description="Why there are fewer than `min_replicas`; empty where there are not.")


class ExplanationView(_View):
    """Why a model has its current state."""

    model: str = Field(description="The model.")
    servers: tuple[ServerExplanation, ...] = Field(description="Per Triton server.")
    placement: PlacementView | None = Field(
        default=None, description="Where its replicas are placed, and why; null where nothing shall or can be loaded."
    )


class PlannedEviction(_View):
    """A model that would be evicted."""

    model: str = Field(description="The model.")
    bytes: dict[str, int] = Field(description="What it would free, by device.")
    why: str = Field(default="", description="Why this one.")


class ServerLoadPlan(_View):
    """Effect of a load on one server."""

    server: str = Field(description="The server.")
    decision: Literal["nothing", "admit", "evict", "queue", "refuse"] = Field(
        description="nothing: it is loaded already; admit: there is room; evict: others make room first; "
        "queue: it would wait; refuse: it cannot be."
    )
    why: str = Field(description="One sentence, with figures.")
    devices: tuple[str, ...] = Field(default=(), description="The devices of the server that it would be placed on.")
    placed_why: str = Field(default="", description="Why there.")
    needed: dict[str, int] = Field(default_factory=dict, description="What it needs, by device.")
    free: dict[str, int] = Field(default_factory=dict, description="What is free, by device.")
    could_be_freed: dict[str, int] = Field(default_factory=dict, description="What eviction could free, by device.")
    evictions: tuple[PlannedEviction, ...] = Field(default=(), description="Who would make room.")
    holders: tuple[MemoryHolder, ...] = Field(default=(), description="What holds the rest, where it is refused.")
    fetch_bytes: int = Field(default=0, description="Bytes to fetch from the store; 0 where they are cached.")
    seconds: float = Field(default=0.0, description="How long it should take.")
    seconds_why: str = Field(default="", description="What that is made of.")
    beside: bool | None = Field(
        default=None,
        description="A version switch: whether the new is loaded beside the old (no gap); null where it is none.",
    )
    gap_seconds: float = Field(default=0.0, description="How long nothing would answer.")


class LoadPlanView(_View):
    """Effect of a load on every server."""

    model: str = Field(description="The model.")
    version: int = Field(description="The version.")
    servers: tuple[ServerLoadPlan, ...] = Field(description="Per Triton server.")

    @property
    def possible(self) -> bool:
        """Whether no server refuses the load."""
        return all(server.decision != "refuse" for server in self.servers)
