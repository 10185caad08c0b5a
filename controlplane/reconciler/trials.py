"""How the new versions of rollouts stand on the servers. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.domain.rollout import Readiness
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.fleet import KnownServer
from controlplane.reconciler.planner import on_trial
from controlplane.reconciler.routing import answers
from controlplane.reconciler.wishes import Wish
from controlplane.registry.deployments import DeploymentRevision

_TRIES = 3
"""A new version that could not be loaded so many times in a row is given up."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A rollout that is under way.

    Attributes:
        revision: The deployment's revision.
        servers: Names of the servers on which both versions are loaded and proved, sorted.
        readiness: What that means for the rollout.
    """

    revision: DeploymentRevision
    servers: tuple[str, ...]
    readiness: Readiness


def trial_of(wish: Wish, servers: Iterable[KnownServer]) -> Trial | None:
    """Return how a model's rollout stands; None where none is under way."""
    rollout = wish.revision.spec.trial
    if rollout is None:
        return None
    ready: list[str] = []
    failed, waits = wish.trial_problem, ""
    for server in servers:
        unit, trial = server.unit(wish.model), wish.trial
        if trial is None or server.trouble is not None or not server.desired(wish).loaded:
            continue
        failure = unit.record.failures.get(trial)
        observed = (unit.facts or Facts()).with_record(unit.record)
        if not answers(unit):
            waits = waits or f"version {wish.wanted.version} does not answer on {server.name} yet"
        elif on_trial(observed, trial):
            ready.append(server.name)
        elif failure is not None and (failure.retry_at is None or failure.count >= _TRIES):
            failed = failed or f"on {server.name}: {failure.message}"
        elif failure is not None:
            waits = waits or f"version {trial.version} is tried again on {server.name}: {failure.message}"
        else:
            request = server.steward.tenant(wish.model).request
            why = f"waits for memory: {request.why}" if request and request.need.trial else "is being loaded and proved"
            waits = waits or f"version {trial.version} {why} on {server.name}"
    message = "" if ready else waits or f"no server has {wish.model} loaded"
    return Trial(wish.revision, tuple(sorted(ready)), Readiness(bool(ready), message, failed))
