"""Inputs and results of placement. Frozen values only; sizes in bytes.

A *pool* is one device of one server, with the budget that models may use of it. A *workload* is a model with the needs
of each replica. An *assignment* is the place of one replica. Replicas of a model are on different servers: a Triton has
one model of a name. A *guaranteed* workload (pinned) has its memory to itself; the others share the rest over time:
they may need more than fits at once, and eviction decides which are loaded.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum

CPU, GPU = "cpu", "gpu"
UNLIMITED = 1 << 62
"""Budget of a device whose memory is unknown."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One device of a server.

    Attributes:
        name: Its name on the server: host, gpu:0, gpu:0/mig:1.
        bytes: Its budget; `UNLIMITED` if unknown.
        gpu: Triton's number of the GPU; None for the host.
        product: The product name; empty if unknown.
        total_bytes: Its total memory; 0 if unknown, in which case the budget is used instead.
        numbered: Whether a model can be restricted to this device, because its number is known. Otherwise a model
            uses all GPUs of the server.
    """

    name: str
    bytes: int
    gpu: int | None = None
    product: str = ""
    total_bytes: int = 0
    numbered: bool = True

    @property
    def kind(self) -> str:
        """``cpu`` or ``gpu``."""
        return CPU if self.gpu is None else GPU


class Vacate(StrEnum):
    """How far a server that is drained goes to have its replicas elsewhere."""

    GAPS = "gaps"
    """They move into gaps on other servers, and stay if there are none."""
    ANYWHERE = "anywhere"
    """They also move onto memory that others share, or others are rearranged. The minimum of a model stays if no other
    server can have it; replicas beyond the minimum end."""
    LAST = "last"
    """Like `ANYWHERE`, but of a model that has other replicas none stays: the server is about to end anyway."""
    ALWAYS = "always"
    """None stays, whether or not another server can have it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that models can be placed on.

    Attributes:
        name: Its name.
        pools: Its devices.
        zone: Its failure domain; servers of one zone may fail together.
        labels: The labels that node selectors are matched with.
        trouble: Why it cannot take replicas now; empty if it can.
        drained: Why it is being drained; empty if it is not. Its replicas move to other servers.
        vacate: How far the drain goes.
        cordoned: Why it takes no new replicas, although those that it has stay; empty if it takes them.
    """

    name: str
    pools: tuple[Pool, ...]
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""
    drained: str = ""
    vacate: Vacate = Vacate.GAPS
    cordoned: str = ""

    @property
    def closed(self) -> str:
        """Why no further replica may be placed on it; empty if one may."""
        return self.trouble or self.drained or self.cordoned

    def differs_in_room_alone(self, other: "Server") -> bool:
        """Return whether another state of the server has only other budgets."""
        if len(self.pools) != len(other.pools) or replace(self, pools=other.pools) != other:
            return False
        pairs = zip(self.pools, other.pools, strict=True)
        return all(replace(mine, bytes=theirs.bytes) == theirs for mine, theirs in pairs)

    @property
    def has_gpu(self) -> bool:
        """Whether it has a GPU."""
        return any(pool.gpu is not None for pool in self.pools)


@dataclass(frozen=True, slots=True)
class Workload:
    """A model to be placed.

    Attributes:
        model: The model name.
        bytes: What a replica needs on each of its devices, by the kind of device; a missing kind cannot run it. With
            both kinds it runs on the GPUs of a server that has some, and on the host of a server that has none.
        replicas: The desired number of replicas.
        min_replicas: How many of these are placed even if they must share memory.
        guaranteed: Whether its memory is its own (pinned).
        priority: A higher priority is placed first.
        selector: Labels that its server must have.
        gpus: Numbers of the GPUs that each replica uses, all of them; empty: see `gpu_count`.
        gpu_count: How many GPUs each replica uses; None for all that match.
        gpu_product: Part of the product name that its GPUs must have, ignoring case.
        gpu_min_bytes: Minimum total memory of each of its GPUs.
        cannot: Servers that are known to be unable to load it, and why.
        load_seconds: Duration of a load.
        fetch_seconds: Duration of fetching its files if they are not cached.
    """

    model: str
    bytes: Mapping[str, int]
    replicas: int = 1
    min_replicas: int = 1
    guaranteed: bool = False
    priority: int = 0
    selector: tuple[tuple[str, str], ...] = ()
    gpus: tuple[int, ...] = ()
    gpu_count: int | None = None
    gpu_product: str = ""
    gpu_min_bytes: int = 0
    cannot: Mapping[str, str] = field(default_factory=dict)
    load_seconds: float = 1.0
    fetch_seconds: float = 0.0

    @property
    def largest(self) -> int:
        """Its largest need on one device."""
        return max(self.bytes.values(), default=0)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The place of one replica.

    Attributes:
        server: The server.
        devices: Its devices there.
        bytes: What it takes of each.
        guaranteed: Whether that memory is its own.
        why: The reason for this place, as one sentence.
        waits: Whether the server is in trouble; the replica stays assigned to it because there is no other.
    """

    server: str
    devices: tuple[str, ...]
    bytes: int
    guaranteed: bool = False
    why: str = ""
    waits: bool = False


@dataclass(frozen=True, slots=True)
class ServerUsage:
    """What is assigned to one server.

    Attributes:
        guaranteed: Bytes of guaranteed assignments, by device.
        soft: Bytes that the other assignments would take if all were loaded, by device.
        models: The models assigned there.
    """

    guaranteed: Mapping[str, int] = field(default_factory=dict)
    soft: Mapping[str, int] = field(default_factory=dict)
    models: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Hints:
    """Preferences among places; used only for replicas that are being placed.

    Attributes:
        loaded: Where a model is already loaded: devices by server.
        cached: Servers that have a model's files in their cache.
        rates: Requests per second.
    """

    loaded: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    cached: Mapping[str, frozenset[str]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


NO_HINTS = Hints()


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement. The next plan is made from it and from what has changed.

    Attributes:
        servers: The servers it was made for, by name.
        workloads: The workloads it was made for, by model.
        assignments: The replicas' places, by model; a model without any is left out.
        unplaced: Why a model has fewer replicas than its minimum, by model.
        server_usage: What is assigned to each server.
    """

    servers: Mapping[str, Server] = field(default_factory=dict)
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    assignments: Mapping[str, tuple[Assignment, ...]] = field(default_factory=dict)
    unplaced: Mapping[str, str] = field(default_factory=dict)
    server_usage: Mapping[str, ServerUsage] = field(default_factory=dict)


NO_PLAN = Plan()
