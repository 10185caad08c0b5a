"""Deployments: deploy, roll back, load, unload, wait."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from controlplane.cli import completion
from controlplane.cli.commands.models import RefArgument
from controlplane.cli.commands.push import ReasonOption
from controlplane.cli.session import Session, command

PANEL = "Deploy"
_PAGE_MAX = 1000

DeployedArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A deployed model.", autocompletion=completion.deployments)
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", "-w/-W", help="Follow it until it is done.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=0, help="Seconds to wait; then exit code 8.", show_default=False)
]
ModeOption = Annotated[
    Literal["pinned", "resident", "on-demand"] | None,
    typer.Option("--mode", help="Always loaded, loaded while there is room, or loaded at its first use."),
]
UpdateStrategyOption = Annotated[
    Literal["auto", "rolling", "recreate"] | None,
    typer.Option(
        "--update-strategy",
        help="rolling: load the new version before the old one is unloaded; recreate: after; auto: rolling if both "
        "fit.",
    ),
]
GpuOption = Annotated[list[int] | None, typer.Option("--gpu", min=0, help="The number of a GPU to use. Repeat it.")]
GpuCountOption = Annotated[
    int | None,
    typer.Option("--gpu-count", min=1, max=64, help="How many GPUs of a server a copy uses; it is chosen which."),
]
GpuProductOption = Annotated[
    str | None, typer.Option("--gpu-product", metavar="NAME", help="Part of the product's name that its GPUs have.")
]
GpuMemoryOption = Annotated[
    str | None, typer.Option("--gpu-min-memory", metavar="SIZE", help="Least memory of its GPUs in all, like 40GiB.")
]
PriorityOption = Annotated[
    int | None,
    typer.Option("--priority", min=-1000, max=1000, help="Higher is loaded first and evicted last."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "deploy",
        panel=PANEL,
        examples=(
            "tritonctl deploy resnet:7 --wait",
            "tritonctl deploy resnet@champion --instances 2 --max-batch-size 16",
            "tritonctl deploy resnet --mode on-demand --keep-alive 10m",
            "tritonctl deploy resnet --replicas 2 --max-replicas 4 --node-selector gpu=h200",
            "tritonctl deploy resnet --gpu-count 1 --gpu-product h100",
            "tritonctl deploy resnet:8 --strategy canary --steps 5%:10m,25%:10m,50%:10m",
            "tritonctl deploy resnet --p99-ms 50 --max-failures 1",
            'tritonctl deploy resnet --set \'{"dynamic_batching": {"max_queue_delay_microseconds": 500}}\'',
        ),
    )(deploy)
    command(
        app,
        "rollback",
        panel=PANEL,
        examples=('tritonctl rollback resnet --reason "too slow"', "tritonctl rollback resnet --to 3"),
    )(rollback)
    command(app, "undeploy", panel=PANEL, examples=("tritonctl undeploy resnet",))(undeploy)
    command(app, "load", panel=PANEL, examples=("tritonctl load resnet", "tritonctl load resnet --timeout 60"))(load)
    command(app, "unload", panel=PANEL, examples=("tritonctl unload resnet",))(unload)
    command(app, "ps", panel=PANEL, examples=("tritonctl ps", "tritonctl ps --phase Failed", "tritonctl ps -o json"))(
        ps
    )
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
    command(app, "health", panel=PANEL, examples=("tritonctl health resnet", "tritonctl health resnet -o json"))(health)


def deploy(
    session: Session,
    ref: RefArgument,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    instances: Annotated[int | None, typer.Option("--instances", min=1, help="Instances per device.")] = None,
    kind: Annotated[Literal["auto", "cpu", "gpu"] | None, typer.Option("--kind", help="Where to run.")] = None,
    gpu: GpuOption = None,
    gpu_count: GpuCountOption = None,
    gpu_product: GpuProductOption = None,
    gpu_memory: GpuMemoryOption = None,
    max_batch_size: Annotated[
        int | None, typer.Option("--max-batch-size", min=0, help="Largest batch; 0 turns batching off.")
    ] = None,
    queue_delay: Annotated[
        int | None,
        typer.Option("--queue-delay-us", min=0, help="Batch dynamically; a request may wait this long for others."),
    ] = None,
    bake: Annotated[
        float | None, typer.Option("--bake-seconds", min=0, help="How long the version before stays loaded.")
    ] = None,
    mode: ModeOption = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive", metavar="TIME", help="How long it stays without use, on demand: 0, 90s, 10m, forever."
        ),
    ] = None,
    priority: PriorityOption = None,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", min=1, max=1000, help="On how many servers at least, one replica on each."),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option("--max-replicas", min=1, max=1000, help="On how many at most, while requests wait too long."),
    ] = None,
    target_queue: Annotated[
        float | None, typer.Option("--target-queue-ms", help="How long requests may wait before a replica is added.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--node-selector", metavar="LABEL=VALUE", help="A label its servers must have. Repeat it."),
    ] = None,
    update_strategy: UpdateStrategyOption = None,
    strategy: Annotated[
        Literal["immediate", "canary", "shadow", "manual"] | None,
        typer.Option("--strategy", help="How a new version takes over: at once, or by evidence (`rollout`)."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps", metavar="STEPS", help="Of a canary: share and time of each, like 5%:10m,25%:1h,50%:1h."
        ),
    ] = None,
    p99: Annotated[
        float | None,
        typer.Option("--p99-ms", min=0, help="Promise: 99 in 100 requests take no longer. 0 takes it back."),
    ] = None,
    failures: Annotated[
        float | None,
        typer.Option("--max-failures", min=0, max=100, help="Promise: no more percent of them fail. 0 takes it back."),
    ] = None,
    warmup: Annotated[
        bool | None, typer.Option("--warmup/--no-warmup", help="Run a sample inside the load.", show_default=False)
    ] = None,
    auto_rollback: Annotated[
        bool | None,
        typer.Option(
            "--auto-rollback/--no-auto-rollback",
            help="Go back by itself where this version fails and the one before answers.",
            show_default=False,
        ),
    ] = None,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option("--max-latency-ratio", min=0.01, help="No switch if its probes take so many times as long."),
    ] = None,
    max_memory_ratio: Annotated[
        float | None,
        typer.Option("--max-memory-ratio", min=0.01, help="No switch if its processes have so many times the memory."),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="A backend parameter. Repeat it.")
    ] = None,
    set_: Annotated[
        str | None, typer.Option("--set", metavar="JSON", help="Settings as JSON, or the path of a file with them.")
    ] = None,
    reason: ReasonOption = "",
) -> None:
    """Make a version answer under the model's name.

    It is loaded beside the version that answers, proved with its golden samples through Triton, and then takes over;
    a version that fails its proof never does. The version before stays loaded for a while, so that `rollback` is a
    matter of milliseconds. Settings that are not given stay as they are.
    """
    from controlplane.cli.workflows.deploy import Change, apply, merged_settings, show_ready, wait_for_rollout
    from controlplane.domain.durations import parse_keep_alive, parse_steps
    from controlplane.domain.names import Reference

    reference = Reference.parse(ref)
    given = given_settings(
        set_,
        instance_count=instances,
        instance_kind=kind,
        max_batch_size=max_batch_size,
        dynamic_batching=None if queue_delay is None else {"max_queue_delay_microseconds": queue_delay},
        bake_seconds=bake,
        mode=mode,
        priority=priority,
        min_replicas=replicas,
        max_replicas=max_replicas,
        target_queue_milliseconds=target_queue,
        node_selector=_parameters(on, "--node-selector"),
        update_strategy=update_strategy,
        warmup=warmup,
        auto_rollback=auto_rollback,
        max_latency_ratio=max_latency_ratio,
        max_memory_ratio=max_memory_ratio,
        parameters=_parameters(parameter),
    )
    if keep_alive is not None:
        given["keep_alive_seconds"] = parse_keep_alive(keep_alive)
    given |= gpu_settings(gpu, gpu_count, gpu_product, gpu_memory)
    if strategy is not None or steps is not None:
        chosen = {"kind": strategy or "canary"} | ({} if steps is None else {"steps": parse_steps(steps)})
        given["rollout"] = {**given.get("rollout", {}), **chosen}
    promised = {"p99_milliseconds": p99, "failure_percent": failures}
    if objectives := {name: value or None for name, value in promised.items() if value is not None}:
        given["objectives"] = {**(given.get("objectives") or {}), **objectives}
    out = session.out()
    with session.client() as client:
        body = {"reference": ref, "settings": merged_settings(client, reference.model, given), "reason": reason}
        deployment, seconds = apply(client, out, reference.model, Change("PUT", body=body), wait=wait, timeout=timeout)
        tried = wait and deployment.spec.trial is not None
        if tried:
            left = None if timeout is None else max(0.0, timeout - seconds)
            deployment = wait_for_rollout(client, out, deployment, left)
    out.result(deployment)
    _note_skipped(out, deployment.reason)
    if tried and deployment.spec.trial is None:
        out.line(f"{deployment.model}:{deployment.spec.version} is promoted and answers")
        return
    trial = deployment.spec.trial
    if trial is not None:
        out.line(
            f"{deployment.model}:{trial.version} is tried beside {deployment.spec.version} ({trial.strategy.kind})"
        )
        out.note(f"follow it with `tritonctl rollout {deployment.model} --watch`")
    elif wait:
        show_ready(out, deployment, seconds)
    elif not deployment.changed:
        out.line(f"{deployment.model}:{deployment.spec.version} is unchanged (revision {deployment.revision})")
    else:
        out.line(f"{deployment.model}:{deployment.spec.version} is wanted (revision {deployment.revision})")
        out.note(f"follow it with `tritonctl wait {deployment.model}` or `tritonctl ps`")


def rollback(
    session: Session,
    name: DeployedArgument,
    to: Annotated[int | None, typer.Option("--to", min=1, help="A revision of `tritonctl history`.")] = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Go back to what was deployed before, and say how long it took.

    While the version before is still loaded this is a switch of milliseconds, otherwise a load.
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
        out.line(f"{name}:{deployment.spec.version} is wanted again (revision {deployment.revision})")
        return
    switches = [server.seconds["switch"] for server in _servers(deployment) if "switch" in server.seconds]
    inside = f", of which Triton's switch took {span(max(switches))}" if switches else ""
    out.line(f"{name}:{deployment.spec.version} answers again after {span(seconds)}{inside}")


def undeploy(
    session: Session,
    name: DeployedArgument,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Unload a model and remove its deployment; the history stays."""
    _change(session, name, "DELETE", "", "is undeployed", reason=reason, wait=wait, timeout=timeout)


