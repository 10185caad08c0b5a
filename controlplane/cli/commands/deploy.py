"""The deploy command, and the options for a deployment's settings that `plan` has as well."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from controlplane.cli.commands.deployments import PANEL, TimeoutOption, WaitOption
from controlplane.cli.commands.models import RefArgument
from controlplane.cli.commands.push import ReasonOption
from controlplane.cli.session import Session, command

ModeOption = Annotated[
    Literal["pinned", "resident", "on-demand"] | None,
    typer.Option(
        "--mode",
        help="When the model is loaded. pinned: always; resident (default): while there is room; on-demand: when "
        "requested.",
    ),
]
UpdateStrategyOption = Annotated[
    Literal["auto", "rolling", "recreate"] | None,
    typer.Option(
        "--update-strategy",
        help="rolling: load the new version before the old one is unloaded; recreate: unload the old one first; "
        "auto (default): rolling if both fit into memory.",
    ),
]
GpuOption = Annotated[
    list[int] | None, typer.Option("--gpu", min=0, help="Index of a GPU to use, as Triton counts them. Repeatable.")
]
GpuCountOption = Annotated[
    int | None,
    typer.Option(
        "--gpu-count", min=1, max=64, help="GPUs per replica; the control plane selects them. Default: all that match."
    ),
]
GpuProductOption = Annotated[
    str | None,
    typer.Option("--gpu-product", metavar="NAME", help="Use only GPUs whose product name contains this text."),
]
GpuMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--gpu-min-memory",
        metavar="SIZE",
        help="Use only GPUs with at least this much total memory, for example 40GiB; 0 removes the limit.",
    ),
]
PriorityOption = Annotated[
    int | None,
    typer.Option(
        "--priority", min=-1000, max=1000, help="Models of higher priority load first and are evicted last. Default: 0."
    ),
]

_GROUPS = {
    "Resources": (
        *("instances", "kind", "gpu", "gpu_count", "gpu_product", "gpu_memory", "max_batch_size", "queue_delay"),
        "parameter",
    ),
    "Memory": ("mode", "keep_alive", "priority", "update_strategy", "bake"),
    "Replicas": ("replicas", "max_replicas", "target_queue", "on"),
    "Rollout": ("strategy", "steps", "auto_rollback", "warmup", "max_latency_ratio", "max_memory_ratio"),
    "Objectives": ("p99", "failures"),
}


def register(app: typer.Typer) -> None:
    """Add the command."""
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
            "tritonctl deploy pipeline:2 --member tokenizer=3 --wait",
            "tritonctl deploy resnet --p99-ms 50 --max-failures 1",
            'tritonctl deploy resnet --set \'{"dynamic_batching": {"max_queue_delay_microseconds": 500}}\'',
        ),
        groups=_GROUPS,
    )(deploy)


def deploy(
    session: Session,
    ref: RefArgument,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    instances: Annotated[
        int | None, typer.Option("--instances", min=1, help="Model instances on each device. Default: 1.")
    ] = None,
    kind: Annotated[
        Literal["auto", "cpu", "gpu"] | None,
        typer.Option("--kind", help="Kind of device to run on. auto (default): GPUs if the server has some."),
    ] = None,
    gpu: GpuOption = None,
    gpu_count: GpuCountOption = None,
    gpu_product: GpuProductOption = None,
    gpu_memory: GpuMemoryOption = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            "--max-batch-size",
            min=0,
            help="Maximum batch size; 0 turns batching off. Default: 8 for batched models, else 0.",
        ),
    ] = None,
    queue_delay: Annotated[
        int | None,
        typer.Option(
            "--queue-delay-us",
            min=0,
            help="Turn on dynamic batching; a request waits at most this many microseconds for others.",
        ),
    ] = None,
    bake: Annotated[
        float | None,
        typer.Option(
            "--bake-seconds",
            min=0,
            help="Seconds that the previous version stays loaded after the switch. Default: 300.",
        ),
    ] = None,
    mode: ModeOption = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive",
            metavar="TIME",
            help="How long an unused on-demand model stays loaded: 0, 90s, 10m or forever. Default: 5m.",
        ),
    ] = None,
    priority: PriorityOption = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas", min=1, max=1000, help="Minimum number of replicas, each on its own server. Default: 1."
        ),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            "--max-replicas",
            min=1,
            max=1000,
            help="Maximum number of replicas for autoscaling. Default: as --replicas.",
        ),
    ] = None,
    target_queue: Annotated[
        float | None,
        typer.Option(
            "--target-queue-ms", help="Mean queue time in milliseconds above which a replica is added. Default: 100."
        ),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--node-selector", metavar="LABEL=VALUE", help="Label that a server must have. Repeatable."),
    ] = None,
    update_strategy: UpdateStrategyOption = None,
    strategy: Annotated[
        Literal["immediate", "canary", "shadow", "manual"] | None,
        typer.Option(
            "--strategy",
            help="How a new version replaces the active one. immediate (default): all requests at once; canary: a "
            "growing share of the requests; shadow: copies of requests first; manual: on `rollout promote`.",
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="STEPS",
            help="Steps of a canary: share of the requests and duration, for example 5%:10m,25%:1h,50%:1h.",
        ),
    ] = None,
    p99: Annotated[
        float | None,
        typer.Option("--p99-ms", min=0, help="p99 latency objective in milliseconds; 0 removes it."),
    ] = None,
    failures: Annotated[
        float | None,
        typer.Option(
            "--max-failures", min=0, max=100, help="Failure rate objective in percent of the requests; 0 removes it."
        ),
    ] = None,
    warmup: Annotated[
        bool | None,
        typer.Option(
            "--warmup/--no-warmup",
            help="Run a golden sample during the load, before the first request. Default: off.",
            show_default=False,
        ),
    ] = None,
    auto_rollback: Annotated[
        bool | None,
        typer.Option(
            "--auto-rollback/--no-auto-rollback",
            help="Roll back automatically if this version fails and the previous one is healthy. Default: off.",
            show_default=False,
        ),
    ] = None,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option(
            "--max-latency-ratio",
            min=0.01,
            help="Reject the version if its latency exceeds this multiple of the active version's.",
        ),
    ] = None,
    max_memory_ratio: Annotated[
        float | None,
        typer.Option(
            "--max-memory-ratio",
            min=0.01,
            help="Reject the version if its memory exceeds this multiple of the active version's.",
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="Parameter of the backend. Repeatable.")
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(
            "--member",
            metavar="NAME=VERSION",
            help="Version of a member that the pipeline runs with. Default: the member's active version. Repeatable.",
        ),
    ] = None,
    set_: Annotated[
        str | None, typer.Option("--set", metavar="JSON", help="Settings as a JSON object, or the path of a JSON file.")
    ] = None,
    reason: ReasonOption = "",
) -> None:
    """Deploy a version: load it, prove it, and make it the active version of its model.

    The version is loaded beside the active one and proved with its golden samples through Triton before it receives
    requests; a version that fails its proof never does. The previous version stays loaded for the bake window, so that
    `rollback` takes milliseconds. Settings that are not given keep their value; the defaults apply to a first deploy.
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
        members=_members(member),
    )
    if keep_alive is not None:
        given["keep_alive_seconds"] = parse_keep_alive(keep_alive)
    given |= gpu_settings(gpu, gpu_count, gpu_product, gpu_memory)
    if strategy is not None or steps is not None:
        chosen = {"kind": strategy or "canary"} | ({} if steps is None else {"steps": parse_steps(steps)})
        given["rollout"] = {**given.get("rollout", {}), **chosen}
    limits = {"p99_milliseconds": p99, "failure_percent": failures}
    if objectives := {name: value or None for name, value in limits.items() if value is not None}:
        given["objectives"] = {**(given.get("objectives") or {}), **objectives}
    out = session.out()
    with session.client() as client:
        body = {"reference": ref, "settings": merged_settings(client, reference.model, given), "reason": reason}
        deployment, seconds = apply(client, out, reference.model, Change("PUT", body=body), wait=wait, timeout=timeout)
        followed = wait and deployment.spec.trial is not None
        if followed:
            left = None if timeout is None else max(0.0, timeout - seconds)
            deployment = wait_for_rollout(client, out, deployment, left)
    out.result(deployment)
    _note_skipped(out, deployment.reason)
    if followed and deployment.spec.trial is None:
        out.line(f"{deployment.model}:{deployment.spec.version} is promoted and active")
        return
    trial = deployment.spec.trial
    if trial is not None:
        out.line(
            f"started {trial.strategy.kind} rollout of {deployment.model}:{trial.version} "
            f"(active: {deployment.spec.version})"
        )
        out.note(f"follow it with `tritonctl rollout {deployment.model} --watch`")
    elif wait:
        show_ready(out, deployment, seconds)
    elif not deployment.changed:
        out.line(f"{deployment.model}:{deployment.spec.version} is unchanged (revision {deployment.revision})")
    else:
        out.line(f"created revision {deployment.revision}: {deployment.model}:{deployment.spec.version}")
        out.note(f"follow it with `tritonctl wait {deployment.model}` or `tritonctl ps`")


