"""Labels of models, and a comparison of versions."""

from typing import Annotated

import typer

from controlplane.cli.commands.models import PANEL, ModelArgument, RefArgument
from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "label",
        panel=PANEL,
        examples=("tritonctl label resnet team=vision stage=test", "tritonctl label resnet stage-"),
    )(label)
    command(
        app,
        "compare",
        panel=PANEL,
        examples=("tritonctl compare resnet:7 resnet:8", "tritonctl compare resnet@champion resnet -o json"),
    )(compare)


def label(
    session: Session,
    name: ModelArgument,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE|KEY-]…", help="Labels to set, or with a dash to remove.", show_default=False
        ),
    ] = None,
) -> None:
    """Set or remove labels of a model; without any, show them. Lists are filtered by them: `tritonctl ps --label`."""
    from controlplane.cli.workflows.push import key_values
    from controlplane.client.http import segment
    from controlplane.client.models import Model

    given = changes or []
    removed = {text[:-1] for text in given if text.endswith("-") and "=" not in text}
    added = key_values([text for text in given if "=" in text or not text.endswith("-")], "label")
    out = session.out()
    path = f"/v1/models/{segment(name)}"
    with session.client() as client:
        model = client.fetch(Model, path)
        if given:
            kept = {key: value for key, value in model.labels.items() if key not in removed}
            client.call("PATCH", path, body={"labels": {**kept, **added}})
            model = client.fetch(Model, path)
    out.result(model)
    out.table(("label", "value"), sorted(model.labels.items()), empty=f"{name} has no labels")


def compare(
    session: Session,
    first: RefArgument,
    second: RefArgument,
) -> None:
    """Show what differs between two versions: files, signature, parity, metrics, labels."""
    from rich.text import Text

    from controlplane.cli.references import fetch_version
    from controlplane.cli.views.version import comparison

    out = session.out()
    with session.client() as client:
        details = [fetch_version(client, one) for one in (first, second)]
    names = [f"{one.model}:{one.entry.number}" for one in details]
    rows = comparison(*(one.manifest for one in details))
    out.result(
        {
            "versions": names,
            "differences": [{"what": what, "first": one, "second": two} for what, one, two in rows if one != two],
        },
        names=names,
    )
    out.table(
        ("", *names),
        ((what, one, Text(two, style="" if one == two else "yellow")) for what, one, two in rows),
    )
