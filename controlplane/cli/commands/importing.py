"""Import of a Triton model repository."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.commands.push import LabelOption, ReasonOption
from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "import",
        panel="Publish and convert",
        examples=("tritonctl import ./model_repository --dry-run", "tritonctl import ./model_repository"),
    )(import_)


def import_(
    session: Session,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model repository: a folder for each model.")],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the configurations; model files are not read, and nothing is published."),
    ] = False,
    golden: Annotated[
        bool, typer.Option("--golden/--no-golden", help="Run ONNX models and record their outputs as golden samples.")
    ] = True,
    label: LabelOption = None,
    reason: ReasonOption = "",
) -> None:
    """Publish every version of every model in a Triton model repository on this machine, with its configuration.

    A version whose files are published already is left unchanged, so an import can be repeated. Exit code 7 if a
    version was refused.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.workflows.importing import as_json, import_repository
    from controlplane.cli.workflows.push import PublishOptions, key_values

    out = session.out()
    options = PublishOptions(golden=golden, labels=key_values(label or [], "--label"), reason=reason)
    with session.client() as client:
        rows = import_repository(client, folder, options, session.folder(), out, dry_run=dry_run)
    out.result({"items": as_json(rows)})
    out.table(
        ("model", "folder", "result", "version", "message"),
        ((row.model, row.folder or "-", row.result, row.version or "-", row.message) for row in rows),
    )
    refused = sum(row.result == "refused" for row in rows)
    if refused:
        # Not an exception: with `-o json` the result is the only document.
        out.note(f"{refused} of {len(rows)} versions were refused", style="red")
        raise typer.Exit(ExitCode.FAILED)
