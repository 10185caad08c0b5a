"""The API's documents about placement, as far as the command line needs them."""

from pydantic import Field

from controlplane.client.models import Record


class Assignment(Record):
    """The assignment of one replica."""

    server: str
    devices: tuple[str, ...] = ()
    bytes: int = 0
    why: str = ""


class Placement(Record):
    """The placement of a model's replicas."""

    replicas: int = 1
    min_replicas: int = 1
    max_replicas: int = 1
    replicas_why: str = ""
    assignments: tuple[Assignment, ...] = ()
    unplaced: str = ""


class Move(Record):
    """The move of one replica to another server."""

    model: str
    from_server: str
    to_server: str
    bytes: int
    seconds: float
    why: str = ""


class Stay(Record):
    """A replica without a place on another server."""

    model: str
    why: str = ""


class DrainPlan(Record):
    """What the drain of a server would do."""

    server: str
    force: bool = False
    moves: tuple[Move, ...] = ()
    ends: tuple[Stay, ...] = ()
    stays: tuple[Stay, ...] = ()
    seconds: float = 0.0


class Defragmentation(Record):
    """Moves with their gain and their cost."""

    dry_run: bool
    moves: tuple[Move, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    largest_gap_before: dict[str, int] = Field(default_factory=dict)
    largest_gap_after: dict[str, int] = Field(default_factory=dict)
    shared_before: int = 0
    shared_after: int = 0
