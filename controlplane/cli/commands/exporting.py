"""Export to a plain Triton model repository."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "export",
        panel="Publish and convert",
        examples=("tritonctl export resnet ./repository", "tritonctl export --all ./repository"),
    )(export_)


def export_(
    session: Session,
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="[NAME]... DIR", help="The deployments, and the folder to write.", show_default=False),
    ],
    everything: Annotated[bool, typer.Option("--all", help="Export all deployments.", show_default=False)] = False,
) -> None:
    """Write deployments as a plain Triton model repository, which a Triton without a control plane serves.

    Each model gets a folder with its version and a config.pbtxt without the control plane's parameters. The export can
    be repeated: what changed is replaced, and files that tritonctl did not write are never touched. Exit code 7 if a
    deployment was refused.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.workflows.exporting import as_json, export

    *names, folder = arguments
    if everything and names:
        raise typer.BadParameter("give names or --all, not both", param_hint="NAME")
    if not everything and not names:
        raise typer.BadParameter(
            f"give the deployments to export before the folder: tritonctl export NAME {folder}, or --all",
            param_hint="NAME",
        )
    out = session.out()
    with session.client() as client:
        rows = export(client, None if everything else names, Path(folder), out)
    out.result({"directory": folder, "items": as_json(rows)})
    out.table(
        ("model", "version", "result", "message"),
        ((row.model, row.version or "-", row.result, row.message) for row in rows),
        empty="no model is deployed",
    )
    refused = sum(row.result == "refused" for row in rows)
    if refused:
        # Not an exception: with `-o json` the result is the only document.
        out.note(f"{refused} of {len(rows)} deployments were refused", style="red")
        raise typer.Exit(ExitCode.FAILED)
