"""Computes the phase and status of a deployment from desired and observed state. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from controlplane.domain.conditions import Condition, joined, kept
from controlplane.domain.health import HealthSummary
from controlplane.domain.states import DeploymentStatus, Phase, ServerDeploymentStatus
from controlplane.lifecycle.actions import Action, CleanUp, Load, Prove, Stage, Unload, Wait
from controlplane.lifecycle.conditions import deployment_conditions, unplaced
from controlplane.lifecycle.history import ReplicaHistory
from controlplane.lifecycle.planner import kept_alongside
from controlplane.lifecycle.state import DesiredReplica, Failure, ObservedReplica, ProofStatus, bake_until

# Least advanced first. Transient phases come before settled ones, so that a wait covers all servers.
_RANK = (
    Phase.PENDING,
    Phase.FETCHING,
    Phase.STAGING,
    Phase.LOADING,
    Phase.PROVING,
    Phase.UNLOADING,
    Phase.FAILED,
    Phase.DEGRADED,
    Phase.UNLOADED,
    Phase.READY,
)


@dataclass(frozen=True)
class Doing:
    """The action in flight.

    Attributes:
        action: The action.
        phase: The stage that the action reported; None if it has none.
    """

    action: Action
    phase: Phase | None = None


@dataclass(frozen=True)
class Trouble:
    """Why no action is possible on a server at this moment."""

    message: str


@dataclass(frozen=True)
class View:
    """Input for the status of a deployment on one server."""

    server: str
    desired: DesiredReplica
    observed: ObservedReplica
    record: ReplicaHistory
    doing: Doing | None = None
    trouble: Trouble | None = None
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    health: HealthSummary = field(default_factory=HealthSummary)
    conditions: tuple[Condition, ...] = ()


def server_status(view: View, now: datetime) -> ServerDeploymentStatus:
    """Return the status of a deployment on one server."""
    phase, message = _phase(view, now)
    desired, observed, record = view.desired, view.observed, view.record
    wanted = desired.targets[0] if desired.targets else None
    failure = observed.failures.get(wanted) if wanted else None
    baking = kept_alongside(desired, observed, wanted, now) if wanted and phase is Phase.READY else None
    proof = record.proof
    blind = view.trouble is not None
    conditions = deployment_conditions(phase, message, desired, observed, view.health, blind=blind)
    return ServerDeploymentStatus(
        server=view.server,
        phase=phase,
        message=message,
        serving_version=observed.answering,
        loaded_versions=tuple(sorted(observed.loaded)),
        bake_until=bake_until(desired, observed, wanted.version) if wanted and baking is not None else None,
        proof=proof if proof and wanted and proof.version == wanted.version else None,
        retry_at=failure.retry_at if failure and failure.retry_at and failure.retry_at > now else None,
        seconds=view.seconds,
        conditions=kept(view.conditions, conditions, now),
        health=view.health,
    )


def overall(revision: int, servers: Sequence[ServerDeploymentStatus]) -> DeploymentStatus:
    """Combine the statuses of all servers into the least advanced one."""
    if not servers:
        return DeploymentStatus(revision=revision, phase=Phase.PENDING, message="there is no Triton server to run it")
    least = min(servers, key=lambda status: _RANK.index(status.phase))
    message = least.message if len(servers) == 1 else f"{least.server}: {least.message}"
    conditions = joined([(status.server, status.conditions) for status in servers])
    return DeploymentStatus(
        revision=revision, phase=least.phase, message=message, servers=tuple(servers), conditions=conditions
    )


def placed(
    revision: int,
    assignments: Sequence[ServerDeploymentStatus],
    others: Sequence[ServerDeploymentStatus],
    least: int,
    lacking: str,
) -> DeploymentStatus:
    """Combine the statuses of the servers that a deployment is assigned to.

    Only the best ``least`` of them count. Neither an additional replica in progress nor one that is being moved, while
    the old replica answers, makes the deployment less than Ready. If no server can hold it any more, an active model is
    Degraded.

    Args:
        revision: The deployment's revision.
        assignments: Its statuses on the servers that it is assigned to.
        others: Its statuses where it stays until it answers elsewhere, or is being unloaded.
        least: The minimum number of replicas.
        lacking: Why it is assigned to fewer servers than that; empty if it is not.
    """
    if not assignments and not others:
        phase = Phase.FAILED if lacking else Phase.PENDING
        return DeploymentStatus(revision=revision, phase=phase, message=lacking or "waiting for placement")
    best = sorted((*assignments, *others), key=lambda status: -_RANK.index(status.phase))
    count = max(min(least, len(assignments)), 1)
    joined = overall(revision, best[:count])
    changes: dict[str, Any] = {"servers": (*assignments, *others)}
    if lacking and joined.phase is Phase.READY:
        changes["message"] = message = f"{joined.message}; {lacking}"
        if not assignments:
            # The active model was placed for an earlier revision: it stays, but the new one is placed nowhere.
            changes |= {"phase": Phase.DEGRADED, "conditions": unplaced(joined.conditions, message)}
    return replace(joined, **changes)


def _phase(view: View, now: datetime) -> tuple[Phase, str]:
    desired, observed = view.desired, view.observed
    if view.trouble:
        return Phase.PENDING, view.trouble.message
    if not desired.loaded:
        if observed.loaded or observed.candidate is not None or observed.leaving:
            return Phase.UNLOADING, f"it is being unloaded: {desired.why}" if desired.why else "it is being unloaded"
        if desired.why:
            return (Phase.FAILED if desired.refused else Phase.UNLOADED), desired.why
        return Phase.UNLOADED, "it was undeployed" if desired.deleted else "unloaded as requested"
    wanted = desired.targets[0]
    answers = (
        observed.answering == wanted.version and observed.digest == wanted.digest and not desired.relocation_reason
    )
    if answers and observed.mark(wanted.version) is ProofStatus.PASSED:
        return Phase.READY, _ready_message(view, now)
    failure = observed.failures.get(wanted)
    if failure and failure.blocks(now) and not _replacement_in_progress(view):
        return _failed(failure, observed, now)
    if view.doing:
        return _doing(view.doing, observed)
    if failure and not failure.blocks(now) and failure.count:
        return _failed(failure, observed, now)
    return Phase.PENDING, f"version {wanted.version} is pending"


def _ready_message(view: View, now: datetime) -> str:
    wanted = view.desired.targets[0]
    message = f"version {wanted.version} answers"
    beside = kept_alongside(view.desired, view.observed, wanted, now)
    if beside is not None:
        until = bake_until(view.desired, view.observed, wanted.version)
        message += f"; version {beside} stays loaded until {until:%H:%M:%S} UTC"
    trial = view.desired.trial
    if trial is not None:
        message += f"; a rollout of version {trial.version} is in progress"
    proof = view.record.proof
    if proof and proof.version == wanted.version and proof.samples == 0 and proof.message:
        message += f"; {proof.message}"
    return f"{message}; {view.note}" if view.note else message


def _replacement_in_progress(view: View) -> bool:
    """Return whether the action in flight will still decide which version replaces the failed one."""
    observed = view.observed
    usable = {version for version in observed.loaded if not observed.mark(version).bad}
    if view.doing is None or (observed.loaded and not usable) or observed.answering in usable:
        return False
    return isinstance(view.doing.action, (Stage, Load, Prove))


def _failed(failure: Failure, observed: ObservedReplica, now: datetime) -> tuple[Phase, str]:
    again = ""
    if failure.retry_at is not None:
        wait = (failure.retry_at - now).total_seconds()
        again = f" (attempt {failure.count} failed; next attempt {f'in {wait:.0f} s' if wait > 0 else 'now'})"
    answering = observed.answering
    if answering is not None and not observed.mark(answering).bad:
        return Phase.DEGRADED, f"version {answering} stays active: {failure.message}{again}"
    return Phase.FAILED, f"{failure.message}{again}"


def _doing(doing: Doing, observed: ObservedReplica) -> tuple[Phase, str]:
    match doing.action:
        case Stage(target=target, candidate=candidate):
            phase = doing.phase or Phase.FETCHING
            verb = "staging" if phase is Phase.STAGING else "fetching"
            return phase, f"{verb} version {target.version}{_to_prove(candidate)}"
        case Load() as load:
            return Phase.LOADING, _loading(load, observed)
        case Prove(target=target, candidate=candidate):
            return Phase.PROVING, f"proving version {target.version}{' as a candidate' if candidate else ''}"
        case Unload(candidate=candidate):
            return Phase.LOADING, "unloading the candidate" if candidate else "unloading the loaded version"
        case CleanUp():
            return Phase.LOADING, "removing unused folders"
        case Wait(because=because):
            return doing.phase or Phase.LOADING, because if doing.phase else f"waiting: {because}"


def _loading(load: Load, observed: ObservedReplica) -> str:
    version = load.target.version
    if load.candidate:
        return f"loading version {version}{_to_prove(True)}"
    if load.reload:
        return f"loading version {version} again"
    dropped = ", ".join(str(other) for other in sorted(observed.loaded - set(load.versions)))
    if dropped and version in observed.loaded and load.target.digest == observed.digest:
        return f"dropping version {dropped}; version {max(load.versions)} answers"
    beside = ", ".join(str(other) for other in load.versions if other != version)
    return f"loading version {version} beside version {beside}" if beside else f"loading version {version}"


def _to_prove(candidate: bool) -> str:
    return " as a candidate to prove it" if candidate else ""
