"""Check of the whole installation."""

from typing import Annotated, Any

import typer

from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "doctor", panel="Look after it", examples=("tritonctl doctor", "tritonctl doctor -o json"))(doctor)


def doctor(
    session: Session,
    store: Annotated[
        str | None, typer.Option("--store", help="Check this store rather than the one of the settings.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="S3 endpoint other than AWS.")] = None,
) -> None:
    """Check that everything is as it must be, and say how to mend what is not.

    Looks at Python, the packages, the C library, Triton's binary, the ports, the data folder, the store, and the
    control plane that runs, if one does. Exit code 7 when something fails; warnings do not count.
    """
    from controlplane.cli.workflows.doctor import examine
    from controlplane.client.errors import OperationFailedError
    from controlplane.settings import Settings

    given = {"url": store, "endpoint_url": endpoint}
    chosen: dict[str, Any] = {
        "data_dir": session.folder(),
        "store": {key: value for key, value in given.items() if value is not None},
    }
    settings = Settings(**chosen)
    out = session.out()
    findings = list(examine(session, settings))
    out.result([finding.as_json() for finding in findings])
    out.table(("", "check", "found"), ((one.status, one.name, one.message) for one in findings))
    mend = [one for one in findings if one.fix]
    if mend and not out.json_wanted:
        out.line()
        for one in mend:
            out.line(f"{one.name}: {one.fix}", style="yellow" if one.status == "warn" else "red")
    failed = [one.name for one in findings if one.status == "fail"]
    if failed:
        raise OperationFailedError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")
