"""API keys and their permissions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli.session import Session, command

PANEL = "Look after it"

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help="Work on the bucket or the data folder itself; no control plane has to run."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="With --offline: the store, where it is not that of the settings.")
]
EndpointOption = Annotated[str | None, typer.Option("--endpoint", help="With --offline: S3 endpoint other than AWS.")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key's id or name.")]


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
    command(app, "list", panel=PANEL, examples=("tritonctl keys list",))(list_keys)
    command(app, "show", panel=PANEL, examples=("tritonctl keys show ci",))(show)
    command(app, "revoke", panel=PANEL, examples=("tritonctl keys revoke ci",))(revoke)
    main.add_typer(app, name="keys", rich_help_panel=PANEL)


def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="Who it is for; every history names it.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", "-s", help="read, infer, deploy (and read), code (and deploy) or admin. Repeat it."),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A pattern of the models it is for, such as 'team-a-*'. Repeat it. Default: all."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="How long it lasts: 90d, 12h. Default: until it is revoked.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="Requests per second.")] = None,
    burst: Annotated[int | None, typer.Option("--burst", min=1, help="Requests at once.")] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Write the secret into this new file, readable by its owner alone; do not show it."),
    ] = None,
    offline: OfflineOption = False,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
) -> None:
    """Make an API key. Its secret is shown this once; the control plane keeps a hash of it.

    The first key has the scope admin. Once it is there, every request needs a key.
    """
    from controlplane.cli.workflows.keys import api_keys, end_of, keep_secret

    out = session.out()
    body: dict[str, Any] = {"name": name, "scopes": scope, "models": model or []}
    if expires is not None:
        body["expires_at"] = end_of(expires).isoformat()
    body |= {key: value for key, value in (("rate_per_second", rate), ("burst", burst)) if value is not None}
    with keep_secret(out_file) as keep, api_keys(session, offline=offline, store=store, endpoint=endpoint) as keys:
        made = keys.create(body)
        secret = made["secret"]
        keep(secret)
    shown = made["key"]
    out.result({**made, "secret": None if out_file else secret})
    out.line(f"made the key {shown['id']} ({shown['name']}: {', '.join(shown['scopes'])})", style="green")
    if out_file:
        out.line(f"its secret is in {out_file}; give it to tritonctl with --api-key-file {out_file}")
    else:
        out.line(f"its secret, which is not shown again: {secret}")


def list_keys(
    session: Session, offline: OfflineOption = False, store: StoreOption = None, endpoint: EndpointOption = None
) -> None:
    """List the API keys, revoked and expired ones too."""
    from controlplane.cli.workflows.keys import api_keys, when

    out = session.out()
    with api_keys(session, offline=offline, store=store, endpoint=endpoint) as keys:
        found = keys.list()
    out.result(found)
    out.table(
        ("id", "name", "scopes", "models", "state", "expires", "made", "by"),
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
            ("made", f"{when(found['created_at'])} by {found['created_by']}"),
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
    """Revoke an API key, for good. Every instance refuses it within seconds."""
    from controlplane.cli.workflows.keys import api_keys

    out = session.out()
    with api_keys(session, offline=offline, store=store, endpoint=endpoint) as keys:
        gone = keys.revoke(key)
    out.result(gone)
    out.line(f"revoked the key {gone['id']} ({gone['name']})")
