"""The messages in the loop's inbox, one class per kind of event."""

import asyncio
from dataclasses import dataclass, field

from controlplane.domain.cordons import Cordons
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.executor import Outcome
from controlplane.lifecycle.replica import Replica
from controlplane.reconciler.server_state import TrackedServer
from controlplane.servers.readings import ServerReading
from controlplane.servers.server import ManagedServer
from controlplane.servers.snapshot import ServerSnapshot


@dataclass(frozen=True)
class DesiredStateChanged:
    """The bucket changed for one model, or, if None, for any."""

    model: str | None


@dataclass(frozen=True)
class DesiredStateRead:
    """Deployments were read; ``epoch`` is the lease's epoch at the start of a read of all, None for a single one."""

    desired_state: dict[str, DesiredDeployment]
    epoch: int | None = None


@dataclass(frozen=True)
class SnapshotTaken:
    """A snapshot of a server, begun at the loop's step ``began``, is done."""

    server: TrackedServer
    began: int
    snapshot: ServerSnapshot


@dataclass(frozen=True)
class ActionFinished:
    """An action ended; ``grown`` is the growth of memory in use on each device during the action."""

    server: TrackedServer
    unit: Replica
    outcome: Outcome
    reading: ServerReading | None = None
    grown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadingTaken:
    """A reading of a server, begun at the loop's step ``began``, is done."""

    server: TrackedServer
    began: int
    reading: ServerReading


@dataclass(frozen=True)
class LoadRequested:
    """A client requests a model now."""

    model: str
    taken: "asyncio.Future[None]"


@dataclass(frozen=True)
class SnapshotRequested:
    """A caller requests an observation of a model on a server; ``step`` receives the earliest sufficient step."""

    server: str
    model: str
    step: "asyncio.Future[int]"


@dataclass(frozen=True)
class HoldsChanged:
    """The holds may have changed."""


@dataclass(frozen=True)
class CordonsRead:
    """The cordons of revision ``number`` were read or committed; None: they cannot be read, and ``why``."""

    number: int
    cordons: Cordons | None
    why: str = ""


@dataclass(frozen=True)
class ServerJoined:
    """A server joined."""

    managed: ManagedServer


@dataclass(frozen=True)
class ServerLeaving:
    """A server stops as soon as its models are elsewhere."""

    name: str


@dataclass(frozen=True)
class ServerLeft:
    """A server left."""

    name: str


@dataclass(frozen=True)
class Replaced:
    """The placement was changed outside the cycle."""


@dataclass(frozen=True)
class FootprintsKept:
    """Measured footprints of these models were recorded."""

    models: frozenset[str]


@dataclass(frozen=True)
class ReadTimer:
    """The timer for readings expired."""


@dataclass(frozen=True)
class RepositoryCleaned:
    """The remains of a crash were removed from a server's model repository, or the removal failed."""

    server: TrackedServer
    done: bool


@dataclass(frozen=True)
class LeaseChanged:
    """This process became the leader or lost the leadership."""

    held: bool


@dataclass(frozen=True)
class Paused:
    """The process was stopped for longer than the lease: its knowledge of the servers is outdated."""


@dataclass(frozen=True)
class CycleTimer:
    """The cycle timer expired."""


Message = (
    DesiredStateChanged
    | DesiredStateRead
    | SnapshotTaken
    | ActionFinished
    | ReadingTaken
    | LoadRequested
    | SnapshotRequested
    | HoldsChanged
    | CordonsRead
    | ServerJoined
    | ServerLeaving
    | ServerLeft
    | Replaced
    | FootprintsKept
    | RepositoryCleaned
    | LeaseChanged
    | Paused
    | CycleTimer
    | ReadTimer
)
