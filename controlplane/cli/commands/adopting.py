"""Adoption of a model that a server runs without a deployment."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.commands.push import ReasonOption
from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "adopt",
        panel="Publish and convert",
        examples=(
            "tritonctl adopt resnet ./model_repository",
            "tritonctl adopt resnet ./model_repository -o json",
        ),
    )(adopt)


def adopt(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model that is loaded and not deployed.")],
    repository: Annotated[
        Path, typer.Argument(metavar="DIR", help="The server's model repository on this machine: its files.")
    ],
    server: Annotated[
        str | None, typer.Option("--server", help="The server. Default: the only one that has loaded the model.")
    ] = None,
    golden: Annotated[
        bool, typer.Option("--golden/--no-golden", help="Run ONNX models and record their outputs as golden samples.")
    ] = True,
    reason: ReasonOption = "",
) -> None:
    """Publish a model that another client loaded, and deploy it with its own configuration, while it answers.

    The control plane loads the version again, because only what it has loaded and proved has its configuration and its
    reservation of memory. The loaded version answers until the new one is proved.
    """
    from controlplane.cli.workflows.adopting import adopt as run
    from controlplane.cli.workflows.push import PublishOptions

    with session.client() as client:
        options = PublishOptions(golden=golden, reason=reason)
        run(client, name, repository, server, options, session.folder(), session.out())
