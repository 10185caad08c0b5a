"""Garbage collection and the version of the program."""

from typing import Annotated

import typer

from controlplane.cli.session import Session, command

PANEL = "Operate"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(app, "gc", panel=PANEL, examples=("tritonctl gc --dry-run", "tritonctl gc --grace-seconds 0"))(gc)
    command(app, "version", panel=PANEL, examples=("tritonctl version", "tritonctl version -o json"))(version)


def gc(
    session: Session,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be removed, and remove nothing.")
    ] = False,
    grace: Annotated[
        float | None,
        typer.Option("--grace-seconds", min=0, help="Keep files that are younger than this. Default: 86400 (a day)."),
    ] = None,
) -> None:
    """Remove files that no version refers to, and abandoned uploads."""
    from controlplane.cli.progress import follow
    from controlplane.cli.views.deployment import show_garbage
    from controlplane.client.models import Operation

    out = session.out()
    body = {"dry_run": dry_run} | ({"grace_seconds": grace} if grace is not None else {})
    with session.client() as client:
        operation = client.read(Operation, client.post("/v1/gc", body))
        result = follow(client, operation, out).result or {}
    out.result(result)
    show_garbage(out, result, dry_run=dry_run)


def version(session: Session) -> None:
    """Show the versions of this program and of the control plane that it uses."""
    from importlib.metadata import version as installed

    from controlplane.client.errors import NotRunningError

    out = session.out()
    own = installed("triton-control-plane")
    info = None
    try:
        with session.client() as client:
            info = client.get("/v1/info")
    except NotRunningError:
        info = None
    out.result({"tritonctl": own, "server": info})
    server = f"{info['version']} at {session.find_url()}" if info else "not running"
    out.facts((("tritonctl", own), ("control plane", server), ("store", info.get("store_url") if info else None)))
