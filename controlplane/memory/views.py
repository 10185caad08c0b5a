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

``unloaded``: not loaded, and no client waits for it. ``queued``: to be loaded, and waits (for memory, for earlier
loads, or for an eviction in progress). ``reserved``: its memory is reserved, and the load is about to begin.
``loading``, ``loaded``, ``unloading``. ``failed``: it cannot be loaded; ``why`` states the sizes. ``disabled``: the
deployment says unloaded.
``assigned-elsewhere``: it is placed on other servers; ``why`` names them. ``pending``: desired and not processed yet.
``unreachable``: the server does not answer.
"""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceMemory(_View):
    """One pool of memory of one server: a GPU, a MIG instance, or the host."""

    device: str = Field(description="Its name on the server: host, gpu:0, ...")
    kind: Literal["cpu", "gpu"] = Field(description="The kind of memory: of the host or of a GPU.")
    total_bytes: int = Field(description="Its size.")
    budget_bytes: int = Field(description="The part that models can use.")
    used_bytes: int | None = Field(description="Memory in use as the device reports it; null if it cannot be read.")
    reserved_bytes: int = Field(description="Reserved for loads that are about to begin.")
    loading_bytes: int = Field(description="Reserved for loads in progress.")
    resident_bytes: int = Field(description="Held by loaded models.")
    unloading_bytes: int = Field(description="Held by models that are being unloaded.")
    unaccounted_bytes: int = Field(
        description="In use, but attributed to no model by the ledger; it reduces the budget."
    )
    free_bytes: int = Field(description="The budget minus all of the above; at least 0.")


class DeviceFootprint(_View):
    """Memory that a version needs on one device."""

    device: str = Field(description="The device.")
    bytes: int = Field(description="The memory that is needed.")
    error_bytes: int = Field(description="By how much the real value may be larger.")
    peak_bytes: int = Field(description="The highest use at any time; for an estimate, equal to `bytes`.")
    load_peak_bytes: int = Field(default=0, description="The highest use during a load; 0: not measured.")
    inference_peak_bytes: int = Field(default=0, description="The highest use during inference; 0: not measured.")
    left_bytes: int | None = Field(
        default=None, description="The most memory that stayed in use after an unload; null: unknown."
    )
    estimate_bytes: int | None = Field(
        default=None, description="The estimate before the measurement; null: not measured."
    )
    source: Literal["estimate", "measured"] = Field(description="Whether it is estimated or measured.")
    held_bytes: int = Field(default=0, description="What the ledger counts for it now.")


class ModelMemoryView(_View):
    """One deployed model on one server."""

    model: str = Field(description="The model.")
    version: int = Field(description="The version that is active or is to become active.")
    mode: Mode = Field(description="When it is loaded.")
    priority: int = Field(description="A higher priority is loaded first and evicted last.")
    keep_alive_seconds: float | None = Field(
        description="How long it stays loaded without use, in seconds; null: indefinitely."
    )
    state: MemoryState = Field(description="Its memory state.")
    why: str = Field(description="The reason for the state, and what it waits for.")
    footprint: tuple[DeviceFootprint, ...] = Field(default=(), description="The memory that it needs, by device.")
    loaded_at: datetime | None = Field(default=None, description="When it was loaded.")
    last_used_at: datetime | None = Field(default=None, description="Its last known use.")
    rate_per_second: float = Field(default=0.0, description="Exponentially decaying request rate.")
    pending: int = Field(default=0, description="Requests that are queued or running.")
    expires_at: datetime | None = Field(default=None, description="When it is unloaded if it is not used before.")
    held_until: datetime | None = Field(default=None, description="The end of its longest hold.")
    demanded_at: datetime | None = Field(default=None, description="Since when a client waits for it.")
    load_seconds: float | None = Field(default=None, description="Duration of its last load; null before the first.")
    loads: int = Field(default=0, description="How often this process loaded it on this server.")
    evictions: int = Field(default=0, description="How often this process evicted it from this server.")


class EvictionRecord(_View):
    """An eviction: one model was unloaded for another."""

    at: datetime = Field(description="When the eviction was decided.")
    server: str = Field(description="The server.")
    victim: str = Field(description="The model that was unloaded.")
    for_model: str = Field(description="The model that needed the memory; empty for an expired keep-alive.")
    bytes: dict[str, int] = Field(description="The memory that was freed, by device.")
    why: str = Field(description="The reason.")


class QueuedLoad(_View):
    """A load that waits for memory."""

    model: str = Field(description="The model.")
    priority: int = Field(description="Its priority.")
    since: datetime = Field(description="Since when it waits.")
    deadline: datetime = Field(description="When the load fails if it still waits.")
    why: str = Field(description="What it waits for, with sizes.")


class LeakView(_View):
    """Memory that a server uses beyond its ledger, and the remedy in progress."""

    bound_bytes: int | None = Field(
        description="Unaccounted memory above which the server is drained and restarted; null: never."
    )
    state: Literal["watching", "draining", "restarting"] = Field(description="The step in progress.")
    why: str = Field(default="", description="The sizes, or what the restart waits for; empty below the bound.")
    excess_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="Bytes beyond the ledger, by device; for a supervised server, those of its own processes.",
    )
    over_since: datetime | None = Field(default=None, description="Since when the excess is above the bound.")
    draining_since: datetime | None = Field(default=None, description="When the drain began.")
    restarted_at: datetime | None = Field(
        default=None, description="When the server was last restarted for this reason."
    )
    restarts: int = Field(
        default=0, description="How often the server was restarted for this reason since this process started."
    )


class ServerMemory(_View):
    """The ledger of one server."""

    server: str = Field(description="The server.")
    policy: str = Field(description="The eviction policy: cost, lru, lfu.")
    devices: tuple[DeviceMemory, ...] = Field(description="Its devices.")
    models: tuple[ModelMemoryView, ...] = Field(description="Its models, by name.")
    queue: tuple[QueuedLoad, ...] = Field(default=(), description="Waiting loads, the next one first.")
    evictions: tuple[EvictionRecord, ...] = Field(default=(), description="The newest evictions, newest first.")
    next_victims: tuple[str, ...] = Field(default=(), description="The models that would be evicted next, in order.")
    leak: LeakView | None = Field(default=None, description="Memory beyond the ledger; null if unknown.")
    counters: dict[str, float] = Field(
        default_factory=dict,
        description="Since the start of this process: loads, cold_starts, evictions, measured, estimate_error_bytes "
        "(sum of |measured - estimated|), estimate_error_max_bytes (largest measured - estimated), "
        "load_wait_seconds, load_fetch_seconds, load_stage_seconds, load_load_seconds, load_prove_seconds.",
    )


class MemoryHolder(_View):
    """A holder of memory that a load needs."""

    model: str = Field(description="The model; empty for unaccounted memory.")
    device: str = Field(description="The device.")
    bytes: int = Field(description="The size.")
    why: str = Field(description="Why it cannot be freed: pinned, a hold, requests pending, ...")


class ServerExplanation(_View):
    """Why a model has its current state on one server."""

    server: str = Field(description="The server.")
    model: ModelMemoryView = Field(description="Its state on the server.")
    needed: dict[str, int] = Field(default_factory=dict, description="Memory that its load needs, by device.")
    free: dict[str, int] = Field(default_factory=dict, description="Free memory, by device.")
    could_be_freed: dict[str, int] = Field(
        default_factory=dict, description="Memory that evictions could free, by device."
    )
    holders: tuple[MemoryHolder, ...] = Field(default=(), description="The models that hold the rest.")
    evictions: tuple[EvictionRecord, ...] = Field(
        default=(), description="Evictions of the model or for the model, newest first."
    )
    next: str = Field(default="", description="What happens next.")


class AssignmentView(_View):
    """Placement of one replica."""

    server: str = Field(description="The server.")
    devices: tuple[str, ...] = Field(description="Its devices on that server.")
    bytes: int = Field(description="The memory that the placement counts on each of the devices.")
    why: str = Field(description="Why this server was chosen.")


class PlacementView(_View):
    """The servers that a model is placed on."""

    replicas: int = Field(description="Desired number of replicas, one on each server.")
    min_replicas: int = Field(description="Minimum number of replicas.")
    max_replicas: int = Field(description="Maximum number of replicas, used when requests wait too long.")
    replicas_why: str = Field(default="", description="Why autoscaling changed the number; empty if it did not.")
    assignments: tuple[AssignmentView, ...] = Field(default=(), description="The assignments of the replicas.")
    unplaced: str = Field(
        default="", description="Why there are fewer replicas than `min_replicas`; empty if there are enough."
    )


class ExplanationView(_View):
    """Why a model has its current state."""

    model: str = Field(description="The model.")
    servers: tuple[ServerExplanation, ...] = Field(description="One entry per Triton server.")
    placement: PlacementView | None = Field(
        default=None, description="The placement of its replicas; null if nothing is to be loaded or can be loaded."
    )


class PlannedEviction(_View):
    """A model that would be evicted."""

    model: str = Field(description="The model.")
    bytes: dict[str, int] = Field(description="The memory that it would free, by device.")
    why: str = Field(default="", description="Why this model would be evicted.")


class ServerLoadPlan(_View):
    """Effect of a load on one server."""

    server: str = Field(description="The server.")
    decision: Literal["nothing", "admit", "evict", "queue", "refuse"] = Field(
        description="nothing: already loaded; admit: there is room; evict: other models are evicted first; "
        "queue: it would wait; refuse: it cannot be loaded."
    )
    why: str = Field(description="The reason, with sizes.")
    devices: tuple[str, ...] = Field(default=(), description="The devices that it would be placed on.")
    placed_why: str = Field(default="", description="Why this server was chosen.")
    needed: dict[str, int] = Field(default_factory=dict, description="Memory that it needs, by device.")
    free: dict[str, int] = Field(default_factory=dict, description="Free memory, by device.")
    could_be_freed: dict[str, int] = Field(
        default_factory=dict, description="Memory that evictions could free, by device."
    )
    evictions: tuple[PlannedEviction, ...] = Field(default=(), description="The models that would be evicted.")
    holders: tuple[MemoryHolder, ...] = Field(
        default=(), description="The models that hold the rest, if the load would wait or be refused."
    )
    fetch_bytes: int = Field(default=0, description="Bytes to fetch from the store; 0 if they are cached.")
    seconds: float = Field(default=0.0, description="Estimated duration in seconds.")
    seconds_why: str = Field(default="", description="The parts of the estimated duration.")
    beside: bool | None = Field(
        default=None,
        description="Whether the new version is loaded beside the old one, without a gap; null if it replaces none.",
    )
    gap_seconds: float = Field(default=0.0, description="Estimated time in seconds in which no version answers.")


class LoadPlanView(_View):
    """Effect of a load on every server."""

    model: str = Field(description="The model.")
    version: int = Field(description="The version.")
    servers: tuple[ServerLoadPlan, ...] = Field(description="One entry per Triton server.")

    @property
    def possible(self) -> bool:
        """Whether no server refuses the load."""
        return all(server.decision != "refuse" for server in self.servers)
