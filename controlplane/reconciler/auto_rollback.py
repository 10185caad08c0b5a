"""Rolls a deployment back to its previous version when the new one fails and `auto_rollback` is set.

The decision is pure. It only selects a version that is active now and passed its proof on the server, and it never
rolls back a rollback, so that two failing versions do not replace each other endlessly.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from controlplane.domain.rollout.rollback import pinned
from controlplane.errors import CommitConflictError, ControlPlaneError, InvalidInputError, NotFoundError
from controlplane.lifecycle.desired import ACTOR, DesiredDeployment, DesiredStateResolver
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.state import ObservedReplica, ProofStatus, Target
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.server_state import TrackedServer
from controlplane.reconciler.tasks import TaskRunner
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry

logger = logging.getLogger(__name__)

TRIES = 3
"""Roll back after this many consecutive failures, or crashes within `history.CRASH_WINDOW`."""
PREFIX = "automatic rollback"
_SEARCHED = 100
_EVIDENCE_LENGTH = 600


@dataclass(frozen=True, slots=True)
class RollbackDecision:
    """A rollback that is due.

    Attributes:
        goal: The active target, which replaces the desired one.
        evidence: The reason, as one sentence.
    """

    goal: Target
    evidence: str


def rollback_decision(
    desired_deployment: DesiredDeployment, servers: Iterable[tuple[str, ObservedReplica]]
) -> RollbackDecision | None:
    """Decide whether to roll a deployment back.

    Args:
        desired_deployment: The desired state.
        servers: The observed state by server.
    """
    revision, spec = desired_deployment.revision, desired_deployment.revision.spec
    if not spec.settings.auto_rollback or not spec.loaded or spec.deleted or spec.trial is not None:
        return None
    if revision.actor == ACTOR and revision.reason.startswith(PREFIX):
        return None
    for name, observed in servers:
        failure, answering = observed.failures.get(desired_deployment.wanted), observed.answering
        if failure is None or (failure.retry_at is not None and failure.count < TRIES) or answering is None:
            continue
        present = Target(answering, observed.digest or "")
        if (
            present != desired_deployment.wanted
            and present in desired_deployment.targets
            and observed.mark(answering) is ProofStatus.PASSED
        ):
            what = f"version {desired_deployment.wanted.version} failed on {name}: {failure.message}"
            return RollbackDecision(present, what[:_EVIDENCE_LENGTH])
    return None


class AutoRollback:
    """Commits rollbacks.

    Args:
        state: The loop's state.
        desired_state: Prepares the version of a revision.
        registry: The bucket.
        background: Runs tasks beside the loop.
        leading: Whether this process may change anything.
        wake: Reports that a deployment changed.
    """

    def __init__(
        self,
        state: LoopState,
        desired_state: DesiredStateResolver,
        registry: Registry,
        background: TaskRunner,
        *,
        leading: Callable[[], bool],
        wake: Callable[[str], None],
    ) -> None:
        self._state = state
        self._desired_state = desired_state
        self._registry = registry
        self._background = background
        self._leading = leading
        self._wake = wake
        self._busy: set[str] = set()
        self._touched = state.follow()

    def look(self) -> None:
        """Start the rollbacks that are due, if this process is the leader."""
        if not self._leading():
            return
        for model in sorted(self._touched):
            desired_deployment = self._state.desired_state.get(model)
            if (
                desired_deployment is None
                or not desired_deployment.revision.spec.settings.auto_rollback
                or not desired_deployment.targets
            ):
                self._touched.discard(model)
                continue
            units = (server.units.get(model) for server in self._state.servers.values())
            if not any(unit is not None and desired_deployment.wanted in unit.record.failures for unit in units):
                self._touched.discard(model)
                continue
            if model in self._busy:
                continue
            due = rollback_decision(
                desired_deployment, [(server.name, _observed(server, model)) for server in self._state.servers.values()]
            )
            if due is not None:
                self._busy.add(model)
                self._background.spawn(self._commit(desired_deployment, due), f"roll back {model}")

    async def _commit(self, desired_deployment: DesiredDeployment, due: RollbackDecision) -> None:
        model = desired_deployment.model
        try:
            committed = await asyncio.to_thread(self._put, desired_deployment, due)
        except CommitConflictError:
            logger.info("not rolling back %s: its deployment changed in the meantime", model)
        except ControlPlaneError as error:
            logger.warning("failed to roll back %s: %s", model, error)
        else:
            if committed is not None:
                self._state.events.add("Warning", "RolledBack", model, committed.reason)
                self._wake(model)
        finally:
            self._busy.discard(model)

    def _put(self, desired_deployment: DesiredDeployment, due: RollbackDecision) -> DeploymentRevision | None:
        present = desired_deployment.revision
        for revision in self._registry.deployments.history(
            desired_deployment.model, before=present.number, limit=_SEARCHED
        ):
            spec = revision.spec
            if spec.deleted or not self._runs(revision, due.goal):
                continue
            back = pinned(spec, present.spec)
            reason = f"{PREFIX} to revision {revision.number} ({back.reference}): {due.evidence}"
            return self._registry.deployments.put(back, after=present, actor=ACTOR, reason=reason)
        return None

    def _runs(self, revision: DeploymentRevision, goal: Target) -> bool:
        spec = revision.spec
        if spec.version != goal.version:
            return False
        try:
            return self._desired_state.prepare(spec.model, spec.version, spec.settings).target == goal
        except (InvalidInputError, NotFoundError):
            return False


def _observed(server: TrackedServer, model: str) -> ObservedReplica:
    unit = server.unit(model)
    return (unit.facts or ReplicaObservation()).with_record(unit.record)
