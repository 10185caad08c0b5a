"""A demonstration that runs the real commands."""

from typing import Annotated

import typer

from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "demo", panel="Run", examples=("tritonctl demo", "tritonctl demo --keep"))(demo)


def demo(
    session: Session,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder and leave `up` running.")] = False,
) -> None:
    """Demonstrate the main commands in a temporary folder: publish, convert, deploy, infer, update, roll back.

    Each command is shown with its real output. The folder and the processes are removed at the end.
    """
    from controlplane.cli.workflows.demo import run

    run(session, keep=keep)
