"""Output of deployments and their state."""

from typing import Any

from controlplane.cli.output import Output, ago, pairs, size, span
from controlplane.cli.views.deployment_list import expiry, proof_text
from controlplane.cli.views.health import evidence, show_conditions
from controlplane.cli.views.memory import held, needs, state
from controlplane.client.models import Deployment


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
                proof_text(server.proof),
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


def show_garbage(out: Output, report: dict[str, Any], *, dry_run: bool) -> None:
    """Print what a collection removed or would remove."""
    verb = "would remove" if dry_run else "removed"
    blobs = report.get("blobs_deleted", 0)
    out.line(f"{verb} {blobs} of {report.get('blobs_scanned', 0)} blobs, {size(report.get('bytes_deleted', 0))}")
    kept = report.get("kept_by_grace", 0)
    if kept:
        out.note(f"{kept} more unreferenced blobs are younger than the grace period; see --grace-seconds")
