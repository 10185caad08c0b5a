"""The page in a browser."""

import sys
from typing import Annotated

import typer

from controlplane.cli.session import Session, command

PANEL = "Operate"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(app, "ui", panel=PANEL, examples=("tritonctl ui", "tritonctl ui --no-browser -o json | jq -r .url"))(ui)


def ui(
    session: Session,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser, or only print its address.")
    ] = True,
) -> None:
    """Open the control plane's page, signed in with this command's API key.

    The address contains a code that works once, within a minute; the key itself is not in it.
    """
    out = session.out()
    with session.client() as client:
        address = f"{client.url}/ui/"
        if client.get("/v1/session")["required"]:
            address += f"#/sign-in/{client.post('/v1/session/codes')['code']}"
    out.result({"url": address})
    out.line(address)
    if browser and sys.stdout.isatty():
        import webbrowser

        webbrowser.open(address)
