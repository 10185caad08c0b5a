"""Search for the best settings of a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from controlplane.cli.commands.deployments import PANEL, DeployedArgument
from controlplane.cli.commands.push import ReasonOption
from controlplane.cli.session import Session, command

_GROUPS = {
    "Goal": (
        "objective",
        "max_p99",
        "min_throughput",
        "memory_limit",
    ),
    "Measurement": (
        "clients",
        "rows",
        "server",
        "window",
        "time_limit",
        "settings",
    ),
    "Values to try": (
        "instances",
        "max_batch_size",
        "queue_delay",
        "preferred",
        "threads",
    ),
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "tune",
        panel=PANEL,
        examples=(
            "tritonctl tune resnet --plot frontier.svg",
            "tritonctl tune resnet --max-p99-ms 50 --apply",
            "tritonctl tune resnet --objective p99 --min-throughput 200 --clients 8 --time-limit 120",
            "tritonctl tune resnet --instances 1 --instances 2 --queue-delay-us 0 --queue-delay-us 500",
        ),
        groups=_GROUPS,
    )(tune)


def tune(
    session: Session,
    name: DeployedArgument,
    objective: Annotated[
        Literal["throughput", "p99"],
        typer.Option("--objective", help="What to optimise: highest throughput or lowest p99 latency."),
    ] = "throughput",
    max_p99: Annotated[
        float | None,
        typer.Option("--max-p99-ms", min=0.001, help="Accept only settings with at most this p99 latency (ms)."),
    ] = None,
    min_throughput: Annotated[
        float | None,
        typer.Option(
            "--min-throughput", min=0.001, help="Accept only settings with at least this many requests per second."
        ),
    ] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(
            "--clients",
            min=1,
            max=256,
            help="Number of concurrent clients to measure with. Repeatable. Default: 1, 4, 16.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=1, help="Rows (batch size) of each request. Default: those of the golden samples."),
    ] = None,
    settings: Annotated[
        int, typer.Option("--settings", min=1, max=200, help="Maximum number of settings to try.")
    ] = 16,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=1, help="Maximum seconds for the whole tuning.")
    ] = 300.0,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help="Maximum memory of the copy, for example 2GiB. Default: half of the free memory.",
        ),
    ] = None,
    window: Annotated[
        float, typer.Option("--window", min=0.05, max=60, help="Seconds of each measurement in the first round.")
    ] = 1.0,
    instances: Annotated[
        list[int] | None,
        typer.Option(
            "--instances",
            min=1,
            help="Instance count to try. Repeatable. Default: 1, 2, half of the cores and all cores; on a GPU 1, 2, 4.",
        ),
    ] = None,
    max_batch_size: Annotated[
        list[int] | None,
        typer.Option(
            "--max-batch-size",
            min=1,
            help="Maximum batch size to try. Repeatable. Default: the present one, twice and four times that.",
        ),
    ] = None,
    queue_delay: Annotated[
        list[int] | None,
        typer.Option(
            "--queue-delay-us",
            min=-1,
            help="Queue delay of dynamic batching to try, in microseconds; -1: no dynamic batching. Repeatable. "
            "Default: -1, 0, 500 and 2000.",
        ),
    ] = None,
    preferred: Annotated[
        list[int] | None,
        typer.Option(
            "--preferred",
            min=1,
            help="Preferred batch size to try. Repeatable. Default: none, and the maximum batch size.",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads",
            min=0,
            help="Threads per instance to try; 0: the backend's default. Repeatable. Default: 0, 1 and all cores.",
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option("--server", help="Server to measure on. Default: the first server.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Write a plot of the measurements to this file.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Deploy the model with the best setting, if one was found.")
    ] = False,
    reason: ReasonOption = "",
) -> None:
    """Find the best settings of a deployed model by measuring a copy of it with real requests.

    The copy runs beside the model on the same server and receives the golden samples as requests; a setting whose
    outputs differ from the recorded ones is rejected. Other load on the machine affects the measurements. Ctrl-C stops
    the tuning and removes the copy. Exit code 7 if no setting meets the objective; nothing is applied then.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.output import error_line
    from controlplane.cli.views.tuning import follow_tuning, parse_size, show_tuning
    from controlplane.errors import InvalidInputError

    if plot is not None and not plot.absolute().parent.is_dir():
        raise InvalidInputError(f"--plot {plot}: the folder {plot.absolute().parent} does not exist")
    space = {
        "instances": instances,
        "max_batch_sizes": max_batch_size,
        "queue_delays_microseconds": [None if value < 0 else value for value in queue_delay] if queue_delay else None,
        "preferred_batch_sizes": preferred,
        "threads": [value or None for value in threads] if threads else None,
    }
    body = {
        "model": name,
        "objective": objective,
        "max_p99_seconds": None if max_p99 is None else max_p99 / 1000,
        "min_throughput": min_throughput,
        "clients": clients or [1, 4, 16],
        "rows": rows,
        "space": {key: value for key, value in space.items() if value},
        "max_settings": settings,
        "window_seconds": window,
        "time_limit_seconds": time_limit,
        "memory_limit_bytes": None if memory_limit is None else parse_size(memory_limit),
        "server": server,
        "apply": apply,
        "reason": reason,
    }
    out = session.out()
    with session.client() as client:
        result = follow_tuning(client, out, body)
    if plot is not None:
        plot.write_text(result["svg"], encoding="utf-8")
    out.result(result)
    show_tuning(out, result)
    if plot is not None:
        out.note(f"the plot is in {plot}")
    if not result["met"]:
        # Not an error document beside the result: with `-o json`, stdout has one document.
        error_line(result["message"])
        raise typer.Exit(ExitCode.FAILED)
