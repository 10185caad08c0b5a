"""Views of a defragmentation for the API and the CLI. Frozen values; sizes in bytes."""

from pydantic import BaseModel, ConfigDict, Field

from controlplane.placement.defragment import Defragmentation


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MoveView(_View):
    """A replica that is moved."""

    model: str = Field(description="The model.")
    from_server: str = Field(description="The server that it leaves.")
    from_devices: tuple[str, ...] = Field(description="Its devices there.")
    to_server: str = Field(description="The server that it goes to.")
    to_devices: tuple[str, ...] = Field(description="Its devices there.")
    bytes: int = Field(description="What it takes of each of them.")
    seconds: float = Field(description="What its load there should take.")
    why: str = Field(description="What is gained.")


class DefragmentationView(_View):
    """Moves, with their gains and costs."""

    dry_run: bool = Field(description="Whether nothing was changed.")
    moves: tuple[MoveView, ...] = Field(description="In the order in which they are made.")
    bytes: int = Field(description="Bytes that are loaded anew, over all moves.")
    seconds: float = Field(description="Seconds of loading, over all moves.")
    largest_gap_before: dict[str, int] = Field(
        description="The largest piece of memory that nobody is assigned, by kind of device (cpu, gpu)."
    )
    largest_gap_after: dict[str, int] = Field(description="The same after the moves.")
    shared_before: int = Field(description="Bytes assigned beyond what fits at once, over all devices.")
    shared_after: int = Field(description="The same after the moves.")


def defragmentation_view(found: Defragmentation, *, dry_run: bool) -> DefragmentationView:
    """Return the view of a defragmentation."""
    moves = tuple(
        MoveView(
            model=move.model,
            from_server=move.source.server,
            from_devices=move.source.devices,
            to_server=move.target.server,
            to_devices=move.target.devices,
            bytes=move.target.bytes,
            seconds=round(move.seconds, 3),
            why=move.why,
        )
        for move in found.moves
    )
    return DefragmentationView(
        dry_run=dry_run,
        moves=moves,
        bytes=sum(move.bytes * len(move.to_devices) for move in moves),
        seconds=round(found.seconds, 3),
        largest_gap_before=dict(found.largest_before),
        largest_gap_after=dict(found.largest_after),
        shared_before=found.shared_before,
        shared_after=found.shared_after,
    )
