"""Memory: use, explanations, and holds."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from controlplane.cli.commands.deploy import (
    GpuCountOption,
    GpuMemoryOption,
    GpuOption,
    GpuProductOption,
    ModeOption,
    PriorityOption,
    UpdateStrategyOption,
    given_settings,
    gpu_settings,
)
from controlplane.cli.commands.deployments import PANEL as DEPLOY_PANEL
from controlplane.cli.commands.deployments import DeployedArgument
from controlplane.cli.commands.models import RefArgument
from controlplane.cli.session import Session, command

if TYPE_CHECKING:
    from controlplane.client.http import Client
    from controlplane.client.memory import ServerMemory

PANEL = "Operate"
ServerOption = Annotated[str | None, typer.Option("--server", "-s", help="Show only this server.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "memory",
        panel=PANEL,
        examples=("tritonctl memory", "tritonctl memory -o json | jq '.[].devices[] | {device, free_bytes}'"),
        watch=True,
    )(memory)
    command(app, "top", panel=PANEL, examples=("tritonctl top", "tritonctl top --sort rate --interval 0.5"))(top)
    command(app, "explain", panel=PANEL, examples=("tritonctl explain resnet", "tritonctl explain resnet -o json"))(why)
    command(app, "why", panel=PANEL, examples=("tritonctl why resnet", "tritonctl why resnet -o json"), hidden=True)(
        why
    )
    command(
        app,
        "hold",
        panel=DEPLOY_PANEL,
        examples=("tritonctl hold resnet -- python batch.py", "tritonctl hold resnet --ttl 10m"),
    )(hold)
    command(
        app,
        "plan",
        panel=DEPLOY_PANEL,
        examples=("tritonctl plan deploy resnet:8", "tritonctl plan load resnet"),
    )(plan)


def memory(session: Session, server: ServerOption = None) -> None:
    """Show the memory of each device as a bar: resident, loading, reserved, unaccounted and free.

    Unaccounted memory is in use on the device and attributed to no model; it reduces the available budget.
    """
    from controlplane.cli.views.memory import show_memory

    out = session.out()
    with session.client() as client:
        found = _read(client, server)
    out.result([one.model_dump(mode="json") for one in found])
    show_memory(out, found)


def top(
    session: Session,
    sort: Annotated[
        Literal["memory", "used", "rate", "name"], typer.Option("--sort", help="Order of the models.")
    ] = "memory",
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between two updates.")] = 1.0,
    server: ServerOption = None,
) -> None:
    """Show devices and models live, as `top` does for processes.

    Keys: m sorts by memory, u by last use, r by request rate, n by name; q quits. If stdin or stdout is not a terminal,
    and with `-o json`, the state is printed once.
    """
    import sys

    from controlplane.cli.views.top import live, ordered, screen

    out = session.out()
    with session.client() as client:
        if not out.json_wanted and sys.stdin.isatty() and sys.stdout.isatty():
            live(lambda: _read(client, server), order=sort, interval=interval)
            return
        found = _read(client, server)
    out.result([model.model_dump(mode="json") for _, model in ordered(found, sort)])
    out.show(screen(found, sort))


def why(session: Session, name: DeployedArgument) -> None:
    """Explain the state of a model: why it is loaded, waiting, evicted, or cannot be loaded."""
    from controlplane.cli.views.memory import show_why
    from controlplane.cli.workflows.deploy import deployment_path
    from controlplane.client.memory import Explanation

    out = session.out()
    with session.client() as client:
        found = client.fetch(Explanation, f"{deployment_path(name)}/explanation")
    out.result(found)
    show_why(out, found)


def hold(
    session: Session,
    name: DeployedArgument,
    line: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="Command to run while the model is held.", show_default=False),
    ] = None,
    ttl: Annotated[
        str,
        typer.Option(
            "--ttl",
            metavar="TIME",
            help="Time to live of the hold, for example 90s or 10m; it is renewed while this command runs.",
        ),
    ] = "5m",
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=1, max=600, help="Maximum seconds to wait for the model; then exit code 8."),
    ] = 300.0,
) -> None:
    """Load a model and keep it loaded while a command runs, or until Ctrl-C.

    A held model is not evicted. The hold is released at the end; if this process is killed, the hold expires after its
    time to live. The exit code is that of the command.
    """
    from controlplane.cli.workflows import hold
    from controlplane.domain.durations import parse_duration

    out = session.out()
    seconds = parse_duration(ttl)
    with (
        session.client() as client,
        hold.held(client, out, name, ttl_seconds=seconds, wait_seconds=timeout, actor=session.actor) as held,
    ):
        if line:
            code = hold.run(line)
        else:
            out.result(held.hold)
            out.line(f"{name} is loaded and held; press Ctrl-C to release it")
            code = hold.until_interrupted()
    if code:
        raise typer.Exit(code)


def plan(
    session: Session,
    action: Annotated[Literal["deploy", "load"], typer.Argument(help="Change to plan.")],
    ref: RefArgument,
    instances: Annotated[
        int | None, typer.Option("--instances", min=1, help="deploy: model instances on each device.")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option("--max-batch-size", min=0, help="deploy: maximum batch size; 0 turns batching off.")
    ] = None,
    gpu: GpuOption = None,
    gpu_count: GpuCountOption = None,
    gpu_product: GpuProductOption = None,
    gpu_memory: GpuMemoryOption = None,
    mode: ModeOption = None,
    priority: PriorityOption = None,
    update_strategy: UpdateStrategyOption = None,
    set_: Annotated[
        str | None,
        typer.Option("--set", metavar="JSON", help="deploy: settings as a JSON object, or the path of a JSON file."),
    ] = None,
) -> None:
    """Show what a deploy or a load would do, without doing it: evictions, bytes, duration, and unavailability.

    Exit code 7 if it is not possible.
    """
    from controlplane.cli.exit_codes import ExitCode
    from controlplane.cli.views.memory import show_plan
    from controlplane.cli.workflows.deploy import deployment_path, merged_settings
    from controlplane.client.memory import Plan
    from controlplane.domain.names import Reference
    from controlplane.errors import InvalidInputError

    out = session.out()
    model = Reference.parse(ref).model
    given: dict[str, Any] = given_settings(
        set_,
        instance_count=instances,
        max_batch_size=max_batch_size,
        mode=mode,
        priority=priority,
        update_strategy=update_strategy,
    )
    given |= gpu_settings(gpu, gpu_count, gpu_product, gpu_memory)
    with session.client() as client:
        if action == "deploy":
            body = {"reference": ref, "settings": merged_settings(client, model, given)}
            document = client.put(deployment_path(model), body, dry_run="true")
        else:
            if given or ref != model:
                raise InvalidInputError(
                    "a load uses the deployed version and settings: give only the model's name, or plan a deploy"
                )
            document = client.post(f"{deployment_path(model)}/load", dry_run="true")
        found = client.read(Plan, document)
    out.result(found)
    show_plan(out, found)
    if any(one.decision == "refuse" for one in found.servers):
        raise typer.Exit(ExitCode.FAILED)


def _read(client: "Client", server: str | None) -> "list[ServerMemory]":
    from controlplane.client.memory import ServerMemory

    return [client.read(ServerMemory, item) for item in client.get("/v1/memory", server=server)["items"]]
