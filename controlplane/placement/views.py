"""Views of a defragmentation and of a drain for the API and the CLI. Frozen values; sizes in bytes."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from controlplane.placement.defragment import Defragmentation, Move
from controlplane.placement.drain import DrainPlan


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MoveView(_View):
    """A replica that is moved."""

    model: str = Field(description="The model.")
    from_server: str = Field(description="The server that it is moved from.")
    from_devices: tuple[str, ...] = Field(description="Its devices on that server.")
    to_server: str = Field(description="The server that it is moved to.")
    to_devices: tuple[str, ...] = Field(description="Its devices on that server.")
    bytes: int = Field(description="Its memory on each of the devices.")
    seconds: float = Field(description="Estimated duration of its load on the new server, in seconds.")
    why: str = Field(description="Why it is moved.")


class DefragmentationView(_View):
    """Moves, with their gains and costs."""

    dry_run: bool = Field(description="Whether this is only a plan, and nothing was changed.")
    moves: tuple[MoveView, ...] = Field(description="The moves, in the order of execution.")
    bytes: int = Field(description="Bytes that are loaded again, summed over all moves.")
    seconds: float = Field(description="Seconds of loading, summed over all moves.")
    largest_gap_before: dict[str, int] = Field(
        description="The largest unassigned piece of memory of one device, by kind of device (cpu, gpu)."
    )
    largest_gap_after: dict[str, int] = Field(description="The same value after the moves.")
    shared_before: int = Field(description="Bytes assigned beyond the budgets, summed over all devices.")
    shared_after: int = Field(description="The same value after the moves.")


def defragmentation_view(found: Defragmentation, *, dry_run: bool) -> DefragmentationView:
    """Return the view of a defragmentation."""
    moves = _moves(found.moves)
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


class StayView(_View):
    """A replica that cannot move."""

    model: str = Field(description="The model.")
    why: str = Field(description="The reason.")


class DrainPlanView(_View):
    """What the drain of a server would do. Nothing was changed."""

    server: str = Field(description="The server that would be drained.")
    force: bool = Field(description="Whether replicas that have no place on another server are unloaded.")
    moves: tuple[MoveView, ...] = Field(
        description="Replicas that move, each loaded on the other server before it is unloaded; also from other "
        "servers, to make room."
    )
    ends: tuple[StayView, ...] = Field(description="Replicas that are unloaded without a move.")
    stays: tuple[StayView, ...] = Field(description="Replicas that stay because no other server can have them.")
    seconds: float = Field(description="Seconds of loading, summed over all moves.")


def drain_plan_view(found: DrainPlan, server: str, *, force: bool) -> DrainPlanView:
    """Return the view of a drain plan."""
    moves = _moves(found.moves)
    return DrainPlanView(
        server=server,
        force=force,
        moves=moves,
        ends=tuple(StayView(model=model, why=why) for model, why in found.ends.items()),
        stays=tuple(StayView(model=model, why=why) for model, why in found.stays.items()),
        seconds=round(sum(move.seconds for move in moves), 3),
    )


def _moves(moves: Iterable[Move]) -> tuple[MoveView, ...]:
    return tuple(
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
        for move in moves
    )
