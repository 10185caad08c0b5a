"""What a placement is made from, and what it says. Frozen values only; sizes in bytes.

A *pool* is one device of one server, with the budget that models may use of it. A *workload* is a model with what each
copy of it needs. A *seat* is one replica's place. Copies of a model sit on different servers: Triton has one model of a
name. A *firm* workload (pinned) has its memory to itself; the others share what is left in time: they may be more than
fit at once, and eviction decides who is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

CPU, GPU = "cpu", "gpu"
UNLIMITED = 1 << 62
"""The budget of a device whose memory nobody tells about."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One device of a server.

    Attributes:
        name: Its name on the server: host, gpu:0, gpu:0/mig:1.
        bytes: Its budget; `UNLIMITED` where nobody tells.
        gpu: Triton's number of the GPU; None for the host.
        product: The product's name; empty where unknown.
        total_bytes: What it has in all; 0 where that is not known, and the budget stands for it.
        numbered: Whether Triton can be told to use it alone: its number is known. Else a model uses all GPUs there.
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


@dataclass(frozen=True, slots=True)
class Server:
    """A server that models can be placed on.

    Attributes:
        name: Its name.
        pools: Its devices.
        zone: Its failure domain; servers of one zone may fail together.
        labels: What node selectors are matched with.
        trouble: Why it can take nothing now; empty when it can.
        drained: Why it is being emptied; empty where it is not. Copies leave it for gaps elsewhere, and stay where
            there are none.
    """

    name: str
    pools: tuple[Pool, ...]
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""
    drained: str = ""

    @property
    def closed(self) -> bool:
        """Whether nothing more may be placed on it."""
        return bool(self.trouble or self.drained)

    @property
    def has_gpu(self) -> bool:
        """Whether it has a GPU."""
        return any(pool.gpu is not None for pool in self.pools)


@dataclass(frozen=True, slots=True)
class Workload:
    """A model that shall be placed.

    Attributes:
        model: Its name.
        bytes: What a replica needs on each of its devices, by the kind of device; a kind that is not there cannot run
            it. With both kinds it runs on the GPUs of a server that has some, and on the host of one that has none.
        replicas: How many replicas are wanted now.
        min_replicas: How many of these are wanted even where memory has to be shared for it.
        guaranteed: Whether its memory is its own (pinned).
        priority: Higher is placed first.
        selector: Labels that its server must have.
        gpus: Numbers of the GPUs each replica uses, all of them; empty: see `gpu_count`.
        gpu_count: How many GPUs each replica uses; None: all that match.
        gpu_product: Part of the product's name that its GPUs must have, whatever the case.
        gpu_min_bytes: Least memory of its GPUs in all.
        load_seconds: What a load takes.
        fetch_seconds: What fetching its files takes where they are not cached.
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
    load_seconds: float = 1.0
    fetch_seconds: float = 0.0

    @property
    def largest(self) -> int:
        """The most it needs of one device."""
        return max(self.bytes.values(), default=0)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One replica's place.

    Attributes:
        server: The server.
        devices: Its devices there.
        bytes: What it takes of each.
        guaranteed: Whether that is its own.
        why: Why there, as one sentence.
        waits: Whether the server is in trouble: the copy stays assigned to it for want of another.
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
        guaranteed: Bytes that firm seats take, by device.
        soft: Bytes that the other seats would take if all were loaded, by device.
        models: Who sits there.
    """

    guaranteed: Mapping[str, int] = field(default_factory=dict)
    soft: Mapping[str, int] = field(default_factory=dict)
    models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Hints:
    """What makes one place better than another; looked at for what is being placed alone.

    Attributes:
        loaded: Where a model is loaded already: devices by server.
        cached: Servers on which a model's files are.
        rates: Requests per second.
    """

    loaded: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    cached: Mapping[str, frozenset[str]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


NO_HINTS = Hints()


@dataclass(frozen=True, slots=True)
class Plan:
    """Who sits where. The next plan is made from it and from what has changed.

    Attributes:
        servers: What it was made for, by name.
        workloads: What it was made for, by model.
        assignments: The replicas' places, by model; a model without any is not in it.
        unplaced: Why a model has fewer replicas than its least number, by model.
        server_usage: What is assigned to each server.
    """

    servers: Mapping[str, Server] = field(default_factory=dict)
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    assignments: Mapping[str, tuple[Assignment, ...]] = field(default_factory=dict)
    unplaced: Mapping[str, str] = field(default_factory=dict)
    server_usage: Mapping[str, ServerUsage] = field(default_factory=dict)


NO_PLAN = Plan()
