"""Computes the conditions of a deployment on one server from its desired state, observed state and history. Pure."""

from collections.abc import Iterable

from controlplane.domain.conditions import Condition, ConditionStatus, DeploymentCondition
from controlplane.domain.health import HealthSummary, ProbeOutcome
from controlplane.domain.states import Phase
from controlplane.lifecycle.state import DesiredReplica, ObservedReplica, ProofStatus

_MOVING = frozenset({Phase.FETCHING, Phase.STAGING, Phase.LOADING, Phase.PROVING, Phase.UNLOADING})
_SICK = {
    ProbeOutcome.LATE: "ProbeLate",
    ProbeOutcome.UNANSWERED: "ProbeNotAnswered",
    ProbeOutcome.WRONG: "WrongAnswer",
}


def deployment_conditions(
    phase: Phase,
    message: str,
    desired: DesiredReplica,
    observed: ObservedReplica,
    health: HealthSummary,
    *,
    blind: bool,
) -> tuple[Condition, ...]:
    """Return the conditions of a deployment on one server, without transition times.

    Args:
        phase: The phase of the deployment.
        message: The reason for the phase, as one sentence.
        desired: The desired state.
        observed: The observed state.
        health: The results of its probes.
        blind: Whether the state of the server is unknown at this moment.
    """
    return (
        _loaded(message, desired, observed, blind=blind),
        _proved(phase, message, desired, observed, health, blind=blind),
        _ready(phase, message, blind=blind),
        _progressing(phase, message),
        _condition(DeploymentCondition.DEGRADED, phase is Phase.DEGRADED, phase.value, message),
        _healthy(observed, health, blind=blind),
    )


def unplaced(conditions: Iterable[Condition], message: str) -> tuple[Condition, ...]:
    """Return the conditions of a deployment that still answers on a server but is assigned to no server any more."""
    told = {
        kind: _condition(kind, kind is DeploymentCondition.DEGRADED, "FailedScheduling", message)
        for kind in (DeploymentCondition.READY, DeploymentCondition.DEGRADED)
    }
    return tuple(told.get(DeploymentCondition(one.type), one) for one in conditions)


def _loaded(message: str, desired: DesiredReplica, observed: ObservedReplica, *, blind: bool) -> Condition:
    kind = DeploymentCondition.LOADED
    if blind:
        return _unknown(kind, "ServerNotSeen", message)
    if not desired.targets:
        return _condition(kind, False, "NothingWanted", message)
    wanted = desired.targets[0]
    if wanted.version in observed.loaded and observed.digest == wanted.digest:
        return _condition(kind, True, "Loaded", f"Triton has version {wanted.version} loaded")
    if not desired.loaded:
        return _condition(kind, False, "NotWantedNow", message)
    others = ", ".join(str(version) for version in sorted(observed.loaded))
    return _condition(
        kind,
        False,
        "OtherVersionLoaded" if others else "NotLoaded",
        f"version {others} is loaded" if others else message,
    )


def _proved(
    phase: Phase,
    message: str,
    desired: DesiredReplica,
    observed: ObservedReplica,
    health: HealthSummary,
    *,
    blind: bool,
) -> Condition:
    kind = DeploymentCondition.PROVED
    if blind:
        return _unknown(kind, "ServerNotSeen", message)
    wanted = desired.targets[0] if desired.targets else None
    if wanted is None or wanted.version not in observed.loaded or observed.digest != wanted.digest:
        failed = phase in {Phase.DEGRADED, Phase.FAILED}
        return _condition(kind, False, "Failed" if failed else "NotLoaded", message)
    match observed.mark(wanted.version):
        case ProofStatus.PASSED:
            newest = health.newest
            compared = newest is not None and newest.max_absolute_error is not None
            if compared:
                return _condition(kind, True, "AnswersAsRecorded", "Triton's answers agree with the recorded ones")
            return _condition(kind, True, "AnswersAtAll", "the version answers; there are no golden samples to compare")
        case ProofStatus.MISMATCH:
            return _condition(kind, False, "WrongAnswer", message)
        case ProofStatus.UNPROVED:
            return _condition(kind, False, "NotProvedYet", message)
        case _:
            return _condition(kind, False, "NotAnswered", message)


def _ready(phase: Phase, message: str, *, blind: bool) -> Condition:
    if blind:
        return _unknown(DeploymentCondition.READY, "ServerNotSeen", message)
    return _condition(DeploymentCondition.READY, phase is Phase.READY, phase.value, message)


def _progressing(phase: Phase, message: str) -> Condition:
    kind = DeploymentCondition.PROGRESSING
    if phase in _MOVING:
        return _condition(kind, True, phase.value, message)
    return _condition(kind, False, "Settled" if phase.settled else "Waiting", message)


def _healthy(observed: ObservedReplica, health: HealthSummary, *, blind: bool) -> Condition:
    kind, answering = DeploymentCondition.HEALTHY, observed.answering
    newest = health.newest
    if blind:
        return _unknown(kind, "ServerNotSeen", "the state of its server is unknown")
    if answering is None:
        sick = health.last_failure
        if newest is not None and sick is not None and sick.at == newest.at:
            return _condition(kind, False, _SICK[sick.outcome], f"no version answers: {sick.message}")
        return _unknown(kind, "NothingAnswers", "no version answers, so there is nothing to probe")
    if newest is None or newest.version != answering:
        return _unknown(kind, "NotProbed", f"version {answering} answers and has not been probed yet")
    if newest.outcome is ProbeOutcome.PASSED:
        drift = newest.max_absolute_error
        how = "" if drift is None else f", maximum error {drift:.2g}"
        return _condition(
            kind, True, "ProbePassed", f"version {answering} answered in {newest.latency_seconds * 1000:.3g} ms{how}"
        )
    return _condition(kind, False, _SICK[newest.outcome], f"version {answering}: {newest.message}")


def _condition(kind: DeploymentCondition, holds: bool, reason: str, message: str) -> Condition:
    status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
    return Condition(type=kind, status=status, reason=reason, message=message)


def _unknown(kind: DeploymentCondition, reason: str, message: str) -> Condition:
    return Condition(type=kind, status=ConditionStatus.UNKNOWN, reason=reason, message=message)
