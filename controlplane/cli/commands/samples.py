"""Golden samples that are recorded after the publication."""

from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli import completion
from controlplane.cli.commands.deployments import PANEL, DeployedArgument
from controlplane.cli.session import Session, command

if TYPE_CHECKING:
    from controlplane.cli.output import Output
    from controlplane.client.models import RecordedSamples

app = typer.Typer(help="Record golden samples of published versions, list and remove them.", no_args_is_help=True)

ReferenceArgument = Annotated[
    str, typer.Argument(help="Version: name, name:7 or name@alias.", autocompletion=completion.models)
]


def register(main: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "list",
        panel=PANEL,
        examples=("tritonctl samples list tokenizer", "tritonctl samples list tokenizer:3 -o json"),
    )(list_samples)
    command(
        app,
        "add",
        panel=PANEL,
        examples=(
            "tritonctl samples add tokenizer --inputs request.npz --inputs other.json",
            "tritonctl samples add tokenizer:3 --inputs request.npz -o json",
        ),
    )(add)
    command(
        app,
        "record",
        panel=PANEL,
        examples=(
            "tritonctl samples record tokenizer --count 20 --seconds 120",
            "tritonctl samples record tokenizer -o json",
        ),
    )(record)
    command(
        app,
        "rm",
        panel=PANEL,
        examples=("tritonctl samples rm tokenizer:3 3f2c91ab", "tritonctl samples rm tokenizer:3 3f2c91ab -o json"),
    )(remove)
    main.add_typer(app, name="samples", rich_help_panel=PANEL)


def _show(out: "Output", found: "RecordedSamples") -> None:
    """Print what was recorded."""
    out.result(found)
    for reason in found.skipped:
        out.note(f"left out: {reason}", style="yellow")
    plural = "s" * (found.record.count != 1)
    out.note(
        f"recorded {found.record.count} golden sample{plural} of {found.model}:{found.version} ({found.record.id})"
    )


def list_samples(session: Session, reference: ReferenceArgument) -> None:
    """List the golden samples of a version: those of its manifest, and those that were recorded later."""
    from controlplane.cli.output import ago
    from controlplane.cli.references import fetch_version, version_path
    from controlplane.client.models import RecordedSampleList
    from controlplane.domain.names import Reference

    out = session.out()
    with session.client() as client:
        detail = fetch_version(client, reference)
        exact = Reference(detail.model, version=detail.entry.number)
        found = client.fetch(RecordedSampleList, f"{version_path(exact)}/recorded-samples")
    golden, entry = detail.manifest.golden, detail.entry
    published = (
        [("-", golden.count, "publication", "-", "-", ago(entry.published_at), entry.published_by)] if golden else []
    )
    out.result(found)
    out.table(
        ("id", "samples", "source", "server", "triton", "recorded", "by"),
        [
            *published,
            *(
                (one.id, one.count, one.source.value, one.server, one.triton_version or "-", ago(one.at), one.actor)
                for one in found.items
            ),
        ],
    )
    if not golden and not found.items:
        out.note(f"{exact} has no golden samples; a deployment of it proves only that it answers")


def add(
    session: Session,
    name: DeployedArgument,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--inputs", "-i", metavar="FILE", help="File with the inputs of one sample (.npz or JSON). Repeatable."
        ),
    ],
) -> None:
    """Send inputs to the deployed version and record its answers as golden samples.

    Later proofs of this version compare with them. The answers are those of the deployed version: whether they are
    right is for you to check. Inputs that it answers differently each time are left out.
    """
    from controlplane.cli.references import fetch_version
    from controlplane.cli.workflows.infer import deployed
    from controlplane.cli.workflows.tensors import read_tensors
    from controlplane.client.http import segment
    from controlplane.client.models import RecordedSamples

    out = session.out()
    with session.client() as client:
        signature = fetch_version(client, deployed(client, name)).manifest.signature
        body = {"samples": [{"inputs": read_tensors(file, signature)} for file in inputs]}
        answer = client.post(f"/v1/deployments/{segment(name)}/samples", body, read_seconds=600)
    _show(out, RecordedSamples.model_validate(answer))


def record(
    session: Session,
    name: DeployedArgument,
    count: Annotated[int, typer.Option("--count", min=1, max=64, help="Maximum number of different requests.")] = 10,
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=600, help="Maximum time in seconds.")] = 60.0,
) -> None:
    """Record the next requests of clients to a deployed model as golden samples.

    The inputs of clients are kept in the store, so this needs a key with the scope admin. Only requests that pass the
    gateway of the instance that the command talks to are seen, and only requests of at most 1 MiB.
    """
    from controlplane.client.http import segment
    from controlplane.client.models import RecordedSamples

    out = session.out()
    out.note(f"recording up to {count} requests to {name} for at most {seconds:g} s")
    with session.client() as client:
        answer = client.post(
            f"/v1/deployments/{segment(name)}/samples/record",
            {"count": count, "seconds": seconds},
            read_seconds=seconds + 300,
        )
    _show(out, RecordedSamples.model_validate(answer))


def remove(
    session: Session,
    reference: ReferenceArgument,
    record_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the record, as `samples list` shows it.")],
) -> None:
    """Remove recorded golden samples: later proofs do not compare with them.

    Those of the first deployment are recorded again when the version is loaded without any other golden samples.
    """
    from controlplane.cli.references import version_path
    from controlplane.client.http import segment
    from controlplane.domain.names import Reference

    out = session.out()
    with session.client() as client:
        client.call("DELETE", f"{version_path(Reference.parse(reference))}/recorded-samples/{segment(record_id)}")
    out.result({"reference": reference, "removed": record_id})
    out.note(f"removed the recorded samples {record_id} of {reference}")
