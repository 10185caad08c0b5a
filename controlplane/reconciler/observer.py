"""Applies what was read: the desired state from the bucket, and the observed state from snapshots and readings."""

import time

from controlplane.domain.advisories import warnings_for
from controlplane.domain.states import ServerState
from controlplane.domain.units import size_text
from controlplane.lifecycle.actions import Prove
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.history import Backoff
from controlplane.lifecycle.observation import observed
from controlplane.lifecycle.replica import Replica
from controlplane.reconciler.external_changes import ExternalChangeDetector
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.messages import ReadingTaken, RepositoryCleaned, SnapshotTaken
from controlplane.reconciler.remediation import ServerRemediator
from controlplane.reconciler.server_state import TrackedServer
from controlplane.reconciler.tasks import TaskRunner
from controlplane.servers.snapshot import ServerSnapshot


class Observer:
    """Updates the loop's state, and marks the models that changed.

    Args:
        state: The loop's state.
        background: Takes snapshots and readings.
        remediator: Monitors the servers' health.
        external_changes: Detects changes by other clients.
        backoff: Pause after a failed step.
    """

    def __init__(
        self,
        state: LoopState,
        background: TaskRunner,
        remediator: ServerRemediator,
        external_changes: ExternalChangeDetector,
        backoff: Backoff,
    ) -> None:
        self._state = state
        self._background = background
        self._remediator = remediator
        self._external_changes = external_changes
        self._backoff = backoff

    def adopt(self, *desired_state: DesiredDeployment) -> None:
        """Apply these revisions as the desired state."""
        for desired_deployment in desired_state:
            if self._take_in(desired_deployment):
                for server in self._state.servers.values():
                    self._state.plan_again(server, desired_deployment.model)

    def seen(self, seen: SnapshotTaken) -> None:
        """Apply a snapshot of a server."""
        server, snapshot = seen.server, seen.snapshot
        server.looking = None
        before, server.snapshot, server.observed_at = server.snapshot, snapshot, self._state.clock()
        ready = snapshot.state is ServerState.READY
        server.away_since = None if ready else server.away_since or time.monotonic()
        if snapshot.state is not before.state:
            message = f"Triton {snapshot.version} answers" if ready else snapshot.message
            self._state.events.add("Normal" if ready else "Warning", f"Server{snapshot.state}", server.name, message)
        if ready and snapshot.version != server.advised:
            server.advised = snapshot.version
            if warnings := warnings_for(snapshot.version, embedded=server.managed.embedded is not None):
                self._state.events.add("Warning", "VulnerableTriton", server.name, "; ".join(warnings))
        restarts = snapshot.generation != before.generation
        # An action that ended in the meantime may have left an observation of a server that does not answer.
        known = any(server.units[model].facts is not None for model in server.present)
        if restarts or (not ready and (known or before.state is ServerState.READY)):
            for unit in server.units.values():
                unit.lost(restarted=restarts or server.managed.embedded is None)
                server.keep_watch(unit)
            server.scheduler.lost(restarted=restarts)
            self._state.plan_all_again(server)
        if restarts:
            server.guard.on_restarted(self._state.events, self._state.clock())
        if ready and not server.scheduler.accounts.known:
            self._background.gauge(server)
        if ready:
            for model in self._worth_seeing(server, None if restarts or not server.well else before):
                self._take_in_facts(server, server.unit(model), seen.began)
            if not any(server.units[model].doing for model in server.present):
                server.waits = 0
        server.well = ready
        self._remediator.look(server)
        self._state.moved.add(server.name)
        if server.look_again:
            server.look_again = False
            self._background.look(server)

    def gauged(self, gauged: ReadingTaken) -> None:
        """Apply a reading of a server."""
        server, reading = gauged.server, gauged.reading
        server.gauging = None
        scheduler = server.scheduler
        server.server_health.metrics = reading.metrics
        if server.away or reading.generation != server.snapshot.generation:
            return
        self._external_changes.count(server, reading)
        present = [server.units[model] for model in server.present]
        for unit in present:
            if unit.watched(reading, gauged.began):
                self._state.plan_again(server, unit.model)
        known = scheduler.accounts.known
        proving = [unit.model for unit in present if unit.doing and isinstance(unit.doing.action, Prove)]
        self._background.keep(server, scheduler.take(reading, proving, gauged.began, self._state.clock()))
        if scheduler.accounts.known and not known:
            self._state.plan_all_again(server)  # no action began before the free memory was known
        self._state.moved.add(server.name)
        for device, size in scheduler.unaccounted():
            self._state.events.add(
                "Warning",
                "UnaccountedMemory",
                server.name,
                f"{size_text(size)} on {device} are not attributed to any model; they reduce the available budget",
            )

    def cleaned(self, cleaned: RepositoryCleaned) -> None:
        """Apply the result of cleaning a server's model repository."""
        cleaned.server.cleaning, cleaned.server.cleaned = None, cleaned.done
        self._state.plan_all_again(cleaned.server)

    def _worth_seeing(self, server: TrackedServer, before: ServerSnapshot | None) -> list[str]:
        """Return the models that a snapshot may show changes of.

        Args:
            server: The server, with the new snapshot.
            before: The previous snapshot that was applied; None if everything is new.
        """
        desired_state = self._state.desired_state
        if before is None:
            return list(desired_state)
        return sorted((server.snapshot.differs(before) | server.present | server.awaited) & desired_state.keys())

    def _take_in_facts(self, server: TrackedServer, unit: Replica, began: int) -> None:
        """Apply what a snapshot that began at the given step shows of a model."""
        if unit.task is not None:
            return
        facts = observed(server.snapshot, unit.model) if unit.changed <= began else None
        if facts is None:
            # Our actions since the snapshot began are newer than the snapshot, or the snapshot is inconclusive.
            server.awaited.add(unit.model)
            server.look_again = server.look_again or unit.facts is None
            return
        known, record = unit.facts, unit.record
        unit.see(self._external_changes.judge(server, unit, facts))
        unit.seen = began
        server.awaited.discard(unit.model)
        server.scheduler.see(unit.model, facts, self._state.step, self._state.clock())
        server.keep_watch(unit)
        changed = unit.facts != known or unit.record is not record
        if changed or unit.doing is not None or unit.stale_since is not None:
            self._state.plan_again(server, unit.model)

    def _take_in(self, desired_deployment: DesiredDeployment) -> bool:
        """Apply a revision as the desired state, unless it or a newer one is applied already; return whether it was."""
        state = self._state
        known = state.desired_state.get(desired_deployment.model)
        if known is not None and desired_deployment.revision.number <= known.revision.number:
            # The same revision matters again only if its problem is gone, for example because it was signed since.
            repaired = (
                desired_deployment.revision.number == known.revision.number
                and known.problem
                and not desired_deployment.problem
            )
            if not repaired:
                return False
        state.adopt(desired_deployment)
        if known is not None or not desired_deployment.revision.spec.deleted:
            state.events.add("Normal", "RevisionObserved", desired_deployment.model, desired_deployment.sentence)
        now = state.clock()
        for server in state.servers.values():
            unit = server.unit(desired_deployment.model)
            unit.adopt(desired_deployment, now, self._backoff)
            server.scheduler.adopt(desired_deployment.model)
            if unit.facts is None and unit.task is None and server.trouble is None:
                facts = observed(server.snapshot, desired_deployment.model) if not unit.changed else None
                if facts is None:
                    self._background.look(server)
                else:
                    unit.facts = self._external_changes.judge(server, unit, facts)
                    server.scheduler.see(desired_deployment.model, unit.facts, state.step, now)
            server.keep_watch(unit)
        return True
