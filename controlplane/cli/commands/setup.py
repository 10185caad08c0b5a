"""Installation of the embedded Triton."""

import typer

from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "setup", panel="Run", examples=("tritonctl setup", "tritonctl setup -o json"))(setup)


def setup(session: Session) -> None:
    """Install the embedded Triton ahead of the first `tritonctl up`, which otherwise does it.

    Triton, and the NumPy that its Python backend needs, are installed with pip into a folder of their own: in this
    Python's environment, or in the user's cache if that is not writable. Use it in a container image, or before the
    machine loses its network.
    """
    from controlplane.cli.workflows.setup import run

    run(session)
