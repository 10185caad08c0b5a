"""Prints where models are placed, and moves."""

from controlplane.cli.memory import sizes
from controlplane.cli.output import Output, size, span
from controlplane.cli.placement_records import Defragmentation, Placement


def show_moves(out: Output, found: Defragmentation) -> None:
    """Print what a defragmentation does, or would do."""
    if not found.moves:
        out.line("nothing moves: no move would gain more than it costs")
        return
    out.table(
        ("model", "from", "to", "memory", "takes", "why"),
        (
            (move.model, move.from_server, move.to_server, size(move.bytes), span(move.seconds), move.why)
            for move in found.moves
        ),
    )
    out.line()
    verb = "would be loaded anew" if found.dry_run else "are loaded anew"
    out.line(f"{size(found.bytes)} {verb}, {span(found.seconds)} of loading")
    out.facts(
        (
            ("largest gap", f"{sizes(found.largest_gap_before)} before, {sizes(found.largest_gap_after)} after"),
            ("beyond what fits", f"{size(found.shared_before)} before, {size(found.shared_after)} after"),
        )
    )
    if not found.dry_run:
        out.note("each copy is proved at its new place before the old one goes; follow it with `tritonctl ps`")


def show_placement(out: Output, model: str, placement: Placement) -> None:
    """Print where a model's copies are placed; nothing where there is nothing to say about it."""
    if len(placement.seats) == 1 and placement.seats[0].why == "the only server" and not placement.lacking:
        return
    wanted = f"{placement.copies} of {placement.min_copies} to {placement.max_copies} copies are wanted"
    one = placement.copies == placement.min_copies == placement.max_copies
    out.line(f"{model}: {f'{placement.copies} wanted' if one else wanted}", style="bold")
    for seat in placement.seats:
        out.line(f"on {seat.server}: {seat.why}")
    if placement.copies_why:
        out.line(placement.copies_why)
    if placement.lacking:
        out.line(placement.lacking, style="yellow")
    out.line()
