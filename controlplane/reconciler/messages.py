"""What is put into the loop's inbox: everything that happens is one of these."""

import asyncio
from dataclasses import dataclass, field

from controlplane.reconciler.executor import Outcome
from controlplane.reconciler.fleet import KnownServer
from controlplane.reconciler.gauging import Reading
from controlplane.reconciler.units import Unit
from controlplane.reconciler.watching import Sight
from controlplane.reconciler.wishes import Wish


@dataclass(frozen=True)
class Woken:
    """Something changed in the bucket, about one model or (None) any."""

    model: str | None


@dataclass(frozen=True)
class Wished:
    """Deployments were read; ``epoch`` is the lease's when the read of all of them began, None for a single one."""

    wishes: dict[str, Wish]
    epoch: int | None = None


@dataclass(frozen=True)
class Seen:
    """A look at a server that began at the loop's step ``began`` is done."""

    server: KnownServer
    began: int
    sight: Sight


@dataclass(frozen=True)
class Done:
    """An action ended; ``grown`` is by how much the use of each device has grown meanwhile."""

    server: KnownServer
    unit: Unit
    outcome: Outcome
    reading: Reading | None = None
    grown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Gauged:
    """A measurement of a server that began at the loop's step ``began`` is done."""

    server: KnownServer
    began: int
    reading: Reading


@dataclass(frozen=True)
class Demanded:
    """Somebody wants to use a model now."""

    model: str
    taken: "asyncio.Future[None]"


@dataclass(frozen=True)
class LookWanted:
    """Somebody wants a model to be looked at on a server; gets the step of the loop from which on a look will do."""

    server: str
    model: str
    step: "asyncio.Future[int]"


@dataclass(frozen=True)
class Held:
    """The client leases may have changed."""


@dataclass(frozen=True)
class Replaced:
    """The placement was changed outside the cycle."""


@dataclass(frozen=True)
class FootprintsKept:
    """Measured footprints of these models were recorded."""

    models: frozenset[str]


@dataclass(frozen=True)
class Poll:
    """It is time to measure."""


@dataclass(frozen=True)
class Cleaned:
    """The leftovers of a crash were removed from a server's model repository, or could not be."""

    server: KnownServer
    done: bool


@dataclass(frozen=True)
class LeaseChanged:
    """This process leads from now on, or does not any more."""

    held: bool


@dataclass(frozen=True)
class Paused:
    """The process was stopped for longer than the lease: what is known of the servers is out of date."""


@dataclass(frozen=True)
class Tick:
    """It is time for a cycle."""


Message = (
    Woken
    | Wished
    | Seen
    | Done
    | Gauged
    | Demanded
    | LookWanted
    | Held
    | Replaced
    | FootprintsKept
    | Cleaned
    | LeaseChanged
    | Paused
    | Tick
    | Poll
)