def given_settings(text: str | None, **options: Any) -> dict[str, Any]:
    """Return the given settings: those of ``--set``, overridden by the options that have a value."""
    return _settings(text) | {key: value for key, value in options.items() if value is not None}


def gpu_settings(gpu: list[int] | None, count: int | None, product: str | None, memory: str | None) -> dict[str, Any]:
    """Return the GPU options as settings; naming GPUs resets their count, and vice versa."""
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
                f"--set {source!r} is neither a JSON object nor a readable file: {error.strerror}"
            ) from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{source} must be a JSON object")
    return document


def _parameters(pairs: list[str] | None, option: str = "--param") -> dict[str, str] | None:
    from controlplane.cli.workflows.push import key_values

    return key_values(pairs, option) if pairs else None


def _members(pairs: list[str] | None) -> dict[str, int] | None:
    from controlplane.errors import InvalidInputError

    found = {}
    for name, version in (_parameters(pairs, "--member") or {}).items():
        if not version.isascii() or not version.isdigit() or not int(version):
            raise InvalidInputError(f"--member {name}={version}: {version!r} is not a version number; use {name}=3")
        found[name] = int(version)
    return found or None


def _note_skipped(out: Any, reason: str) -> None:
    """Print which newer versions were skipped; the control plane records that in the revision's reason."""
    _, mark, skipped = reason.partition("skipped ")
    if mark and "which Triton cannot serve" in skipped:
        out.note(f"note: skipped {skipped.split(';')[0]}", style="yellow")
