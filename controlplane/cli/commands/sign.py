"""Signing and verification of versions."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.commands.models import RefArgument
from controlplane.cli.session import Session, command

PANEL = "Publish and convert"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(app, "sign", panel=PANEL, examples=("tritonctl sign resnet:7 --key release.pem",))(sign)
    command(
        app,
        "verify",
        panel=PANEL,
        examples=("tritonctl verify resnet:7", "tritonctl verify resnet@champion --key release.pub"),
    )(verify)


def sign(
    session: Session,
    ref: RefArgument,
    key: Annotated[Path, typer.Option("--key", help="Private key (PEM). Its password: TRITONCTL_SIGN_KEY_PASSWORD.")],
) -> None:
    """Sign a version that is published: one that a conversion made, or that somebody else has to vouch for.

    What is signed are the digests that the control plane tells of; `tritonctl pull` and look, if you do not trust it.
    """
    from controlplane.cli.references import fetch_version
    from controlplane.cli.workflows.sign import sign_version

    out = session.out()
    with session.client() as client:
        signed = sign_version(client, fetch_version(client, ref), key)
    out.result(signed)
    out.line(f"signed {signed['reference']} with the key {signed['key'][:16]}")


def verify(
    session: Session,
    ref: RefArgument,
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", help="A public key (PEM) to trust. Repeat it. Default: those of the control plane."),
    ] = None,
) -> None:
    """Say whether a version, also where it is staged for Triton, is as a trusted key signed it. Exit code 6 if not."""
    from controlplane.cli.references import fetch_version
    from controlplane.cli.workflows.sign import verify_version

    out = session.out()
    with session.client() as client:
        verdict = verify_version(client, fetch_version(client, ref), key or [])
    out.result(verdict)
    out.line(f"{verdict['reference']} is as the key {verdict['key'][:16]} signed it", style="green")
