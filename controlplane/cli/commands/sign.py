"""Signing and verification of versions."""

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.commands.models import RefArgument
from controlplane.cli.session import Session, command

PANEL = "Publish and convert"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "sign",
        panel=PANEL,
        examples=(
            "tritonctl sign resnet:7 --key release.pem",
            "tritonctl sign resnet@champion --key release.pem -o json",
        ),
    )(sign)
    command(
        app,
        "verify",
        panel=PANEL,
        examples=("tritonctl verify resnet:7", "tritonctl verify resnet@champion --key release.pub"),
    )(verify)


def sign(
    session: Session,
    ref: RefArgument,
    key: Annotated[
        Path,
        typer.Option("--key", help="Private key (PEM); set TRITONCTL_SIGN_KEY_PASSWORD if it has a password."),
    ],
) -> None:
    """Sign a published version, for example the result of a conversion, or a version that another person published.

    The command signs the digests that the control plane reports. To verify the files first, use `tritonctl pull`.
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
        typer.Option("--key", help="Public key (PEM) to trust. Repeatable. Default: the keys of the control plane."),
    ] = None,
) -> None:
    """Verify that a version, and its copies in Triton's model repositories, match a signature by a trusted key.

    Exit code 6 if they do not.
    """
    from controlplane.cli.references import fetch_version
    from controlplane.cli.workflows.sign import verify_version

    out = session.out()
    with session.client() as client:
        verdict = verify_version(client, fetch_version(client, ref), key or [])
    out.result(verdict)
    out.line(f"{verdict['reference']} is verified: signed with the key {verdict['key'][:16]}", style="green")
