"""Deployments: roll back, load, unload, list, wait."""

from typing import Annotated, Any

import typer

from controlplane.cli import completion
from controlplane.cli.commands.push import ReasonOption
from controlplane.cli.session import Session, command

PANEL = "Deploy"
_PAGE_MAX = 1000

DeployedArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a deployed model.", autocompletion=completion.deployments)
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", "-w/-W", help="Wait until the change is complete.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0, help="Maximum seconds to wait; then exit code 8. Default: no limit.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "rollback",
        panel=PANEL,
        examples=('tritonctl rollback resnet --reason "too slow"', "tritonctl rollback resnet --to 3"),
    )(rollback)
    command(
        app,
        "undeploy",
        panel=PANEL,
        examples=("tritonctl undeploy resnet", 'tritonctl undeploy resnet --reason "no longer used"'),
    )(undeploy)
    command(app, "load", panel=PANEL, examples=("tritonctl load resnet", "tritonctl load resnet --timeout 60"))(load)
    command(app, "unload", panel=PANEL, examples=("tritonctl unload resnet", "tritonctl unload resnet --no-wait"))(
        unload
    )
    command(
        app,
        "ps",
        panel=PANEL,
        examples=("tritonctl ps", "tritonctl ps --phase Failed --watch", "tritonctl ps -o wide"),
        watch=True,
    )(ps)
    command(
        app,
        "wait",
        panel=PANEL,
        examples=(
            "tritonctl wait resnet --timeout 2m",
            "tritonctl wait resnet --for=Ready --timeout 60s",
            "tritonctl wait resnet --for=condition=Degraded=False",
            "tritonctl wait resnet --for=unloaded",
        ),
    )(wait)
    command(
        app, "health", panel=PANEL, examples=("tritonctl health resnet", "tritonctl health resnet --watch"), watch=True
    )(health)


def rollback(
    session: Session,
    name: DeployedArgument,
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, help="Revision to restore; see `tritonctl history`. Default: the previous."),
    ] = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Roll a deployment back to an earlier revision, and print how long it took.

    A rollback to a version that is still loaded takes milliseconds; otherwise the version is loaded first.
    """
    from controlplane.cli.output import span
    from controlplane.cli.workflows.deploy import Change, apply

    out = session.out()
    body: dict[str, Any] = {"reason": reason} | ({"revision": to} if to is not None else {})
    with session.client() as client:
        change = Change("POST", "/rollback", body=body)
        deployment, seconds = apply(client, out, name, change, wait=wait, timeout=timeout)
    document = deployment.model_dump(mode="json")
    out.result(document | ({"seconds": round(seconds, 4)} if wait else {}))
    if not wait:
        out.line(f"created revision {deployment.revision}: {name}:{deployment.spec.version}")
        return
    switches = [server.seconds["switch"] for server in _servers(deployment) if "switch" in server.seconds]
    inside = f", of which Triton's switch took {span(max(switches))}" if switches else ""
    out.line(f"{name}:{deployment.spec.version} is active again after {span(seconds)}{inside}")


def undeploy(
    session: Session,
    name: DeployedArgument,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Unload a model and remove its deployment; its history is kept."""
    _change(session, name, "DELETE", "", "is undeployed", reason=reason, wait=wait, timeout=timeout)


