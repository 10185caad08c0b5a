"""Keeps transition times of conditions across restarts and leader changes. Mutable; belongs to the loop.

If a new process finds a model in the state in which the old process left it, its conditions keep their transition
times, although the model must be proved again. If the new process had to load the model itself, that is a transition.

A model that was never loaded has no record: its conditions hold since its revision was committed (`never_loaded`), and
every reader assumes that. So thousands of idle deployments cause no writes.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from controlplane.domain.conditions import Condition, ConditionStatus, DeploymentCondition
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import ControlPlaneError
from controlplane.lifecycle.replica import Replica
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.tasks import TaskRunner
from controlplane.registry.condition_log import ConditionLog

logger = logging.getLogger(__name__)

PART = "conditions"
_AT_ONCE = 1000
"""Number of models that one call of `look` works on: about 50 ms of the event loop."""
Times = Mapping[str, tuple[str, datetime]]
"""Status and transition time by condition type."""

_NEVER_LOADED = {
    DeploymentCondition.LOADED: ConditionStatus.FALSE,
    DeploymentCondition.PROVED: ConditionStatus.FALSE,
    DeploymentCondition.READY: ConditionStatus.FALSE,
    DeploymentCondition.PROGRESSING: ConditionStatus.FALSE,
    DeploymentCondition.DEGRADED: ConditionStatus.FALSE,
    DeploymentCondition.HEALTHY: ConditionStatus.UNKNOWN,
}


def never_loaded(revised_at: datetime) -> dict[str, tuple[str, datetime]]:
    """Return the conditions of a model without a record: not loaded since its revision was committed."""
    return {kind.value: (status.value, revised_at) for kind, status in _NEVER_LOADED.items()}


def resumed(now: Sequence[Condition], before: Times) -> tuple[Condition, ...]:
    """Return the present conditions, with the earlier transition times of those whose status is the same."""
    return tuple(
        replace(one, last_transition_time=before[one.type][1])
        if one.type in before and before[one.type][0] == one.status.value
        else one
        for one in now
    )


class ConditionHistory:
    """Reads the kept conditions at the start, and writes those that changed since.

    Args:
        state: The loop's state.
        background: Reads and writes beside the loop.
        condition_log: The persistent log.
        status: Gives the status of a deployment.
        leading: Whether this process may write.
    """

    def __init__(
        self,
        state: LoopState,
        background: TaskRunner,
        condition_log: ConditionLog,
        *,
        status: Callable[[str], DeploymentStatus | None],
        leading: Callable[[], bool],
    ) -> None:
        self._state = state
        self._background = background
        self._condition_log = condition_log
        self._status = status
        self._leading = leading
        self._recalled = False
        self._reading = False
        self._writing = False
        self._written: dict[str, dict[str, Any]] = {}
        self._touched = state.follow()
        self._unwritten: set[str] = set()

    def look(self) -> None:
        """Start the reads and writes that are due for a bounded number of models; the rest follows at the next call."""
        if not self._recalled:
            if not self._reading:
                self._reading = True
                self._background.spawn(self._recall(), "read condition history")
            return
        touched = sorted(itertools.islice(self._touched, _AT_ONCE))
        for model in touched:
            for server in self._state.servers.values():
                if (unit := server.units.get(model)) is not None:
                    self._resume(unit)
        self._unwritten.update(touched)
        self._touched.difference_update(touched)
        if self._leading() and not self._writing:
            models = sorted(itertools.islice(self._unwritten, _AT_ONCE))
            self._unwritten.difference_update(models)  # models that cannot be written are added again
            changed = {
                model: found
                for model in models
                if model in self._state.deployed
                and (found := self._found(model)) is not None
                and self._differs(model, found)
            }
            # A deployment that is created again under the same name starts without history. A former leader may have
            # missed the removal.
            gone = [model for model in models if model in self._written and self._gone(model)]
            if changed or gone:
                self._writing = True
                self._background.spawn(self._write(changed, gone), "write condition history")

    def _resume(self, unit: Replica) -> None:
        if unit.resumed or not unit.settled:
            return
        unit.resumed = True
        before = self._before(unit)
        if before and unit.record.switched is None:
            unit.conditions = resumed(unit.conditions, before)
            self._state.touch((unit.model,), moves=False)

    def _before(self, unit: Replica) -> Times:
        """Return the conditions before this process observed the model; empty if they were others, or are unknown."""
        if unit.model in self._written:
            return _times(self._written[unit.model].get(unit.server))
        revision = self._state.deployed.get(unit.model)
        assumed = {} if revision is None else never_loaded(revision.at)
        same = {one.type: one.status.value for one in unit.conditions} == {
            kind: one for kind, (one, _) in assumed.items()
        }
        return assumed if same else {}

    def _differs(self, model: str, found: Mapping[str, Any]) -> bool:
        """Return whether conditions differ from those that a reader of the store assumes now."""
        if model in self._written:
            return found != self._written[model]
        assumed = _entry(never_loaded(self._state.deployed[model].at))
        return any(entry != assumed for entry in found.values())

    def _gone(self, model: str) -> bool:
        """Return whether a model's deployment was removed and no server has the model any more."""
        desired_deployment = self._state.desired_state.get(model)
        if desired_deployment is None or not desired_deployment.revision.spec.deleted:
            return False
        status = self._status(model)
        return status is not None and status.phase is Phase.UNLOADED

    def _found(self, model: str) -> dict[str, Any] | None:
        """Return a model's conditions on all its servers; None while they are changing."""
        found: dict[str, Any] = {}
        for name, server in self._state.servers.items():
            unit = server.units.get(model)
            if unit is None or unit.reported_phase is None:
                continue
            if not (unit.settled and unit.resumed):
                return None
            found[name] = _entry(
                {
                    one.type: (one.status.value, one.last_transition_time)
                    for one in unit.conditions
                    if one.last_transition_time is not None
                }
            )
        return found

    async def _recall(self) -> None:
        try:
            found = await asyncio.to_thread(self._condition_log.all)
        except ControlPlaneError as error:
            logger.info("failed to read the condition history; retrying: %s", error)
        else:
            self._written = {model: dict(body.get(PART, {})) for model, body in found.items()}
            self._recalled = True
            self._touched.update(self._state.desired_state, self._written)
        finally:
            self._reading = False

    async def _write(self, changed: Mapping[str, dict[str, Any]], gone: Collection[str]) -> None:
        def write(model: str) -> bool:
            if not self._leading():
                return False
            if model not in gone:
                return self._condition_log.put(
                    model, PART, changed[model], actor="reconciler", reason="conditions changed"
                )
            self._condition_log.remove(model)
            return True

        try:
            for model in (*gone, *changed):
                try:
                    if not await asyncio.to_thread(write, model):
                        self._unwritten.add(model)
                        continue
                except ControlPlaneError as error:
                    logger.info("failed to write the conditions of %s; retrying: %s", model, error)
                    self._unwritten.add(model)
                    continue
                if model in gone:
                    self._written.pop(model, None)
                else:
                    self._written[model] = changed[model]
        finally:
            self._writing = False


def _entry(times: Times) -> dict[str, list[str]]:
    """Return the entry of one server in a record."""
    return {kind: [status, at.isoformat()] for kind, (status, at) in times.items()}


def _times(value: Any) -> Times:
    """Parse the entry of one server; return an empty mapping if its format is unknown."""
    try:
        return {str(kind): (str(status), datetime.fromisoformat(at)) for kind, (status, at) in value.items()}
    except (AttributeError, TypeError, ValueError):
        return {}
