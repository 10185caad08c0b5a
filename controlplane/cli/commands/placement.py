"""Placement of models on servers."""

from typing import Annotated

import typer

from controlplane.cli.session import Session, command

PANEL = "Operate"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(app, "defrag", panel=PANEL, examples=("tritonctl defrag --dry-run", "tritonctl defrag --limit 10"))(defrag)


def defrag(
    session: Session,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which replicas would move and why, and move none.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Maximum number of replicas to move.")] = 100,
) -> None:
    """Move replicas between servers to improve the placement, if the gain exceeds the cost.

    Replicas move away from overcommitted servers, out of zones that have two replicas of a model, and closer together,
    so that the free memory is contiguous. A replica is loaded and proved on its new server before the old one is
    unloaded.
    """
    from controlplane.cli.views.placement import show_moves
    from controlplane.client.placement import Defragmentation

    out = session.out()
    with session.client() as client:
        document = client.post("/v1/placement/defragment", dry_run=str(dry_run).lower(), limit=limit)
        found = client.read(Defragmentation, document)
    out.result(found)
    show_moves(out, found)
