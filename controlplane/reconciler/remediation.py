"""Monitors the servers' health: updates their conditions, and kills unresponsive ones. The state is kept in their `ServerHealth`."""  # noqa: E501

import logging
import os
import signal
import time

from controlplane.domain.conditions import Condition, ConditionStatus, ServerCondition, kept
from controlplane.domain.index_states import LOADING
from controlplane.domain.names import CANDIDATE_SUFFIX
from controlplane.domain.states import ServerState
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.server_state import TrackedServer
from controlplane.servers.health import HealthSignals, Remediation, remediation, server_conditions
from controlplane.triton.embedded.processes import process_state
from controlplane.triton.embedded.server import EmbeddedTriton

logger = logging.getLogger(__name__)

_TOLD = {
    ServerCondition.METRICS_AVAILABLE: ConditionStatus.FALSE,
    ServerCondition.AGENT_AVAILABLE: ConditionStatus.FALSE,
    ServerCondition.LOADS_STUCK: ConditionStatus.TRUE,
    ServerCondition.DISK_PRESSURE: ConditionStatus.TRUE,
    ServerCondition.SHARED_MEMORY_PRESSURE: ConditionStatus.TRUE,
}
"""Conditions reported in events, with their bad status. Readiness is reported by the observer."""


class ServerRemediator:
    """Monitors the servers and repairs them.

    Args:
        state: The loop's state.
        unresponsive_after_seconds: How long a server may be silent, or continue a load beyond its deadline.
        disk_pressure_threshold: Share of free space below which a disk is under pressure.
    """

    def __init__(self, state: LoopState, *, unresponsive_after_seconds: float, disk_pressure_threshold: float) -> None:
        self._state = state
        self._unresponsive_after_seconds = unresponsive_after_seconds
        self._disk_pressure_threshold = disk_pressure_threshold

    def look(self, server: TrackedServer) -> None:
        """Evaluate the newest snapshot of a server, report changed conditions, and take the required action."""
        now, embedded = time.monotonic(), server.managed.embedded
        allowed = server.managed.client.timeouts.load_seconds
        loads = {
            entry.model: 0.0 if unit.load_overdue else allowed
            for entry in server.snapshot.index
            if entry.state == LOADING
            and (unit := server.units.get(entry.model.removesuffix(CANDIDATE_SUFFIX))) is not None
            and unit.task is None  # else our own action waits for it
        }
        there = embedded is not None and embedded.state is ServerState.READY
        server.server_health.seen(server.snapshot, process_there=there, loads=loads, now=now)
        signs = server.server_health.signs(server.snapshot, supervised=embedded is not None, now=now)
        before = server.server_health.conditions
        found = server_conditions(signs, self._disk_pressure_threshold, self._unresponsive_after_seconds)
        server.server_health.conditions = kept(before, found, self._state.clock())
        self._tell(server, before)
        if embedded is not None:
            self._treat(server, embedded, signs, now)

    def _treat(self, server: TrackedServer, embedded: EmbeddedTriton, signs: HealthSignals, now: float) -> None:
        match remediation(signs, self._unresponsive_after_seconds):
            case Remediation.KILL:
                why = self._why(embedded, signs)
                server.server_health.killed()
                self._state.events.add("Warning", "ServerKilled", server.name, f"{why}; it is killed and restarted")
                embedded.kill(why)
            case Remediation.END_LOADS:
                stuck = [
                    load
                    for load in signs.stuck
                    if load.ended is None and load.seconds >= self._unresponsive_after_seconds
                ]
                server.server_health.ended(stuck, now)
                for load in stuck:
                    processes = embedded.processes_of(load.name, load.version)
                    for process in processes:
                        _kill(process)
                    what = f"{load.name}:{load.version} has been loading for {load.seconds:.0f} s beyond its deadline"
                    done = f"its process {processes[0]} is killed" if processes else "it has no process of its own"
                    self._state.events.add("Warning", "LoadKilled", server.name, f"{what}; {done}")

    def _why(self, embedded: EmbeddedTriton, signs: HealthSignals) -> str:
        if signs.silent_seconds is None:
            stuck = ", ".join(f"{load.name}:{load.version}" for load in signs.stuck)
            return f"it does not end the load of {stuck}"
        state = process_state(embedded.pid) if embedded.pid else ""
        seen = f" (process {embedded.pid} is {state})" if state else ""
        return f"it has not answered for {signs.silent_seconds:.0f} s although its process exists{seen}"

    def _tell(self, server: TrackedServer, before: tuple[Condition, ...]) -> None:
        known = {one.type: one for one in before}
        for one in server.server_health.conditions:
            bad, earlier = _TOLD.get(ServerCondition(one.type)), known.get(one.type)
            if bad is None or ConditionStatus.UNKNOWN is one.status:
                continue
            if one.status is bad and (earlier is None or earlier.status is not bad):
                self._state.events.add("Warning", one.reason, server.name, one.message)
            elif one.status is not bad and earlier is not None and earlier.status is bad:
                self._state.events.add(
                    "Normal", one.reason, server.name, one.message or f"{one.type} is {one.status.value}"
                )


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError) as error:
        logger.debug("failed to kill process %d: %s", process, error)
