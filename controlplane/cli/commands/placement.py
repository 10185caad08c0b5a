"""Placement of models on servers."""

from typing import Annotated

import typer

from controlplane.cli.session import Session, command

PANEL = "Look after it"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(app, "defrag", panel=PANEL, examples=("tritonctl defrag --dry-run", "tritonctl defrag --limit 10"))(defrag)


def defrag(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would move, and what for.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Move at most so many replicas.")] = 100,
) -> None:
    """Move models between servers where that gains more than it costs.

    Off servers that are assigned more than fits at once, out of zones that have two replicas of a model, and together,
    so that free memory is in large pieces. Each model is loaded and proved at its new place before the old one goes.
    """
    from controlplane.cli.views.placement import show_moves
    from controlplane.client.placement import Defragmentation

    out = session.out()
    with session.client() as client:
        document = client.post("/v1/placement/defragment", dry_run=str(dry_run).lower(), limit=limit)
        found = client.read(Defragmentation, document)
    out.result(found)
    show_moves(out, found)
