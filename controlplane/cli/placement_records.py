"""What the API answers about placement, as far as the command line needs it."""

from pydantic import Field

from controlplane.cli.records import Record


class Seat(Record):
    """One copy's place."""

    server: str
    devices: tuple[str, ...] = ()
    bytes: int = 0
    why: str = ""


class Placement(Record):
    """Where a model's copies are placed."""

    copies: int = 1
    min_copies: int = 1
    max_copies: int = 1
    copies_why: str = ""
    seats: tuple[Seat, ...] = ()
    lacking: str = ""


class Move(Record):
    """One copy that goes elsewhere."""

    model: str
    from_server: str
    to_server: str
    bytes: int
    seconds: float
    why: str = ""


class Defragmentation(Record):
    """Moves, what they gain and what they cost."""

    dry_run: bool
    moves: tuple[Move, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    largest_gap_before: dict[str, int] = Field(default_factory=dict)
    largest_gap_after: dict[str, int] = Field(default_factory=dict)
    shared_before: int = 0
    shared_after: int = 0
