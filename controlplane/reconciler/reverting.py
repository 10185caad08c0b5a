"""Going back to the version before where the new one failed and the deployment says so (`auto_rollback`).

The decision is pure. It goes back only to what answers at this moment and passed its proof here, and never from a
revision that is such a step back itself: so two versions that both fail are not changed for each other for ever.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from controlplane.domain.rollback import pinned
from controlplane.errors import CommitConflictError, ControlPlaneError, InvalidInputError, NotFoundError
from controlplane.reconciler.background import Background
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.fleet import KnownServer
from controlplane.reconciler.state import LoopState
from controlplane.reconciler.types import Mark, ObservedModel, Target
from controlplane.reconciler.wishes import ACTOR, Wish, Wishes
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry

logger = logging.getLogger(__name__)

TRIES = 3
"""So many failures in a row, or faults within the window of `record.CRASH_WINDOW`, and it is gone back."""
PREFIX = "automatic rollback"
_SEARCHED = 100
_EVIDENCE_LENGTH = 600


@dataclass(frozen=True, slots=True)
class Reversal:
    """A step back that is due.

    Attributes:
        goal: What answers in place of what is wanted.
        evidence: Why, as one sentence.
    """

    goal: Target
    evidence: str


def reversal(wish: Wish, servers: Iterable[tuple[str, ObservedModel]]) -> Reversal | None:
    """Decide whether a deployment goes back.

    Args:
        wish: What is wanted.
        servers: What is there, by server.
    """
    revision, spec = wish.revision, wish.revision.spec
    if not spec.settings.auto_rollback or not spec.loaded or spec.deleted or spec.trial is not None:
        return None
    if revision.actor == ACTOR and revision.reason.startswith(PREFIX):
        return None
    for name, observed in servers:
        failure, answering = observed.failures.get(wish.wanted), observed.answering
        if failure is None or (failure.retry_at is not None and failure.count < TRIES) or answering is None:
            continue
        present = Target(answering, observed.digest or "")
        if present != wish.wanted and present in wish.targets and observed.mark(answering) is Mark.PASSED:
            what = f"version {wish.wanted.version} failed on {name}: {failure.message}"
            return Reversal(present, what[:_EVIDENCE_LENGTH])
    return None


class Reverter:
    """Commits steps back.

    Args:
        state: What the loop knows.
        wishes: Tells what a revision runs.
        registry: The bucket.
        background: Runs what takes time.
        leading: Whether this process may change anything.
        wake: Says that a deployment changed.
    """

    def __init__(
        self,
        state: LoopState,
        wishes: Wishes,
        registry: Registry,
        background: Background,
        *,
        leading: Callable[[], bool],
        wake: Callable[[str], None],
    ) -> None:
        self._state = state
        self._wishes = wishes
        self._registry = registry
        self._background = background
        self._leading = leading
        self._wake = wake
        self._busy: set[str] = set()
        self._touched = state.follow()

    def look(self) -> None:
        """Begin the steps back that are due. The leader's alone."""
        if not self._leading():
            return
        for model in sorted(self._touched):
            wish = self._state.wishes.get(model)
            if wish is None or not wish.revision.spec.settings.auto_rollback or not wish.targets:
                self._touched.discard(model)
                continue
            units = (server.units.get(model) for server in self._state.servers.values())
            if not any(unit is not None and wish.wanted in unit.record.failures for unit in units):
                self._touched.discard(model)
                continue
            if model in self._busy:
                continue
            due = reversal(wish, [(server.name, _observed(server, model)) for server in self._state.servers.values()])
            if due is not None:
                self._busy.add(model)
                self._background.spawn(self._commit(wish, due), f"roll {model} back")

    async def _commit(self, wish: Wish, due: Reversal) -> None:
        model = wish.model
        try:
            committed = await asyncio.to_thread(self._put, wish, due)
        except CommitConflictError:
            logger.info("%s was changed by somebody else; it is not rolled back", model)
        except ControlPlaneError as error:
            logger.warning("%s cannot be rolled back now: %s", model, error)
        else:
            if committed is not None:
                self._state.events.add("Warning", "RolledBack", model, committed.reason)
                self._wake(model)
        finally:
            self._busy.discard(model)

    def _put(self, wish: Wish, due: Reversal) -> DeploymentRevision | None:
        present = wish.revision
        for revision in self._registry.deployments.history(wish.model, before=present.number, limit=_SEARCHED):
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
            return self._wishes.prepare(spec.model, spec.version, spec.settings).target == goal
        except (InvalidInputError, NotFoundError):
            return False


def _observed(server: KnownServer, model: str) -> ObservedModel:
    unit = server.unit(model)
    return (unit.facts or Facts()).with_record(unit.record)
