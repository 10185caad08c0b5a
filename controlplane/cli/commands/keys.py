"""API keys and their permissions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli.commands.offline import EndpointOption, OfflineOption, StoreOption
from controlplane.cli.session import Session, command

PANEL = "Operate"

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Id or name of the key.")]


def register(main: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "create",
        panel=PANEL,
        examples=(
            "tritonctl keys create root --scope admin --offline",
            "tritonctl keys create ci --scope deploy --model 'team-a-*' --expires 90d --out ci.key",
            "tritonctl keys create app --scope infer --model resnet --rate 200 --burst 50",
        ),
    )(create)
    command(app, "list", panel=PANEL, examples=("tritonctl keys list", "tritonctl keys list -o name"))(list_keys)
    command(app, "show", panel=PANEL, examples=("tritonctl keys show ci", "tritonctl keys show ci -o json"))(show)
    command(
        app,
        "revoke",
        panel=PANEL,
        examples=("tritonctl keys revoke ci", "tritonctl keys revoke ci --data-dir ./models"),
    )(revoke)
    main.add_typer(app, name="keys", rich_help_panel=PANEL)


def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="Owner of the key, recorded in the history of changes.")],
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            "-s",
            help="Permission: read, infer, deploy (includes read), code (includes deploy), audit or admin (all). "
            "Repeatable.",
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="Pattern of the permitted models, such as 'team-a-*'. Repeatable. Default: all models."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="Lifetime, for example 90d or 12h. Default: until it is revoked.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", min=0.001, help="Requests per second on each instance. Default: that of the control plane."
        ),
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(
            "--burst",
            min=1,
            help="Requests above the rate that are accepted at once. Default: that of the control plane.",
        ),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Write the secret to this new file, readable only by you, instead of printing it."),
    ] = None,
    offline: OfflineOption = False,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
) -> None:
    """Create an API key. Its secret is shown only once; the control plane keeps a hash of it.

    The first key must have the scope admin. As soon as it exists, every request needs a key.
    """
    from controlplane.cli.workflows.keys import api_keys, end_of, keep_secret

    out = session.out()
    body: dict[str, Any] = {"name": name, "scopes": scope, "models": model or []}
    if expires is not None:
        body["expires_at"] = end_of(expires).isoformat()
    body |= {key: value for key, value in (("rate_per_second", rate), ("burst", burst)) if value is not None}
    with keep_secret(out_file) as keep, api_keys(session, offline=offline, store=store, endpoint=endpoint) as keys:
        created = keys.create(body)
        secret = created["secret"]
        keep(secret)
    shown = created["key"]
    out.result({**created, "secret": None if out_file else secret})
    out.line(f"created the key {shown['id']} ({shown['name']}: {', '.join(shown['scopes'])})", style="green")
    if out_file:
        out.line(f"its secret is in {out_file}; use it with --api-key-file {out_file}")
    else:
        out.line(f"its secret, which is not shown again: {secret}")


def list_keys(
    session: Session, offline: OfflineOption = False, store: StoreOption = None, endpoint: EndpointOption = None
) -> None:
    """List the API keys, including revoked and expired ones."""
    from controlplane.cli.workflows.keys import api_keys, when

    out = session.out()
    with api_keys(session, offline=offline, store=store, endpoint=endpoint) as keys:
        found = keys.list()
    out.result(found)
    out.table(
        ("id", "name", "scopes", "models", "state", "expires", "created", "by"),
        (
            (
                key["id"],
                key["name"],
                ", ".join(key["scopes"]),
                ", ".join(key["models"]) or "all",
                key["state"],
                when(key["expires_at"]),
                when(key["created_at"]),
                key["created_by"],
            )
            for key in found
        ),
        empty="there are no API keys",
    )


def show(
    session: Session,
    key: KeyArgument,
    offline: OfflineOption = False,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
) -> None:
    """Show one API key, without its secret."""
    from controlplane.cli.workflows.keys import api_keys, when

    out = session.out()
    with api_keys(session, offline=offline, store=store, endpoint=endpoint) as keys:
        found = keys.get(key)
    out.result(found)
    rate, burst = found["rate_per_second"], found["burst"]
    out.facts(
        (
            ("id", found["id"]),
            ("name", found["name"]),
            ("scopes", ", ".join(found["scopes"])),
            ("models", ", ".join(found["models"]) or "all"),
            ("state", found["state"]),
            ("created", f"{when(found['created_at'])} by {found['created_by']}"),
            ("expires", when(found["expires_at"])),
            ("revoked", f"{when(found['revoked_at'])} by {found['revoked_by']}" if found["revoked_at"] else ""),
            ("rate", f"{rate:g} per second" if rate else ""),
            ("burst", burst or ""),
        )
    )


def revoke(
    session: Session,
    key: KeyArgument,
    offline: OfflineOption = False,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
) -> None:
    """Revoke an API key permanently. Every instance refuses it within seconds."""
    from controlplane.cli.workflows.keys import api_keys

    out = session.out()
    with api_keys(session, offline=offline, store=store, endpoint=endpoint) as keys:
        revoked = keys.revoke(key)
    out.result(revoked)
    out.line(f"revoked the key {revoked['id']} ({revoked['name']})")
