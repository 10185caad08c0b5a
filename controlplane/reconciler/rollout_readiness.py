"""State of the new versions of rollouts on the servers. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.domain.rollout.decision import Readiness
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.planner import on_trial
from controlplane.reconciler.routes import answers
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.deployments import DeploymentRevision

_TRIES = 3
"""A new version is given up after this many consecutive failed loads."""


@dataclass(frozen=True, slots=True)
class RolloutReadiness:
    """A rollout in progress.

    Attributes:
        revision: The deployment's revision.
        servers: Names of the servers on which both versions are loaded and proved, sorted.
        readiness: Whether the rollout can proceed.
    """

    revision: DeploymentRevision
    servers: tuple[str, ...]
    readiness: Readiness


def rollout_readiness(
    desired_deployment: DesiredDeployment, servers: Iterable[TrackedServer]
) -> RolloutReadiness | None:
    """Return the state of a model's rollout; None if none is in progress."""
    rollout = desired_deployment.revision.spec.trial
    if rollout is None:
        return None
    ready: list[str] = []
    failed, waits = desired_deployment.trial_problem, ""
    for server in servers:
        unit, trial = server.unit(desired_deployment.model), desired_deployment.trial
        if trial is None or server.trouble is not None or not server.desired(desired_deployment).loaded:
            continue
        failure = unit.record.failures.get(trial)
        observed = (unit.facts or ReplicaObservation()).with_record(unit.record)
        if not answers(unit):
            waits = waits or f"version {desired_deployment.wanted.version} does not answer on {server.name} yet"
        elif on_trial(observed, trial):
            ready.append(server.name)
        elif failure is not None and (failure.retry_at is None or failure.count >= _TRIES):
            failed = failed or f"on {server.name}: {failure.message}"
        elif failure is not None:
            waits = waits or f"version {trial.version} is retried on {server.name}: {failure.message}"
        else:
            request = server.scheduler.model_state(desired_deployment.model).ticket.request
            why = f"waits for memory: {request.why}" if request and request.need.trial else "is being loaded and proved"
            waits = waits or f"version {trial.version} {why} on {server.name}"
    message = "" if ready else waits or f"no server has {desired_deployment.model} loaded"
    return RolloutReadiness(desired_deployment.revision, tuple(sorted(ready)), Readiness(bool(ready), message, failed))
