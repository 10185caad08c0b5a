"""What is put into the loop's inbox: everything that happens is one of these."""

import asyncio
from dataclasses import dataclass, field

from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.executor import Outcome
from controlplane.lifecycle.replica import Replica
from controlplane.reconciler.server_state import TrackedServer
from controlplane.servers.readings import ServerReading
from controlplane.servers.snapshot import ServerSnapshot


@dataclass(frozen=True)
class DesiredStateChanged:
    """Something changed in the bucket, about one model or (None) any."""

    model: str | None


@dataclass(frozen=True)
class DesiredStateRead:
    """Deployments were read; ``epoch`` is the lease's when the read of all of them began, None for a single one."""

    desired_state: dict[str, DesiredDeployment]
    epoch: int | None = None


@dataclass(frozen=True)
class SnapshotTaken:
    """A look at a server that began at the loop's step ``began`` is done."""

    server: TrackedServer
    began: int
    snapshot: ServerSnapshot


@dataclass(frozen=True)
class ActionFinished:
    """An action ended; ``grown`` is by how much the use of each device has grown meanwhile."""

    server: TrackedServer
    unit: Replica
    outcome: Outcome
    reading: ServerReading | None = None
    grown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadingTaken:
    """A measurement of a server that began at the loop's step ``began`` is done."""

    server: TrackedServer
    began: int
    reading: ServerReading


@dataclass(frozen=True)
class LoadRequested:
    """Somebody wants to use a model now."""

    model: str
    taken: "asyncio.Future[None]"


@dataclass(frozen=True)
class SnapshotRequested:
    """Somebody wants a model to be looked at on a server; gets the step of the loop from which on a look will do."""

    server: str
    model: str
    step: "asyncio.Future[int]"


@dataclass(frozen=True)
class HoldsChanged:
    """The holds may have changed."""


@dataclass(frozen=True)
class Replaced:
    """The placement was changed outside the cycle."""


@dataclass(frozen=True)
class FootprintsKept:
    """Measured footprints of these models were recorded."""

    models: frozenset[str]


@dataclass(frozen=True)
class ReadTimer:
    """It is time to measure."""


@dataclass(frozen=True)
class RepositoryCleaned:
    """The leftovers of a crash were removed from a server's model repository, or could not be."""

    server: TrackedServer
    done: bool


@dataclass(frozen=True)
class LeaseChanged:
    """This process leads from now on, or does not any more."""

    held: bool


@dataclass(frozen=True)
class Paused:
    """The process was stopped for longer than the lease: what is known of the servers is out of date."""


@dataclass(frozen=True)
class CycleTimer:
    """It is time for a cycle."""


Message = (
    DesiredStateChanged
    | DesiredStateRead
    | SnapshotTaken
    | ActionFinished
    | ReadingTaken
    | LoadRequested
    | SnapshotRequested
    | HoldsChanged
    | Replaced
    | FootprintsKept
    | RepositoryCleaned
    | LeaseChanged
    | Paused
    | CycleTimer
    | ReadTimer
)
