"""Text pipelines: a tokenizer and a model of tokens as one deployment that takes texts."""

from typing import Annotated

import typer

from controlplane.cli.commands.models import RefArgument
from controlplane.cli.commands.push import PANEL, ReasonOption
from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        "text-pipeline",
        panel=PANEL,
        examples=("tritonctl text-pipeline minilm:2 --name embed --deploy", "tritonctl text-pipeline sentiment"),
    )(text_pipeline)


def text_pipeline(
    session: Session,
    ref: RefArgument,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Name of the pipeline. Default: NAME-text.", show_default=False),
    ] = None,
    reason: ReasonOption = "",
    deploy: Annotated[
        bool,
        typer.Option("--deploy", help="Deploy the pipeline, and its members on demand, and wait until it is active."),
    ] = False,
) -> None:
    """Publish an ensemble that takes texts, for a model of tokens that keeps its tokenizer.

    The tokenizer becomes a Python model, PIPELINE-tokenizer, which needs the Python package tokenizers where Triton
    runs. The texts of the conversion are the golden samples of both.
    """
    from controlplane.cli.views.version import show_result
    from controlplane.cli.workflows.text_pipeline import deploy_pipeline, publish_pipeline

    out = session.out()
    with session.client() as client:
        made = publish_pipeline(client, ref, name, session.folder(), out, reason=reason)
        show_result(out, made.tokenizer)
        show_result(out, made.ensemble)
        document = {"model": str(made.model), "tokenizer": made.tokenizer, "ensemble": made.ensemble}
        if deploy:
            from controlplane.cli.workflows.deploy import show_ready

            deployment, seconds = deploy_pipeline(client, made, out, reason=reason)
            document["deployment"] = deployment.model_dump(mode="json")
            show_ready(out, deployment, seconds)
        out.result(document)
