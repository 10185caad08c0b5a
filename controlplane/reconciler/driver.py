"""Advances a model on a server: asks the planner, begins the action, and applies its outcome."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from controlplane.domain.states import Phase
from controlplane.gpu.base import DeviceKind
from controlplane.lifecycle.actions import Action, Load, Prove, Unload, Wait
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.executor import Executor
from controlplane.lifecycle.history import Backoff
from controlplane.lifecycle.planner import choose_goal, plan
from controlplane.lifecycle.qualification import QualificationSpec
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import DesiredReplica, ProofStatus, Target
from controlplane.lifecycle.status import Doing
from controlplane.reconciler.authority import Authority
from controlplane.reconciler.external_changes import ExternalChangeDetector
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.messages import ActionFinished, Message
from controlplane.reconciler.pipelines import obstacle, refresh
from controlplane.reconciler.proof_recorder import ProofRecorder
from controlplane.reconciler.server_state import TrackedServer
from controlplane.reconciler.tasks import TaskRunner
from controlplane.servers.readings import differences, read_server
from controlplane.triton.embedded.processes import since_boot

logger = logging.getLogger(__name__)


class ReplicaDriver:
    """Runs at most one action at a time for each model on each server.

    Args:
        state: The loop's state.
        background: Takes snapshots and readings.
        executor: Performs actions.
        external_changes: Detects changes by other clients.
        backoff: Pause after a failed step.
        proofs: Keeps passed proofs on record.
        post: Puts a message into the inbox.
        authority: Permissions of this process.
        probe_interval_seconds: Time between probes of a Ready model.
        poll_seconds: Time between readings of a server's counters.
    """

    def __init__(
        self,
        state: LoopState,
        background: TaskRunner,
        executor: Executor,
        external_changes: ExternalChangeDetector,
        backoff: Backoff,
        proofs: ProofRecorder,
        *,
        post: Callable[[Message], None],
        authority: Authority,
        probe_interval_seconds: float,
        poll_seconds: float,
    ) -> None:
        self._state = state
        self._background = background
        self._executor = executor
        self._external_changes = external_changes
        self._backoff = backoff
        self._proofs = proofs
        self._post = post
        self._authority = authority
        self._probe_interval_seconds = probe_interval_seconds
        self._poll_seconds = poll_seconds

    def drive(self, server: TrackedServer, unit: Replica) -> bool:
        """Plan the next action for one model on one server, and begin it if none is in flight.

        Only the cycle calls this.

        Returns:
            Whether an action began.
        """
        desired_deployment = self._state.desired_state.get(unit.model)
        if desired_deployment is None or unit.task is not None or unit.model not in server.places:
            return False
        unit.doing = None
        self._external_changes.compare(server, unit)
        refresh(self._state, server, unit.model)
        desired, now = server.desired(desired_deployment), self._state.clock()
        asked = blocked = False
        if server.trouble is None and unit.facts is not None and server.scheduler.accounts.known:
            action = self._next_action(desired, unit)
            if isinstance(action, Wait):
                unit.doing = Doing(action)
                self._background.look_later(server)
            elif isinstance(action, Load) and self._lacks_members(server, unit, action):
                pass
            elif action is not None and self._may(server, unit, desired_deployment, action):
                asked = not self._begin_or_ask(server, unit, desired_deployment, action)
            else:
                blocked = action is not None
        changed = asked
        if not asked and unit.task is None:
            changed = server.scheduler.queue.withdraw(unit.model)
        failure = unit.record.failures.get(desired_deployment.wanted)
        if failure is not None and failure.blocks(now):
            server.scheduler.failed(unit.model, failure.message)
        if server.has_place(unit.model) or unit.reported_phase is not None:  # a model that was never here has no news
            unit.announce(desired, server.trouble, now, self._state.events)
        self._believe(server, unit, desired)
        begun = unit.task is not None
        if begun or changed:
            server.scheduler.unjudged.add(unit.model)
        server.keep_watch(unit)
        at = None if begun else self._wakes(server, unit, desired)
        if blocked:  # the obstacle may disappear without a message
            soon = now + timedelta(seconds=self._poll_seconds)
            at = soon if at is None else min(at, soon)
        server.wake_at(unit, at)
        self._state.touch((unit.model,), moves=False)
        return begun

    def _lacks_members(self, server: TrackedServer, unit: Replica, action: Load) -> bool:
        """Return whether a pipeline must wait for its members; they mark it when they change."""
        why, stuck = obstacle(self._state, server, unit.model, action.target)
        if why:
            unit.doing = Doing(Wait(why), Phase.PENDING)
        if stuck:
            server.scheduler.failed(unit.model, why)
        return bool(why)

    def overlooked(self, server: TrackedServer, unit: Replica) -> bool:
        """Return whether an action is due for a model on a server, and no mark or timer would start it."""
        desired_deployment = self._state.desired_state.get(unit.model)
        if (
            desired_deployment is None
            or unit.doing is not None
            or unit.facts is None
            or unit.model not in server.places
        ):
            return False
        now = self._state.clock()
        if (
            server.trouble is not None
            or not server.scheduler.accounts.known
            or (unit.wakes_at and unit.wakes_at <= now)
        ):
            return False
        action = plan(server.desired(desired_deployment), unit.facts.with_record(unit.record), now)
        acts = self._authority.acts and server.cleaned
        return action is not None and (
            acts or isinstance(action, Wait) or self._may(server, unit, desired_deployment, action)
        )

    def _wakes(self, server: TrackedServer, unit: Replica, desired: DesiredReplica) -> datetime | None:
        if server.trouble is not None:
            return None
        return unit.wakes(
            desired,
            self._state.clock(),
            interval_seconds=self._probe_interval_seconds,
            poll_seconds=self._poll_seconds,
        )

    def done(self, done: ActionFinished) -> None:
        """Apply the end of an action."""
        server, unit, outcome, now = done.server, done.unit, done.outcome, self._state.clock()
        unit.task = unit.doing = None
        unit.changed = self._state.step
        desired_deployment = self._state.desired_state.get(unit.model)
        reading = done.reading if done.reading and done.reading.generation == server.snapshot.generation else None
        measured = server.scheduler.ended(desired_deployment, unit, outcome, reading, done.grown, self._state.step, now)
        self._background.keep(server, measured)
        if outcome.repaired:
            what = "; ".join(outcome.repaired[:5])
            message = f"on {unit.server}: {what}; the files were staged again from the published ones before the load"
            self._state.events.add("Warning", "StagedFilesRepaired", unit.model, message)
        if server.scheduler.out_of_memory(desired_deployment, unit, outcome):
            unit.facts = None
            message = f"on {unit.server}: {outcome.error}; its footprint is corrected, and other models make room"
            self._state.events.add("Warning", "OutOfMemory", unit.model, message)
        elif (refused := server.scheduler.gpus_refused(unit, outcome, now)) is not None:
            unit.facts = None
            if refused:
                self._state.events.add("Warning", "GpuRejected", server.name, refused)
        else:
            unit.settle(outcome, now=now, backoff=self._backoff, events=self._state.events)
        self._proofs.note(server, desired_deployment, outcome)
        if outcome.report is not None:
            unit.pending_qualification = None
            version = server.snapshot.version
            self._background.keep_report(outcome.report.model_copy(update={"triton_version": version}))
        if unit.facts is None:
            self._background.look(server)
        self._state.moved.add(server.name)
        self._state.plan_again(server, unit.model)

    def _believe(self, server: TrackedServer, unit: Replica, desired: DesiredReplica) -> None:
        """Clear the stale mark, set after a pause of the process, once the deployment has settled."""
        if unit.stale_since is None or unit.seen < unit.stale_since or not self._authority.informed:
            return
        if server.trouble is None and unit.facts is not None and unit.task is None:
            status = unit.status(desired, server.trouble, self._state.clock())
            if status.phase.settled:
                unit.stale_since = None

    def _begin_or_ask(
        self, server: TrackedServer, unit: Replica, desired_deployment: DesiredDeployment, action: Action
    ) -> bool:
        """Begin an action and return True; if it needs memory that is not reserved, queue it and return False."""
        need = server.scheduler.queue.needs(desired_deployment, unit, action) if isinstance(action, Load) else None
        if need is None or server.scheduler.queue.granted(unit.model, need):
            self._begin(server, unit, desired_deployment, action)
            return True
        request = server.scheduler.queue.ask(unit.model, need, self._state.clock())
        unit.doing = Doing(Wait(f"waits for memory: {request.why}"), Phase.PENDING)
        return False

    def _next_action(self, desired: DesiredReplica, unit: Replica) -> Action | None:
        assert unit.facts is not None
        now = self._state.clock()
        observed = unit.facts.with_record(unit.record)
        action = plan(desired, observed, now)
        if action is None and desired.loaded:
            goal = choose_goal(desired, observed, now)
            proved = goal and goal.version in observed.loaded and observed.mark(goal.version) is ProofStatus.PASSED
            if goal and proved and unit.pending_qualification == goal and self._authority.acts:
                because = f"version {goal.version} answers and has not been qualified yet"
                return Prove(goal, candidate=False, because=because, examine=True)
            if goal and proved and unit.probe_due(self._probe_interval_seconds, self._poll_seconds):
                because = f"periodic probe of version {goal.version}"
                return Prove(goal, candidate=False, because=because, light=True)
        return action

    def _exam(
        self, unit: Replica, desired_deployment: DesiredDeployment, action: Action, *, awaited: bool
    ) -> QualificationSpec | None:
        """Return what a proof checks besides the answers, once for each desired version that comes to a server.

        If requests wait for the version and there is no active version to compare it with, or if it was loaded once
        and is active already, the qualification cannot prevent activation, so it runs afterwards. The new version of a
        rollout is compared under real traffic; it is qualified after its promotion, so that it has a report like any
        other version.
        """
        if not isinstance(action, Prove) or action.light or not self._authority.acts or unit.facts is None:
            return None
        if action.target == desired_deployment.trial:
            unit.pending_qualification = action.target
        if action.target != desired_deployment.wanted or (action.target in unit.record.cleared and not action.examine):
            return None
        answering = max(unit.facts.loaded, default=None)
        present = Target(answering, unit.facts.digest or "") if answering is not None else None
        settings = desired_deployment.revision.spec.settings
        awaited = awaited or len(unit.facts.loaded) > 1
        if awaited and not action.examine and not action.candidate and present == action.target:
            unit.pending_qualification = action.target
            return None
        return QualificationSpec(
            peer=desired_deployment.prepared.get(present) if present is not None and present != action.target else None,
            max_latency_ratio=settings.max_latency_ratio,
            max_memory_ratio=settings.max_memory_ratio,
        )

    def _may(self, server: TrackedServer, unit: Replica, desired_deployment: DesiredDeployment, action: Action) -> bool:
        """Return whether this instance may perform an action. Every instance may prove a version that stays loaded."""
        if isinstance(action, Prove) and (not action.candidate or action.target == desired_deployment.trial):
            return True
        # The lease may have returned since external changes were last checked; they are reported first, at the next
        # snapshot.
        return self._authority.acts and server.cleaned and unit.baseline_observation is unit.facts

    def _begin(
        self, server: TrackedServer, unit: Replica, desired_deployment: DesiredDeployment, action: Action
    ) -> None:
        target = getattr(action, "target", None)
        prepared = desired_deployment.prepared.get(target) if target is not None else None
        awaited = server.scheduler.model_state(unit.model).demand.since is not None
        exam = self._exam(unit, desired_deployment, action, awaited=awaited)
        gpus = server.gpus_for(unit.model, prepared, action)
        unit.doing, unit.began = Doing(action), since_boot()

        def progress(phase: Phase) -> None:
            if unit.doing is not None and unit.doing.action is action:
                unit.doing = Doing(action, phase)
                self._state.touch((unit.model,), moves=False)

        managed, scheduler = server.managed, server.scheduler
        loads = isinstance(action, Load) and scheduler.model_state(unit.model).ticket.request is not None
        proves = isinstance(action, Prove) and unit.record.marks.get(action.target.version) is not ProofStatus.PASSED
        # A request waits for the load: memory that the processes report afterwards is not measured before it.
        compares = managed.embedded is None or any(
            one.kind is not DeviceKind.HOST for one in scheduler.accounts.devices
        )
        scheduler.began(unit, action, self._state.clock())

        async def act() -> None:
            before = await read_server(managed, counters=False) if loads and compares and managed.devices else None
            outcome = await self._executor.run(managed, unit.model, action, prepared, progress, exam, gpus)
            after = None
            if managed.devices and (loads or proves or isinstance(action, Unload)):
                after = await read_server(managed, counters=False)
            self._post(ActionFinished(server, unit, outcome, after, differences(before, after)))

        logger.debug("%s on %s: %s", unit.model, unit.server, action)
        unit.task = self._background.spawn(act(), f"{type(action).__name__} {unit.model}")
