"""Declared state: `apply`, `diff` and `get`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from controlplane.cli.commands.deployments import PANEL, TimeoutOption, WaitOption
from controlplane.cli.commands.push import ReasonOption
from controlplane.cli.session import Session, command

FileOption = Annotated[
    list[Path],
    typer.Option("--file", "-f", metavar="FILE|DIR", help="YAML or JSON documents; - reads stdin. Repeatable."),
]
SetOption = Annotated[
    str, typer.Option("--set", metavar="NAME", help="Set that the deployments belong to; --prune removes within it.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Undeploy deployments that were applied in this set and have no document now.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Undo what a rollout or a rollback decided since the document was applied.")
]
_DEFAULT_SET = "default"
_DIFFERENT = 2
_KINDS = {
    "models": "Model",
    "model": "Model",
    "aliases": "Alias",
    "alias": "Alias",
    "deployments": "Deployment",
    "deployment": "Deployment",
    "keys": "ApiKey",
    "key": "ApiKey",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "apply",
        panel=PANEL,
        examples=("tritonctl apply -f models/ --dry-run", "tritonctl apply -f models/ --prune --wait"),
    )(apply)
    command(
        app,
        "diff",
        panel=PANEL,
        examples=("tritonctl diff -f models/", "tritonctl diff -f resnet.yaml || echo differs"),
    )(diff)
    command(
        app,
        "get",
        panel=PANEL,
        examples=("tritonctl get > everything.yaml", "tritonctl get deployment resnet", "tritonctl get -o json"),
    )(get)


def apply(
    session: Session,
    file: FileOption,
    prune: PruneOption = False,
    set_: SetOption = _DEFAULT_SET,
    force: ForceOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, and show what would change.")] = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    secrets_dir: Annotated[
        Path | None,
        typer.Option("--secrets-dir", metavar="DIR", help="Write the secret of each new API key to DIR/NAME.key."),
    ] = None,
    reason: ReasonOption = "",
) -> None:
    """Make models, aliases, API keys and deployments what the documents declare.

    Applying the same documents again changes nothing. If a document is refused, nothing is changed. A deployment that
    a rollout or a rollback changed is kept until its document changes.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.progress import follow
    from controlplane.cli.workflows.declarations import new_keys, operations, read_documents, secrets_of, send, show
    from controlplane.cli.workflows.keys import keep_secrets

    out = session.out()
    body = _body(read_documents(file), set_, reason=reason, prune=prune, force=force)
    folder = None if dry_run else secrets_dir
    with session.client() as client:
        new = new_keys(send(client, body, dry_run=True)) if folder else []
        with keep_secrets(folder, new) as keep:
            result = send(client, body, dry_run=dry_run)
            for name, secret in secrets_of(result):
                keep(name, secret)
        out.result(result)
        show(out, result, all_rows=True)
        if secrets_dir is None:
            for name, secret in secrets_of(result):
                out.line(f"the secret of the key {name}, which is not shown again: {secret}")
        if dry_run and result["refused"]:
            out.note(f"{result['refused']} documents would be refused", style="red")
            raise typer.Exit(ExitCode.INVALID)
        if wait:
            for operation in operations(client, result):
                follow(client, operation, out, timeout=timeout)


def diff(
    session: Session,
    file: FileOption,
    prune: PruneOption = False,
    set_: SetOption = _DEFAULT_SET,
    force: ForceOption = False,
) -> None:
    """Show what `apply` would change.

    Exit code 0 if nothing differs, 2 if something does, and 6 if a document would be refused.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.workflows.declarations import read_documents, send, show

    out = session.out()
    documents = read_documents(file)
    with session.client() as client:
        result = send(client, _body(documents, set_, reason="", prune=prune, force=force), dry_run=True)
    out.result(result)
    show(out, result)
    if result["refused"]:
        raise typer.Exit(ExitCode.INVALID)
    if result["changed"]:
        raise typer.Exit(_DIFFERENT)


def get(
    session: Session,
    kind: Annotated[
        Literal["models", "model", "aliases", "alias", "deployments", "deployment", "keys", "key"] | None,
        typer.Argument(metavar="[KIND]", help="models, aliases, deployments or keys. Default: all but keys."),
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this object.")] = None,
) -> None:
    """Print what exists as documents that `apply` takes: YAML, or JSON with `-o json`."""
    from controlplane.cli.workflows.declarations import as_yaml, existing
    from controlplane.errors import NotFoundError

    out = session.out()
    wanted = _KINDS[kind] if kind else None
    with session.client() as client:
        found = existing(client, wanted, name)
    if name is not None and not found:
        raise NotFoundError(f"there is no {wanted} {name!r}")
    if session.output in {"json", "name"}:
        out.result(found)
    elif found:
        typer.echo(as_yaml(found), nl=False)


def _body(documents: list[dict[str, Any]], set_name: str, **options: Any) -> dict[str, Any]:
    return {"documents": documents, "set": set_name, **options}
