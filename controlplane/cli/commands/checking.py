"""Check and repair of the store."""

from typing import Annotated, Any

import typer

from controlplane.cli.commands.offline import EndpointOption, OfflineOption, StoreOption
from controlplane.cli.session import Session, command

PANEL = "Operate"


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
        bool, typer.Option("--deep", help="Read every blob and compare it with its digest; reads the whole store.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired without loss of data.")] = False,
    restore: Annotated[
        list[str] | None,
        typer.Option(
            "--restore",
            metavar="CHAIN",
            help="For a chain whose newest revisions were lost (models/NAME, deployments/NAME, keys or cordons): "
            "commit the newest lost revision again. Repeatable.",
        ),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            metavar="CHAIN",
            help="For a chain whose newest revisions were lost: accept the present content of the store. Repeatable.",
        ),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Reason for a restore, recorded in the history.")] = "",
    offline: OfflineOption = False,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
) -> None:
    """Check all chains, blobs and references in the store.

    The check changes nothing without --repair, --restore or --accept. Exit code 7 if an error remains; warnings do not
    count.
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
