"""The contents of the registry: models, versions, aliases, history."""

from typing import Annotated, Any

import typer

from controlplane.cli import completion
from controlplane.cli.session import Session, command

PANEL = "Registry"

ModelArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a model.", autocompletion=completion.models)
]
RefArgument = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="Reference to a version: name (newest), name:7 or name@alias.",
        autocompletion=completion.models,
    ),
]


TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="Whether it loads there: embedded, the release of an image such as 26.08, or a server. Repeatable.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(app, "models", panel=PANEL, examples=("tritonctl models", "tritonctl models -o name"), watch=True)(models)
    command(
        app,
        "versions",
        panel=PANEL,
        examples=("tritonctl versions resnet", "tritonctl versions resnet -o wide"),
        watch=True,
    )(versions)
    command(app, "show", panel=PANEL, examples=("tritonctl show resnet:7", "tritonctl show resnet --target 26.08"))(
        show
    )
    command(app, "report", panel=PANEL, examples=("tritonctl report resnet", "tritonctl report resnet:7 -o json"))(
        report
    )
    command(
        app,
        "alias",
        panel=PANEL,
        examples=("tritonctl alias resnet@champion 7", "tritonctl alias resnet@champion --remove"),
    )(alias)
    command(app, "rm", panel=PANEL, examples=("tritonctl rm resnet:3", "tritonctl rm resnet --yes"))(rm)
    command(app, "history", panel=PANEL, examples=("tritonctl history resnet", "tritonctl history resnet -n 5"))(
        history
    )


def models(session: Session) -> None:
    """List the models."""
    from controlplane.cli.output import ago
    from controlplane.client.models import Model

    out = session.out()
    with session.client() as client:
        found = [client.read(Model, item) for item in client.items("/v1/models")]
    out.result(found)
    out.table(
        ("name", "versions", "newest", "format", "servable", "aliases", "published"),
        (
            (
                model.name,
                len(live),
                live[-1].number if live else None,
                live[-1].format if live else None,
                ("yes" if live[-1].servable else "no") if live else None,
                _aliases(model.aliases),
                ago(live[-1].published_at) if live else None,
            )
            for model in found
            for live in [[version for version in model.versions if not version.deleted]]
        ),
        empty="no models yet; publish one with `tritonctl push PATH`",
        wide=("servable",),
    )


def versions(session: Session, name: ModelArgument) -> None:
    """List the versions of a model."""
    from controlplane.cli.output import ago, size
    from controlplane.client.http import segment
    from controlplane.client.models import Model, Version

    out = session.out()
    with session.client() as client:
        model = client.fetch(Model, f"/v1/models/{segment(name)}")
        found = [client.read(Version, item) for item in client.items(f"/v1/models/{segment(name)}/versions")]
    out.result(found, names=[f"{name}:{version.number}" for version in found])
    by_number: dict[int, list[str]] = {}
    for alias_name, number in model.aliases.items():
        by_number.setdefault(number, []).append(alias_name)
    out.table(
        ("version", "format", "servable", "size", "aliases", "published", "by"),
        (
            (
                version.number,
                version.format,
                "yes" if version.servable else "no",
                size(version.size_bytes),
                ", ".join(sorted(by_number.get(version.number, ()))),
                ago(version.published_at),
                version.published_by,
            )
            for version in sorted(found, key=lambda entry: entry.number, reverse=True)
        ),
        empty=f"{name} has no versions",
        wide=("by",),
    )


def show(session: Session, ref: RefArgument, target: TargetOption = None) -> None:
    """Show a version: files, signature, origin, aliases, measured memory, and the servers on which it loads.

    For a pipeline, the graph of its members is drawn, with the versions that its deployment pins.
    """
    from controlplane.cli.references import fetch_version, version_path
    from controlplane.cli.views.version import describe, show_footprints, show_graph, show_portability
    from controlplane.cli.workflows.deploy import present_deployment
    from controlplane.client.models import VersionFootprint
    from controlplane.domain.names import Reference
    from controlplane.domain.portability import TargetReport

    out = session.out()
    with session.client() as client:
        detail = fetch_version(client, ref)
        path = version_path(Reference(detail.model, version=detail.entry.number))
        footprints = [client.read(VersionFootprint, item) for item in client.get(f"{path}/footprints")["items"]]
        loads = client.get(f"{path}/portability", target=target)["items"]
        targets = [client.read(TargetReport, item) for item in loads]
        deployment = present_deployment(client, detail.model) if detail.manifest.members else None
    out.result(
        {
            **detail.model_dump(mode="json"),
            "footprints": [one.model_dump(mode="json") for one in footprints],
            "portability": loads,
        }
    )
    describe(out, detail)
    show_graph(out, detail, deployment)
    show_footprints(out, footprints)
    show_portability(out, targets)


