"""The API's documents about memory, as this client reads them."""

from datetime import datetime
from typing import Self

from pydantic import Field, model_validator

from controlplane.client.models import ModelMemory, Record
from controlplane.client.placement import Placement


class DeviceMemory(Record):
    """The memory of one device of one server."""

    device: str
    total_bytes: int
    budget_bytes: int
    used_bytes: int | None = None
    reserved_bytes: int = 0
    loading_bytes: int = 0
    resident_bytes: int = 0
    unloading_bytes: int = 0
    unaccounted_bytes: int = 0
    free_bytes: int = 0


class Eviction(Record):
    """The eviction of one model for another."""

    at: datetime
    victim: str
    for_model: str = ""
    bytes: dict[str, int] = Field(default_factory=dict)
    why: str = ""


class QueuedLoad(Record):
    """A waiting load."""

    model: str
    priority: int = 0
    since: datetime
    deadline: datetime
    why: str = ""


class Leak(Record):
    """Memory that a server uses beyond its ledger."""

    bound_bytes: int | None = None
    state: str = "watching"
    why: str = ""
    restarted_at: datetime | None = None
    restarts: int = 0


class ServerMemory(Record):
    """The ledger of one server."""

    server: str
    policy: str = ""
    devices: tuple[DeviceMemory, ...] = ()
    models: tuple[ModelMemory, ...] = ()
    queue: tuple[QueuedLoad, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    next_victims: tuple[str, ...] = ()
    leak: Leak | None = None

    @model_validator(mode="after")
    def _name_the_server(self) -> Self:
        """Copy the server's name, which the API sends once, to each model."""
        models = tuple(model.model_copy(update={"server": self.server}) for model in self.models)
        object.__setattr__(self, "models", models)
        return self


class MemoryHolder(Record):
    """Something that prevents a load from getting memory."""

    model: str
    device: str
    bytes: int
    why: str = ""


class ServerExplanation(Record):
    """The explanation of a model's state on one server."""

    server: str
    model: ModelMemory
    needed: dict[str, int] = Field(default_factory=dict)
    free: dict[str, int] = Field(default_factory=dict)
    could_be_freed: dict[str, int] = Field(default_factory=dict)
    holders: tuple[MemoryHolder, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    next: str = ""

    @model_validator(mode="after")
    def _name_the_server(self) -> Self:
        object.__setattr__(self, "model", self.model.model_copy(update={"server": self.server}))
        return self


class Explanation(Record):
    """The explanation of a model's state."""

    model: str
    servers: tuple[ServerExplanation, ...] = ()
    placement: Placement | None = None


class PlannedEviction(Record):
    """A model that would be evicted."""

    model: str
    bytes: dict[str, int] = Field(default_factory=dict)
    why: str = ""


class ServerPlan(Record):
    """The effects of a load on one server."""

    server: str
    decision: str
    why: str = ""
    devices: tuple[str, ...] = ()
    placed_why: str = ""
    needed: dict[str, int] = Field(default_factory=dict)
    free: dict[str, int] = Field(default_factory=dict)
    could_be_freed: dict[str, int] = Field(default_factory=dict)
    evictions: tuple[PlannedEviction, ...] = ()
    holders: tuple[MemoryHolder, ...] = ()
    fetch_bytes: int = 0
    seconds: float = 0.0
    seconds_why: str = ""
    beside: bool | None = None
    gap_seconds: float = 0.0


class Plan(Record):
    """The effects of a load."""

    model: str
    version: int
    servers: tuple[ServerPlan, ...] = ()


class Hold(Record):
    """A client's hold on a model."""

    id: str
    model: str
    holder: str = ""
    expires_at: datetime
    ready: bool = False
    message: str = ""
