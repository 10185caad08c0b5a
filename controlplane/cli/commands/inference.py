"""Inference requests to a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from controlplane.cli.commands.deployments import DeployedArgument
from controlplane.cli.session import Session, command

Way = Literal["auto", "gateway", "api"]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "infer",
        panel="Deploy",
        examples=(
            "tritonctl infer resnet --sample",
            "tritonctl infer net --input '{\"x\": \\[[0.1, 0.2]]}'",
            "tritonctl infer resnet --input request.npz --save answer.npz",
            "echo '{\"x\": \\[[0.1, 0.2]]}' | tritonctl infer net --input - -o json",
        ),
    )(infer)


def infer(
    session: Session,
    name: DeployedArgument,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", metavar="JSON|FILE", help="Inputs: JSON, a file (.npz or JSON; @FILE too), or - for stdin."
        ),
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Send the version's first golden sample.")] = False,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="A loaded version. Default: the active version.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.npz", help="Write the outputs to this file.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, max=600, help="Maximum seconds for the request.")
    ] = 30.0,
    via: Annotated[
        Way,
        typer.Option(
            "--via",
            help="Path of the request. gateway: the gateway; api: the API's own route; auto: the gateway if it is "
            "reachable and can answer, otherwise the API.",
        ),
    ] = "auto",
) -> None:
    """Send one inference request to a deployed model and show the response.

    The gateway loads the model first if necessary. Programs can use any client of the v2 inference protocol;
    `tritonctl gateway` shows the addresses.
    """
    from controlplane.cli.output import span
    from controlplane.cli.workflows.infer import Via, ask, prepare
    from controlplane.cli.workflows.tensors import preview, save_npz

    if (input_ is None) == (not sample):
        raise typer.BadParameter("give either --input FILE or --sample")
    out = session.out()
    with session.client() as client:
        request = prepare(client, name, input_, version=version, timeout=timeout)
        answer = ask(client, request, Via(via))
    if save is not None:
        with save.open("wb") as target:
            save_npz(target, answer["outputs"])
    out.result(answer)
    out.table(
        ("output", "type", "shape", "values"),
        (
            (tensor["name"], tensor["datatype"], str(tensor["shape"]).replace(" ", ""), preview(tensor))
            for tensor in answer["outputs"]
        ),
    )
    where = f", saved to {save}" if save is not None else ""
    out.note(f"{name}:{answer['model_version']} answered in {span(answer['seconds'])}{where}")