def report(
    session: Session,
    ref: RefArgument,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100, help="Maximum number of reports; the newest are shown.")
    ] = 10,
) -> None:
    """Show the qualification reports of a version, which are created each time it is deployed to a server.

    A report covers the artifact, Triton's configuration, the answers to the golden samples, and the speed and memory
    compared with the previous version. Exit code 7 if the newest report has a failed check.
    """
    from controlplane.cli.references import fetch_version, version_path
    from controlplane.cli.views.report import show_reports
    from controlplane.client.errors import OperationFailedError
    from controlplane.domain.names import Reference
    from controlplane.domain.report import Verdict, VersionReport

    out = session.out()
    with session.client() as client:
        detail = fetch_version(client, ref)
        path = f"{version_path(Reference(detail.model, version=detail.entry.number))}/reports"
        found = [client.read(VersionReport, item) for item in client.items(path, at_most=limit, limit=limit)]
    out.result(found)
    name = f"{detail.model}:{detail.entry.number}"
    show_reports(out, name, found)
    if found and found[0].verdict is Verdict.FAILED:
        failed = "; ".join(check.message for check in found[0].checks if check.verdict is Verdict.FAILED)
        raise OperationFailedError(f"{name} did not pass: {failed}", code="not-passed")


def alias(
    session: Session,
    ref: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="Model and alias, for example resnet@champion.")],
    version: Annotated[
        int | None,
        typer.Argument(
            metavar="VERSION", help="Version to point the alias to. Default: show the alias.", show_default=False
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
) -> None:
    """Point an alias to a version, show it, or remove it.

    An alias moves atomically: a reader gets either the old or the new version. A deployment that names the alias is
    updated to the new version.
    """
    from controlplane.client.http import segment
    from controlplane.domain.names import validate_alias, validate_model_name
    from controlplane.errors import InvalidReferenceError

    model, _, name = ref.partition("@")
    validate_model_name(model)
    if not name:
        raise InvalidReferenceError(f"{ref!r} does not name an alias; use name@alias, for example {model}@champion")
    validate_alias(name)
    if remove and version is not None:
        raise typer.BadParameter("give a version or --remove, not both")
    out = session.out()
    path = f"/v1/models/{segment(model)}/aliases/{segment(name)}"
    with session.client() as client:
        if remove:
            client.delete(path)
            out.result({"model": model, "alias": name, "removed": True})
            out.line(f"{ref} is removed")
        elif version is None:
            document = client.get(path)
            out.result(document)
            out.line(f"{ref} is version {document['version']}")
        else:
            document = client.put(path, {"version": version})
            out.result(document)
            out.line(f"{ref} is version {version}")


def rm(
    session: Session,
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="Version to delete as name:7, or name for the whole model.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation when a whole model is deleted.")
    ] = False,
) -> None:
    """Delete a version or a whole model.

    The version number is not reused and the history is kept; `tritonctl gc` removes the files after the grace period.
    A version that a deployment or an alias uses cannot be deleted.
    """
    from controlplane.client.http import segment
    from controlplane.domain.names import Reference
    from controlplane.errors import InvalidReferenceError

    reference = Reference.parse(ref)
    if reference.alias is not None:
        raise InvalidReferenceError(
            f"{ref!r} names an alias; remove it with `tritonctl alias {ref} --remove`, or give the version to delete"
        )
    out = session.out()
    with session.client() as client:
        if reference.version is not None:
            client.delete(f"/v1/models/{segment(reference.model)}/versions/{reference.version}")
        else:
            if not yes and not out.json_wanted:
                typer.confirm(f"Delete {reference.model} with all its versions?", abort=True)
            client.delete(f"/v1/models/{segment(reference.model)}")
    out.result({"deleted": str(reference)})
    out.line(f"{reference} is deleted")


def history(
    session: Session,
    name: ModelArgument,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number of revisions.")] = 20,
) -> None:
    """Show the changes of a model and its deployment, newest first: who, when and why."""
    from controlplane.cli.output import ago
    from controlplane.client.errors import ClientError
    from controlplane.client.http import segment

    out = session.out()
    with session.client() as client:
        changes: list[dict[str, Any]] = [
            {"of": "model", **item}
            for item in client.items(f"/v1/models/{segment(name)}/history", at_most=limit, limit=min(limit, 200))
        ]
        try:
            changes += [
                {"of": "deployment", **item}
                for item in client.items(
                    f"/v1/deployments/{segment(name)}/revisions", at_most=limit, limit=min(limit, 200)
                )
            ]
        except ClientError as error:
            if error.status != 404:
                raise
    changes.sort(key=lambda item: str(item["at"]), reverse=True)
    changes = changes[:limit]
    out.result(changes)
    from datetime import datetime

    out.table(
        ("of", "revision", "when", "who", "what"),
        (
            (item["of"], item["number"], ago(datetime.fromisoformat(item["at"])), item["actor"], item.get("reason"))
            for item in changes
        ),
    )


def _aliases(aliases: dict[str, int]) -> str:
    return ", ".join(f"{name}={number}" for name, number in sorted(aliases.items()))
