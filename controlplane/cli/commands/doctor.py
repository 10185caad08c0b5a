"""Check of the whole installation."""

from typing import Annotated

import typer

from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "doctor", panel="Operate", examples=("tritonctl doctor", "tritonctl doctor -o json"))(doctor)


def doctor(
    session: Session,
    store: Annotated[
        str | None, typer.Option("--store", help="URL of the store to check. Default: that of the settings.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="URL of the S3 endpoint. Default: that of the settings, or AWS.")
    ] = None,
) -> None:
    """Check the installation and suggest fixes.

    Checks Python, the packages, the C library, Triton's binary, the ports, the data folder, the store and, if one is
    running, the control plane. Exit code 7 if a check fails; warnings do not count.
    """
    from controlplane.cli.workflows.doctor import examine
    from controlplane.client.errors import OperationFailedError

    out = session.out()
    findings = list(examine(session, session.settings(store=store, endpoint=endpoint)))
    out.result([finding.as_json() for finding in findings])
    out.table(("", "check", "result"), ((one.status, one.name, one.message) for one in findings))
    fixable = [one for one in findings if one.fix]
    if fixable and not out.json_wanted:
        out.line()
        for one in fixable:
            out.line(f"{one.name}: {one.fix}", style="yellow" if one.status == "warn" else "red")
    failed = [one.name for one in findings if one.status == "fail"]
    if failed:
        raise OperationFailedError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")
