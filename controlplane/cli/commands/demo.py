"""A demonstration that runs the real commands."""

from typing import Annotated

import typer

from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "demo", panel="Run it", examples=("tritonctl demo",))(demo)


def demo(
    session: Session,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder and leave `up` running.")] = False,
) -> None:
    """Play the whole story in a temporary folder: publish, convert, deploy, infer, forward, back.

    Each command is shown as one would type it, with its real output. Nothing is left behind.
    """
    from controlplane.cli.workflows.demo import run

    run(session, keep=keep)
