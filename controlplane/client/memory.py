"""What the API says about memory, as this client reads it."""

from datetime import datetime
from typing import Self

from pydantic import Field, model_validator

from controlplane.client.models import ModelMemory, Record
from controlplane.client.placement import Placement


class DeviceMemory(Record):
    """One pool of memory of one server."""

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
    """One model made room for another."""

    at: datetime
    victim: str
    for_model: str = ""
    bytes: dict[str, int] = Field(default_factory=dict)
    why: str = ""


class QueuedLoad(Record):
    """A load that waits."""

    model: str
    priority: int = 0
    since: datetime
    deadline: datetime
    why: str = ""


class Leak(Record):
    """Memory that a server has beyond its ledger."""

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
        """Copy the server's name, which the API says once, to each model."""
        models = tuple(model.model_copy(update={"server": self.server}) for model in self.models)
        object.__setattr__(self, "models", models)
        return self


class MemoryHolder(Record):
    """Something that keeps memory from a load."""

    model: str
    device: str
    bytes: int
    why: str = ""


class ServerExplanation(Record):
    """Why a model is where it is, on one server."""

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
    """Why a model is where it is."""

    model: str
    servers: tuple[ServerExplanation, ...] = ()
    placement: Placement | None = None


class PlannedEviction(Record):
    """A model that would make room."""

    model: str
    bytes: dict[str, int] = Field(default_factory=dict)
    why: str = ""


class ServerPlan(Record):
    """What a load would do on one server."""

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
    """What a load would do."""

    model: str
    version: int
    servers: tuple[ServerPlan, ...] = ()


class Hold(Record):
    """Somebody holds a model."""

    id: str
    model: str
    holder: str = ""
    expires_at: datetime
    ready: bool = False
    message: str = ""
