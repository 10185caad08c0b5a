"""Check and repair of the store."""

from typing import Annotated, Any

import typer

from controlplane.cli.session import Session, command

PANEL = "Look after it"


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        "fsck",
        panel=PANEL,
        examples=(
            "tritonctl fsck",
            "tritonctl fsck --deep --repair",
            "tritonctl fsck --restore models/resnet --reason 'the replica lagged'",
            "tritonctl fsck --offline --store s3://models/prod",
        ),
    )(fsck)


def fsck(
    session: Session,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every blob and compare it with its digest. Takes long.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what can be repaired without losing anything.")
    ] = False,
    restore: Annotated[
        list[str] | None,
        typer.Option(
            "--restore",
            metavar="CHAIN",
            help="For a chain that went backwards: commit the newest lost revision. models/NAME, deployments/NAME or "
            "keys. Repeat it.",
        ),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", metavar="CHAIN", help="The other decision: what is in the store counts. Repeat it."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the history.")] = "",
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Work on the store itself; no control plane has to run."),
    ] = False,
    store: Annotated[
        str | None, typer.Option("--store", help="With --offline: the store, where it is not that of the settings.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="With --offline: S3 endpoint other than AWS.")
    ] = None,
) -> None:
    """Check every chain, blob and reference of the store.

    Changes nothing without --repair, --restore or --accept. Exit code 7 where an error is left; warnings do not count.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.workflows.fsck import check, show

    request: dict[str, Any] = {
        "deep": deep,
        "repair": repair,
        "restore": restore or [],
        "accept": accept or [],
        "reason": reason,
    }
    out = session.out()
    report = check(session, request, offline=offline, store=store, endpoint=endpoint)
    out.result(report)
    show(out, report)
    left = [one for one in report["findings"] if one["severity"] == "error" and not one["repaired"]]
    if left:
        # Not an exception: with `-o json` the report is the only document.
        out.note(f"the store has {len(left)} error{'s' if len(left) > 1 else ''}", style="red")
        raise typer.Exit(ExitCode.FAILED)
