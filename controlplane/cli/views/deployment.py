"""Output of deployments and their state."""

from collections.abc import Sequence
from typing import Any

from controlplane.cli.output import Output, ago, pairs, size, span
from controlplane.cli.views.health import evidence, show_conditions
from controlplane.cli.views.memory import expiry, held, needs, state
from controlplane.client.models import Deployment


def show_deployments(out: Output, deployments: Sequence[Deployment], *, filtered: bool = False) -> None:
    """Print one line for each deployment.

    Args:
        out: The output.
        deployments: The deployments.
        filtered: Whether a filter may have excluded deployments.
    """
    out.table(
        (
            "model",
            "desired",
            "phase",
            "active",
            "loaded",
            "memory",
            "mode",
            "used",
            "expires",
            "proof",
            "since",
            "message",
        ),
        ((*_summary(one), ago(one.at), _message(one)) for one in deployments),
        empty="no deployment matches"
        if filtered
        else "nothing is deployed; deploy a version with `tritonctl deploy NAME --wait`",
    )


def show_deployment(out: Output, deployment: Deployment) -> None:
    """Print one deployment in full."""
    spec, status = deployment.spec, deployment.status
    settings = {
        key: value
        for key, value in spec.settings.model_dump(mode="json", exclude_defaults=True).items()
        if value is not None
    }
    out.facts(
        (
            ("model", deployment.model),
            (
                "desired",
                f"{spec.model}:{spec.version}" + (f" (from {spec.reference})" if "@" in spec.reference else ""),
            ),
            ("revision", f"{deployment.revision}, {ago(deployment.at)} by {deployment.actor}"),
            ("reason", deployment.reason),
            ("phase", status.phase.value if status else "Pending"),
            ("message", status.message if status else ""),
            ("settings", pairs(settings) if settings else "defaults"),
        )
    )
    if status is None or not status.servers:
        return
    out.line()
    out.table(
        ("server", "phase", "active", "loaded", "bakes until", "proof", "spent", "message"),
        (
            (
                server.server,
                server.phase.value,
                server.serving_version,
                ", ".join(map(str, server.loaded_versions)),
                ago(server.bake_until) if server.bake_until else None,
                _proof(server.proof),
                ", ".join(f"{stage} {span(took)}" for stage, took in server.seconds.items() if took >= 0.0005),
                server.message,
            )
            for server in status.servers
        ),
    )
    if status.conditions:
        out.line()
        show_conditions(out, status.conditions)
    probed = [(server.server, evidence(server.health)) for server in status.servers if evidence(server.health)]
    if probed:
        out.line()
        out.table(("server", "evidence"), probed)
    if deployment.memory:
        out.line()
        out.table(
            ("server", "mode", "state", "holds", "needs", "last used", "expires", "last load", "why"),
            (
                (
                    one.server,
                    one.mode,
                    state(one),
                    held(one),
                    needs(one),
                    ago(one.last_used_at),
                    expiry(one),
                    span(one.load_seconds) if one.load_seconds else None,
                    one.why,
                )
                for one in deployment.memory
            ),
        )


def _summary(deployment: Deployment) -> tuple[object, ...]:
    status = deployment.status
    servers = status.servers if status else ()
    answers = sorted({server.serving_version for server in servers if server.serving_version is not None})
    loaded = sorted({version for server in servers for version in server.loaded_versions})
    proofs = [server.proof for server in servers if server.proof is not None]
    desired = str(deployment.spec.version)
    if "@" in deployment.spec.reference:
        desired += f" ({deployment.spec.reference.partition('@')[2]})"
    return (
        deployment.model,
        desired,
        status.phase.value if status else "Pending",
        ", ".join(map(str, answers)),
        ", ".join(map(str, loaded)),
        *_memory(deployment),
        _proof(proofs[0]) if proofs else None,
    )


def _memory(deployment: Deployment) -> tuple[object, ...]:
    """Return its memory over all servers, its load time, its last use, and its expiry."""
    views = deployment.memory
    held = sum(one.held_bytes for one in views)
    uses = [one.last_used_at for one in views if one.last_used_at is not None]
    first = next((one for one in views if one.held_until or one.expires_at), None)
    return (
        size(held) if held else None,
        deployment.spec.settings.mode.value,
        ago(max(uses)) if uses else None,
        expiry(first) if first else None,
    )


def _proof(proof: object) -> str | None:
    from controlplane.domain.states import Proof

    if not isinstance(proof, Proof):
        return None
    if not proof.samples:
        return "no samples"
    return f"agrees, {span(proof.latency_seconds)}" if proof.agrees else "differs"


def _message(deployment: Deployment) -> str:
    if deployment.status is None:
        return ""
    return deployment.status.message


def show_garbage(out: Output, report: dict[str, Any], *, dry_run: bool) -> None:
    """Print what a collection removed or would remove."""
    verb = "would remove" if dry_run else "removed"
    blobs = report.get("blobs_deleted", 0)
    out.line(f"{verb} {blobs} of {report.get('blobs_scanned', 0)} blobs, {size(report.get('bytes_deleted', 0))}")
    kept = report.get("kept_by_grace", 0)
    if kept:
        out.note(f"{kept} more unreferenced blobs are younger than the grace period; see --grace-seconds")