def load(
    session: Session,
    name: DeployedArgument,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Load what is deployed: after an `unload`, after an eviction, or at its first use.

    Others make room for it by the eviction policy; any number of loads of a model are one. Each counts as a use, so
    what is on demand stays for its keep-alive.
    """
    from controlplane.cli.output import span
    from controlplane.cli.workflows.deploy import load_and_wait

    out = session.out()
    with session.client() as client:
        deployment, seconds = load_and_wait(client, out, name, reason=reason, wait=wait, timeout=timeout)
    out.result(deployment)
    out.line(f"{name} is loaded after {span(seconds)}" if wait else f"{name} is asked for")


def unload(
    session: Session,
    name: DeployedArgument,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
    reason: ReasonOption = "",
) -> None:
    """Unload a model to free its memory, and keep its deployment."""
    _change(session, name, "POST", "/unload", "is unloaded", reason=reason, wait=wait, timeout=timeout)


def ps(
    session: Session,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this model.", autocompletion=completion.deployments)
    ] = None,
    phase: Annotated[
        list[str] | None, typer.Option("--phase", help="Only those in this phase, for example Failed. Repeat it.")
    ] = None,
    server: Annotated[str | None, typer.Option("--server", help="Only those on this server.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="Only models with this label. Repeat it."),
    ] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Only models whose name contains this.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many to show at most.")] = 100,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Show all, however many there are.")] = False,
) -> None:
    """Show what is deployed, what answers, and the memory it has, until when."""
    from controlplane.cli.views.deployment import show_deployment, show_deployments
    from controlplane.cli.workflows.deploy import deployment_path
    from controlplane.client.models import Deployment

    out = session.out()
    filters: dict[str, Any] = {"phase": phase or None, "server": server, "label": label or None, "q": query}
    with session.client() as client:
        if name is not None:
            deployment = client.fetch(Deployment, deployment_path(name))
            out.result(deployment)
            show_deployment(out, deployment)
            return
        if everything:
            items, more = list(client.items("/v1/deployments", limit=_PAGE_MAX, **filters)), False
        else:
            page = client.get("/v1/deployments", limit=limit, **filters)
            items, more = page["items"], bool(page.get("next_cursor"))
        found = [client.read(Deployment, item) for item in items]
    out.result(found)
    show_deployments(out, found, filtered=any(filters.values()))
    if more:
        out.note(f"these are the first {len(found)}; --all shows all of them, --query some of them")


def wait(
    session: Session,
    name: DeployedArgument,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="CONDITION",
            help="Loaded, Proved, Ready, Progressing, Degraded, Healthy, condition=TYPE=STATUS, or unloaded.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long: 90, 60s, 5m; then exit code 8.")
    ] = "300s",
) -> None:
    """Wait until a deployment is Ready; fails at once when it ends otherwise.

    With `--for` it waits for that condition alone, whatever else becomes of the deployment, until the time is up.
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
    """Show what the probes of a deployment found: conditions, latency, drift, and the newest fault."""
    from controlplane.cli.views.health import show_health
    from controlplane.cli.workflows.deploy import deployment_path
    from controlplane.client.models import DeploymentHealth

    out = session.out()
    with session.client() as client:
        found = client.fetch(DeploymentHealth, f"{deployment_path(name)}/health")
    out.result(found)
    show_health(out, found)


def _note_skipped(out: Any, reason: str) -> None:
    """Print which newer versions were skipped; the control plane records that in the revision's reason."""
    _, mark, skipped = reason.partition("skipped ")
    if mark and "which Triton cannot serve" in skipped:
        out.note(f"note: skipped {skipped.split(';')[0]}", style="yellow")


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
    out.line(f"{name} {done} after {span(seconds)}" if wait else f"{name}: revision {deployment.revision} is wanted")


def _servers(deployment: Any) -> tuple[Any, ...]:
    return deployment.status.servers if deployment.status else ()


def given_settings(text: str | None, **options: Any) -> dict[str, Any]:
    """Return the given settings: those of ``--set``, overridden by the options that have a value."""
    return _settings(text) | {key: value for key, value in options.items() if value is not None}


def gpu_settings(gpu: list[int] | None, count: int | None, product: str | None, memory: str | None) -> dict[str, Any]:
    """Return the GPU options as settings; naming GPUs resets their count, and the other way round."""
    from controlplane.cli.views.tuning import parse_size

    given: dict[str, Any] = {}
    if gpu:
        given |= {"gpus": gpu, "gpu_count": None}
    if count is not None:
        given |= {"gpu_count": count} | ({} if gpu else {"gpus": []})
    if product is not None:
        given["gpu_product"] = product
    if memory is not None:
        given["gpu_min_memory_bytes"] = 0 if memory == "0" else parse_size(memory)
    return given


def _settings(text: str | None) -> dict[str, Any]:
    """Read settings from JSON, or from a file with JSON."""
    import json

    from controlplane.errors import InvalidInputError

    if text is None:
        return {}
    source = "--set"
    if not text.lstrip().startswith("{"):
        source = text
        try:
            text = Path(text).read_text("utf-8")
        except OSError as error:
            raise InvalidInputError(
                f"--set {source!r} is neither JSON nor a file that can be read: {error.strerror}"
            ) from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{source} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{source} must be a JSON object")
    return document


def _parameters(pairs: list[str] | None, option: str = "--param") -> dict[str, str] | None:
    from controlplane.cli.workflows.push import key_values

    return key_values(pairs, option) if pairs else None
