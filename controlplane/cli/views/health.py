"""Output of the health of deployments and servers: conditions, probes, faults."""

from collections.abc import Sequence

from controlplane.cli.output import Output, ago, span
from controlplane.client.models import DeploymentHealth
from controlplane.domain.conditions import Condition, ConditionStatus, ServerCondition
from controlplane.domain.health import HealthSummary

_HEALTHY: dict[str, ConditionStatus] = {
    ServerCondition.LIVE: ConditionStatus.TRUE,
    ServerCondition.READY: ConditionStatus.TRUE,
    ServerCondition.METRICS_AVAILABLE: ConditionStatus.TRUE,
    ServerCondition.AGENT_AVAILABLE: ConditionStatus.TRUE,
    ServerCondition.LOADS_STUCK: ConditionStatus.FALSE,
    ServerCondition.DISK_PRESSURE: ConditionStatus.FALSE,
    ServerCondition.SHARED_MEMORY_PRESSURE: ConditionStatus.FALSE,
}
_SHOWN_RESULTS = 8


def show_health(out: Output, health: DeploymentHealth) -> None:
    """Print the conditions of a deployment and the results of its probes."""
    show_conditions(out, health.conditions)
    out.line()
    out.table(
        ("server", "probes", "failed", "skipped", "p50", "p99", "largest drift", "recoveries", "last recovery"),
        ((one.server, *_figures(one.summary)) for one in health.servers),
    )
    rows = [
        (one.server, ago(result.at), result.version, result.kind, result.outcome, span(result.latency_seconds), note)
        for one in health.servers
        for result in one.results[-_SHOWN_RESULTS:]
        for note in (result.message,)
    ]
    if rows:
        out.line()
        out.table(("server", "when", "version", "probe", "outcome", "latency", "message"), rows)


def show_conditions(out: Output, conditions: Sequence[Condition]) -> None:
    """Print conditions, one per line."""
    out.table(
        ("condition", "status", "since", "reason", "message"),
        ((one.type, one.status, ago(one.last_transition_time), one.reason, one.message) for one in conditions),
    )


def problems(conditions: Sequence[Condition]) -> str:
    """Return the problems of a server for one cell; empty if there are none."""
    return "; ".join(
        f"{one.reason}: {one.message}" if one.message else one.reason
        for one in conditions
        if one.status not in {_HEALTHY.get(one.type, one.status), ConditionStatus.UNKNOWN}
    )


def evidence(health: HealthSummary | None) -> str | None:
    """Return the results of the probes of a server for one cell."""
    if health is None or not health.probes:
        return None
    parts = [f"{health.probes - health.failed} of {health.probes} probes passed"]
    if health.heals:
        parts.append(f"recovered {health.heals} times" if health.heals > 1 else "recovered once")
    if health.last_failure is not None:
        parts.append(f"{health.last_failure.outcome} {ago(health.last_failure.at)}: {health.last_failure.message}")
    return "; ".join(parts)


def _figures(summary: HealthSummary) -> tuple[object, ...]:
    return (
        summary.probes,
        summary.failed,
        summary.skipped,
        span(summary.p50_seconds) if summary.p50_seconds is not None else None,
        span(summary.p99_seconds) if summary.p99_seconds is not None else None,
        f"{summary.drift_absolute:.2g}" if summary.drift_absolute is not None else None,
        summary.heals,
        span(summary.last_heal_seconds) if summary.last_heal_seconds is not None else None,
    )
