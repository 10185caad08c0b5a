"""Maintenance of Triton servers: cordon, drain, uncordon."""

from typing import Annotated

import typer

from controlplane.cli import completion
from controlplane.cli.session import Session, command

PANEL = "Operate"

ServerArgument = Annotated[
    str, typer.Argument(metavar="SERVER", help="Name of a Triton server.", autocompletion=completion.servers)
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Reason; recorded in the history.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app, "cordon", panel=PANEL, examples=("tritonctl cordon gpu-1", 'tritonctl cordon gpu-1 --reason "new driver"')
    )(cordon)
    command(
        app,
        "drain",
        panel=PANEL,
        examples=("tritonctl drain gpu-1 --dry-run", 'tritonctl drain gpu-1 --timeout 600 --reason "new driver"'),
    )(drain)
    command(app, "uncordon", panel=PANEL, examples=("tritonctl uncordon gpu-1", "tritonctl uncordon gpu-1 -o json"))(
        uncordon
    )


def cordon(session: Session, server: ServerArgument, reason: ReasonOption = "") -> None:
    """Let a server take no new replicas. Its models stay; on a server that is drained, the drain ends.

    The cordon stays until `tritonctl uncordon`, also over restarts.
    """
    from controlplane.cli.workflows.draining import server_path

    out = session.out()
    with session.client() as client:
        document = client.put(f"{server_path(server)}/cordon", {"reason": reason})
    out.result(document)
    out.line(f"{server} is cordoned: it takes no new replicas")


def drain(
    session: Session,
    server: ServerArgument,
    reason: ReasonOption = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also unload replicas that have no place on another server.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would move and what would stay.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until no model is left on the server.")] = True,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0, help="Maximum wait, in seconds; the drain continues.", show_default=False),
    ] = None,
) -> None:
    """Move all models of a server to other servers, without a lost request, before maintenance.

    Each model is loaded and proved on its new server before it is unloaded here; its requests and sequences in flight
    end first. Models that no other server can have stay (exit code 7), unless `--force` is given. The server takes no
    new replicas until `tritonctl uncordon`.
    """
    from controlplane.cli.views.placement import show_drain
    from controlplane.cli.workflows.draining import server_path, wait_drained
    from controlplane.client.placement import DrainPlan
    from controlplane.domain.cordons import Cordon

    out = session.out()
    path = server_path(server)
    with session.client() as client:
        plan = client.fetch(DrainPlan, f"{path}/drain-plan", force=str(force).lower())
        if dry_run:
            out.result(plan)
            show_drain(out, plan)
            return
        show_drain(out, plan)
        made = client.read(Cordon, client.put(f"{path}/cordon", {"drain": True, "force": force, "reason": reason}))
        if not wait:
            out.result(made)
            out.line(f"{server} is being drained; `tritonctl servers` shows the progress")
            return
        found = wait_drained(client, out, server, made.at, timeout)
    out.result(found)
    out.line(
        f"{server} is drained: no model is left on it, and it takes no new ones until `tritonctl uncordon {server}`"
    )


def uncordon(session: Session, server: ServerArgument) -> None:
    """Let a server take new replicas again; ends its drain. Models that moved away do not come back by themselves."""
    from controlplane.cli.workflows.draining import server_path

    out = session.out()
    with session.client() as client:
        client.delete(f"{server_path(server)}/cordon")
    out.result({"server": server})
    out.line(f"{server} takes new replicas again; `tritonctl defrag` moves models to it where that is worth its cost")
