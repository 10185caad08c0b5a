"""Output of placements and moves."""

from controlplane.cli.output import Output, size, span
from controlplane.cli.views.memory import sizes
from controlplane.client.placement import Defragmentation, DrainPlan, Placement


def show_moves(out: Output, found: Defragmentation) -> None:
    """Print what a defragmentation does or would do."""
    if not found.moves:
        out.line("nothing to move: no move would gain more than it costs")
        return
    out.table(
        ("model", "from", "to", "memory", "takes", "why"),
        (
            (move.model, move.from_server, move.to_server, size(move.bytes), span(move.seconds), move.why)
            for move in found.moves
        ),
    )
    out.line()
    verb = "would be loaded again" if found.dry_run else "are loaded again"
    out.line(f"{size(found.bytes)} {verb}, {span(found.seconds)} of loading")
    out.facts(
        (
            ("largest gap", f"{sizes(found.largest_gap_before)} before, {sizes(found.largest_gap_after)} after"),
            ("overcommitted", f"{size(found.shared_before)} before, {size(found.shared_after)} after"),
        )
    )
    if not found.dry_run:
        out.note("each replica is proved on its new server before the old one is unloaded; see `tritonctl ps`")


def show_drain(out: Output, found: DrainPlan) -> None:
    """Print what the drain of a server does."""
    rows = [
        (move.model, f"moves to {move.to_server}", size(move.bytes), span(move.seconds), move.why)
        for move in found.moves
        if move.from_server == found.server
    ]
    rows += [
        (
            move.model,
            f"moves from {move.from_server} to {move.to_server}",
            size(move.bytes),
            span(move.seconds),
            move.why,
        )
        for move in found.moves
        if move.from_server != found.server
    ]
    rows += [(one.model, "is unloaded", "", "", one.why) for one in found.ends]
    rows += [(one.model, "stays", "", "", one.why) for one in found.stays]
    out.table(("model", "what", "memory", "takes", "why"), rows, empty=f"no model is placed on {found.server}")


def show_placement(out: Output, model: str, placement: Placement) -> None:
    """Print where a model's replicas are placed; nothing if there is nothing to report."""
    if len(placement.assignments) == 1 and placement.assignments[0].why == "the only server" and not placement.unplaced:
        return
    desired = f"desired replicas: {placement.replicas}"
    if not placement.replicas == placement.min_replicas == placement.max_replicas:
        desired += f" (minimum {placement.min_replicas}, maximum {placement.max_replicas})"
    out.line(f"{model}: {desired}", style="bold")
    for assignment in placement.assignments:
        out.line(f"on {assignment.server}: {assignment.why}")
    if placement.replicas_why:
        out.line(placement.replicas_why)
    if placement.unplaced:
        out.line(placement.unplaced, style="yellow")
    out.line()
