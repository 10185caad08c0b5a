"""Metrics of deployments."""

from typing import Annotated

import typer

from controlplane.cli.commands.deployments import DeployedArgument
from controlplane.cli.commands.memory import PANEL
from controlplane.cli.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "metrics",
        panel=PANEL,
        examples=(
            "tritonctl metrics resnet",
            "tritonctl metrics resnet --window 1h",
            "tritonctl metrics resnet --watch",
            "tritonctl metrics resnet -o json | jq .total.latency",
        ),
    )(metrics)


def metrics(
    session: Session,
    name: DeployedArgument,
    window: Annotated[
        str,
        typer.Option("--window", metavar="TIME", help="Period up to now, for example 30s, 5m or 1h30m; at most 6h."),
    ] = "5m",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Update the display until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between two updates.")] = 1.0,
) -> None:
    """Show the metrics of a deployed model: rates, failures, latency, queue and compute time, batches, objectives.

    The curves cover the window, up to now. With `--watch` and `-o json`, each line is one JSON document.
    """
    import json
    import sys

    from controlplane.cli.views.metrics import Metrics, live, screen
    from controlplane.cli.workflows.deploy import deployment_path
    from controlplane.domain.durations import parse_duration

    parse_duration(window)  # detects an error before the first request
    out = session.out()
    with session.client() as client:

        def read() -> Metrics:
            return client.fetch(Metrics, f"{deployment_path(name)}/metrics", window=window)

        if watch:
            live(read, out, interval=interval, lines=out.json_wanted or not sys.stdout.isatty())
            return
        found = read()
    out.result(json.loads(found.model_dump_json()))
    out.show(screen(found))