def load(
    session: Session,
    name: DeployedArgument,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Load a deployed model: after an `unload`, after an eviction, or before its first request.

    The eviction policy decides which other models are unloaded to make room. Concurrent loads of a model are combined.
    A load counts as a use, so that an on-demand model stays loaded for its keep-alive.
    """
    from controlplane.cli.output import span
    from controlplane.cli.workflows.deploy import load_and_wait

    out = session.out()
    with session.client() as client:
        deployment, seconds = load_and_wait(client, out, name, reason=reason, wait=wait, timeout=timeout)
    out.result(deployment)
    out.line(f"{name} is loaded after {span(seconds)}" if wait else f"requested the load of {name}")


def unload(
    session: Session,
    name: DeployedArgument,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Unload a model to free its memory; its deployment is kept."""
    _change(session, name, "POST", "/unload", "is unloaded", reason=reason, wait=wait, timeout=timeout)


def ps(
    session: Session,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show only this model, in full.", autocompletion=completion.deployments),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option("--phase", help="Show only deployments in this phase, for example Failed. Repeatable."),
    ] = None,
    server: Annotated[str | None, typer.Option("--server", help="Show only deployments on this server.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="Show only models with this label. Repeatable."),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Show only models whose name contains this text.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of deployments.")] = 100,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Show all deployments, without a limit.")] = False,
) -> None:
    """List deployments with their desired and active versions, phase, memory, last use and expiry."""
    from controlplane.cli.views.deployment_list import show_deployments
    from controlplane.client.rows import DeploymentRow

    if name is not None:
        _show_one(session, name)
        return
    out = session.out()
    filters: dict[str, Any] = {"phase": phase or None, "server": server, "label": label or None, "q": query}
    with session.client() as client:
        if everything:
            items, more = list(client.items("/v1/deployments", limit=_PAGE_MAX, **filters)), False
        else:
            page = client.get("/v1/deployments", limit=limit, **filters)
            items, more = page["items"], bool(page.get("next_cursor"))
        if out.json_wanted:
            out.result(items)
            return
        found = [client.read(DeploymentRow, item) for item in items]
    show_deployments(out, found, filtered=any(filters.values()))
    if more:
        out.note(f"showing the first {len(found)}; use --all to show all, or --query to filter")


def _show_one(session: Session, name: str) -> None:
    from controlplane.cli.views.deployment import show_deployment
    from controlplane.cli.workflows.deploy import deployment_path
    from controlplane.client.models import Deployment

    out = session.out()
    with session.client() as client:
        deployment = client.fetch(Deployment, deployment_path(name))
    out.result(deployment)
    show_deployment(out, deployment)


def wait(
    session: Session,
    name: DeployedArgument,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="CONDITION",
            help="What to wait for: Loaded, Proved, Ready, Progressing, Degraded, Healthy, condition=TYPE=STATUS or "
            "unloaded.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout",
            metavar="TIME",
            help="Maximum time to wait, for example 90 (seconds), 60s or 5m; then exit code 8.",
        ),
    ] = "300s",
) -> None:
    """Wait until a deployment is Ready; fail as soon as it settles in another state.

    With `--for`, wait for that condition only, in whatever state the deployment is, until the timeout.
    """
    from controlplane.cli.workflows.deploy import wait_for, wait_for_condition
    from controlplane.domain.durations import parse_duration

    out = session.out()
    seconds = parse_duration(timeout)
    with session.client() as client:
        if for_ is None:
            deployment = wait_for(client, out, name, seconds)
        else:
            deployment = wait_for_condition(client, out, name, for_, seconds)
    out.result(deployment)
    phase = deployment.status.phase.value if deployment.status else "Pending"
    out.line(f"{name}:{deployment.spec.version} is {phase}")


def health(session: Session, name: DeployedArgument) -> None:
    """Show the conditions of a deployment and the results of its probes: latency, drift and the latest failure."""
    from controlplane.cli.views.health import show_health
    from controlplane.cli.workflows.deploy import deployment_path
    from controlplane.client.models import DeploymentHealth

    out = session.out()
    with session.client() as client:
        found = client.fetch(DeploymentHealth, f"{deployment_path(name)}/health")
    out.result(found)
    show_health(out, found)


def _change(
    session: Session, name: str, method: str, path: str, done: str, *, reason: str, wait: bool, timeout: float | None
) -> None:
    from controlplane.cli.output import span
    from controlplane.cli.workflows.deploy import Change, apply

    out = session.out()
    change = (
        Change(method, path, params={"reason": reason})
        if method == "DELETE"
        else Change(method, path, body={"reason": reason})
    )
    with session.client() as client:
        deployment, seconds = apply(client, out, name, change, wait=wait, timeout=timeout)
    out.result(deployment)
    out.line(f"{name} {done} after {span(seconds)}" if wait else f"{name}: created revision {deployment.revision}")


def _servers(deployment: Any) -> tuple[Any, ...]:
    return deployment.status.servers if deployment.status else ()
