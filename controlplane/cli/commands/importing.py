"""Import of a Triton model repository."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.commands.push import LabelOption, ReasonOption
from controlplane.cli.session import Session, command

if TYPE_CHECKING:
    from controlplane.cli.workflows.import_sources import ModelSource


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "import",
        panel="Publish and convert",
        examples=(
            "tritonctl import ./model_repository --dry-run",
            "tritonctl import ./model_repository",
            "tritonctl import s3://models/repository",
            "tritonctl import triton://127.0.0.1:8000 ./model_repository",
        ),
    )(import_)


def import_(
    session: Session,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Model repository: a folder, s3://BUCKET/PREFIX, or triton://HOST:PORT for the models that a running "
            "Triton has loaded (the port of its HTTP service).",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="With triton://: its model repository on this machine.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the configurations; model files are not read, and nothing is published."),
    ] = False,
    golden: Annotated[
        bool, typer.Option("--golden/--no-golden", help="Run ONNX models and record their outputs as golden samples.")
    ] = True,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", help="With s3://: URL of the S3 endpoint. Default: that of the settings of the store, or AWS."
        ),
    ] = None,
    label: LabelOption = None,
    reason: ReasonOption = "",
) -> None:
    """Publish every version of every model in a Triton model repository, with its configuration.

    A version keeps the number of its folder if the registry can give it. A version whose files are published already is
    left unchanged, so an import can be repeated. Exit code 7 if a version was refused.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.workflows.importing import as_json, import_repository
    from controlplane.cli.workflows.push import PublishOptions, key_values

    out = session.out()
    options = PublishOptions(golden=golden, labels=key_values(label or [], "--label"), reason=reason)
    with session.client() as client, _models(session, source, folder, endpoint) as models:
        rows = import_repository(client, models, source, options, session.folder(), out, dry_run=dry_run)
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


def _models(
    session: Session, source: str, folder: Path | None, endpoint: str | None
) -> "AbstractContextManager[Sequence[ModelSource]]":
    """Provide the models of a source.

    Raises:
        typer.BadParameter: An argument belongs to another kind of source.
    """
    from controlplane.cli.workflows.import_sources import bucket_models, loaded_models, local_models

    scheme = source.partition("://")[0] if "://" in source else ""
    if scheme not in {"", "s3", "triton"}:
        raise typer.BadParameter(f"{scheme}:// is not supported; use a folder, s3:// or triton://", param_hint="SOURCE")
    if (folder is not None) != (scheme == "triton"):
        raise typer.BadParameter("give it with triton://HOST:PORT, and only then", param_hint="DIR")
    if endpoint is not None and scheme != "s3":
        raise typer.BadParameter("give it only with s3://", param_hint="--endpoint")
    if scheme == "s3":
        return bucket_models(session.settings(store=source, endpoint=endpoint).store, session.folder())
    if scheme == "triton" and folder is not None:
        return nullcontext(loaded_models(source, folder))
    return nullcontext(local_models(Path(source)))
