"""The control loop: observes, plans, lets the executor act, and reports.

One task owns all state. Every event (a call of `wake`, a finished snapshot, a finished action, a timer) is a message in
its inbox, and a handler never waits. Slow work (a snapshot, a read of the store, an action) runs in its own task and
sends a message when it is done; a model with an action in flight is not touched until then.

The handlers: `observer` applies observations, `placement` assigns models to servers, `driver` takes the next action for
a model on a server, `load_scheduler` admits loads, `queries` answers questions. Slow work is in `tasks`, the shared
state in `loop_state`.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from controlplane.domain.cordons import Cordons
from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.health import ServerHealth
from controlplane.domain.names import CANDIDATE_SUFFIX
from controlplane.domain.states import DeploymentStatus, Event, Phase, ServerStatus
from controlplane.errors import ConflictError, NotFoundError
from controlplane.lifecycle.desired import DesiredStateResolver
from controlplane.lifecycle.events import EventLog, record_unreadable
from controlplane.lifecycle.executor import Executor
from controlplane.lifecycle.history import Backoff
from controlplane.lifecycle.traffic import TrafficDrainer
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.memory.views import ExplanationView, LoadPlanView, ModelMemoryView, ServerMemory
from controlplane.placement.views import (
    DefragmentationView,
    DrainPlanView,
    defragmentation_view,
    drain_plan_view,
)
from controlplane.placement.wanted import PoolDemand
from controlplane.reconciler.audit import Audit
from controlplane.reconciler.authority import Authority
from controlplane.reconciler.auto_rollback import AutoRollback
from controlplane.reconciler.condition_history import ConditionHistory
from controlplane.reconciler.cordons import CordonKeeper
from controlplane.reconciler.cycle import Cycle, CycleReport
from controlplane.reconciler.desired_state_reader import DesiredStateReader
from controlplane.reconciler.driver import ReplicaDriver
from controlplane.reconciler.external_changes import ExternalChangeDetector
from controlplane.reconciler.freshness import Freshness
from controlplane.reconciler.leader_election import Lease
from controlplane.reconciler.load_scheduler import LoadScheduler
from controlplane.reconciler.loop_metrics import LoopMetrics, PropagationLag
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.membership import Membership
from controlplane.reconciler.messages import (
    ActionFinished,
    CordonsRead,
    CycleTimer,
    DesiredStateChanged,
    DesiredStateRead,
    FootprintsKept,
    HoldsChanged,
    LeaseChanged,
    LoadRequested,
    Message,
    Paused,
    ReadingTaken,
    ReadTimer,
    Replaced,
    RepositoryCleaned,
    ServerJoined,
    ServerLeaving,
    ServerLeft,
    SnapshotRequested,
    SnapshotTaken,
)
from controlplane.reconciler.model_holds import HoldCache
from controlplane.reconciler.observer import Observer
from controlplane.reconciler.placement import PlacementController
from controlplane.reconciler.proof_recorder import ProofRecorder
from controlplane.reconciler.queries import ReconcilerQueries
from controlplane.reconciler.remediation import ServerRemediator
from controlplane.reconciler.rollout_readiness import RolloutReadiness
from controlplane.reconciler.routes import Route, RouteTable
from controlplane.reconciler.server_state import TrackedServer, report
from controlplane.reconciler.tasks import TaskRunner
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.holds import ModelHold
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import MemorySettings, PlacementSettings, ReconcilerSettings
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

_BATCH = 64
"""Maximum number of messages that are applied before a cycle."""
_BATCH_SECONDS = 0.05
"""Time after which no further message is applied before a cycle: one may contain hundreds of deployments."""
_STATUSES_AT_ONCE = 256
"""Number of statuses that are computed before other tasks of the event loop have their turn."""
_DEMAND_HOLD_SECONDS = 60.0
"""Length of the hold by which a standby passes a load request on to the leader."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Brings the Triton servers to the state that the deployments in the bucket describe.

    Belongs to the event loop in which `start` was called; only `wake` may be called from other threads.

    Args:
        registry: The bucket.
        servers: The Triton servers. Each deployment is placed on as many of them as it has replicas.
        settings: Intervals and back-off.
        memory: Memory budgets and the eviction policy.
        placement: Grace periods for unavailable servers, and scaling rules.
        clock: Gives the time (UTC).
        lease_store: The bucket through a client that only the lease uses; None shares the registry's client.
        may_lead: Whether this process may become the leader; otherwise it only observes.
    """

    def __init__(
        self,
        registry: Registry,
        servers: Sequence[ManagedServer],
        settings: ReconcilerSettings,
        *,
        memory: MemorySettings | None = None,
        placement: PlacementSettings | None = None,
        clock: Callable[[], datetime] = _utc_now,
        lease_store: ObjectStore | None = None,
        may_lead: bool = True,
    ) -> None:
        self._settings = settings
        self._memory = memory or MemorySettings()
        self._registry = registry
        self._desired_state = DesiredStateResolver(registry)

        def track(server: ManagedServer) -> TrackedServer:
            scheduler = MemoryScheduler.of(server, self._memory, registry.footprints)
            return TrackedServer(server, scheduler, proofs=registry.proofs)

        self._state = LoopState({server.name: track(server) for server in servers}, EventLog(clock), clock)
        self._lease = Lease(
            lease_store or registry.store,
            seconds=settings.lease_seconds,
            on_change=lambda: self._post(LeaseChanged(self._lease.held)),
            may_lead=may_lead,
        )

        def leading() -> bool:
            return self._lease.held

        self._authority = authority = Authority(self._lease, servers, read_epoch=lambda: self._state.read_epoch)

        def acts() -> bool:
            return authority.acts

        def owns() -> bool:
            return authority.owns

        self._executor = Executor(
            registry,
            self._desired_state,
            term=lambda: authority.term,
            proof_timeout_seconds=settings.proof_timeout_seconds,
            records_first=settings.record_first_answers,
        )
        self._reader = DesiredStateReader(
            registry,
            self._desired_state,
            hand_over=lambda desired_state, epoch: self._post(DesiredStateRead(desired_state, epoch)),
            tell=lambda subject, why: record_unreadable(self._state.events, subject, why),
            may_follow=leading,
            epoch=lambda: self._lease.epoch,
        )
        self._read = asyncio.Event()
        self._holds = HoldCache(registry.holds, on_read=lambda: self._post(HoldsChanged()), may_sweep=leading)
        backoff = Backoff(settings.backoff_initial_seconds, settings.backoff_max_seconds)
        self._background = TaskRunner(
            self._state,
            post=self._post,
            leading=acts,
            owns=owns,
            registry=registry,
            interval_seconds=settings.interval_seconds,
        )
        external_changes = ExternalChangeDetector(
            self._state, complete=lambda: self._reader.complete, tenure=lambda: authority.tenure
        )
        self._driver = ReplicaDriver(
            self._state,
            self._background,
            self._executor,
            external_changes,
            backoff,
            ProofRecorder(self._background, registry.proofs, leading=acts),
            post=self._post,
            authority=authority,
            probe_interval_seconds=settings.probe_interval_seconds,
            poll_seconds=self._memory.poll_interval_seconds,
        )
        remediator = ServerRemediator(
            self._state,
            unresponsive_after_seconds=settings.unresponsive_after_seconds,
            disk_pressure_threshold=settings.disk_pressure_threshold,
        )
        self._observer = Observer(self._state, self._background, remediator, external_changes, backoff)
        self._freshness = Freshness(
            self._state, authority, self._lease, settings.lease_seconds, self._background, post=self._post
        )
        self._placer = PlacementController(self._state, placement or PlacementSettings(), leading=owns)
        self._arranger = LoadScheduler(self._state, self._background, self._holds, backoff, leading=acts)
        self._routes = RouteTable(self._state)
        self._cycle = Cycle(self._state, self._placer, self._arranger, self._driver, self._routes, authority)
        self._reverter = AutoRollback(
            self._state, self._desired_state, registry, self._background, leading=leading, wake=self.wake
        )
        self._rememberer = ConditionHistory(
            self._state, self._background, registry.condition_log, status=self.status, leading=leading
        )
        self._cordons = CordonKeeper(
            self._state,
            registry.cordons,
            post=self._post,
            hints=self._placer.hints,
            max_age_seconds=settings.interval_seconds,
        )
        self._membership = Membership(
            self._state,
            track,
            self._background,
            authority,
            self._freshness,
            self._placer,
            self._cordons,
            external_changes,
        )
        self._answers = ReconcilerQueries(
            self._state, self._desired_state, registry, preview=self._placer.preview, cordon=self._cordons.status
        )
        self._audit = Audit(self._state, self._placer, self._driver, self._routes, self._answers)
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner: asyncio.Task[None] | None = None
        self._lags, self._lagging = PropagationLag(), self._state.follow()
        self._report = "not started"
        self._reporting = self._busy = False
        self._newest = CycleReport()
        self.loop_metrics = LoopMetrics()

    # Public interface

    async def start(self) -> None:
        """Take the lease if it is free, and start the loop."""
        self._loop = asyncio.get_running_loop()
        await self._lease.start()
        self._freshness.start()
        self._owner = asyncio.create_task(self._own(), name="reconciler")
        self._post(CycleTimer())
        self._post(ReadTimer())

    async def stop(self) -> None:
        """Stop acting. Triton completes the operations that it has begun; the next start observes their result."""
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        await self._background.stop()
        await self._reader.stop()
        await self._holds.stop()
        await self._cordons.stop()
        self._owner = self._loop = None
        self._executor.close()
        self._freshness.stop()
        await self._lease.stop()

    def wake(self, model: str | None = None) -> None:
        """Report a change in the bucket, so that the loop acts on it at once.

        Args:
            model: The model whose deployment or alias changed; None for any model.
        """
        if self._loop is None:
            return  # `start` reads everything anyway
        try:
            same = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            same = False
        if same:
            self._post(DesiredStateChanged(model))
        else:
            self._loop.call_soon_threadsafe(self._post, DesiredStateChanged(model))

    def status(self, model: str) -> DeploymentStatus | None:
        """Return the status of a deployment; None if it is unknown. No I/O."""
        return self._answers.status(model)

    def statuses(self) -> dict[str, DeploymentStatus]:
        """Return the statuses of all deployments, by model; removed ones only until they are unloaded."""
        return self._answers.statuses()

    def deployed(self) -> Mapping[str, DeploymentRevision]:
        """Return a live view of the newest revision of each deployment, by model. No I/O."""
        return self._answers.deployed()

    def propagation_lag(self) -> dict[str, float]:
        """Return how many seconds each lagging deployment has differed from its desired state. No I/O."""
        late = [model for model in self._lagging if not self._answers.is_current(model)][_STATUSES_AT_ONCE:]
        changed = self._lagging.difference(late)  # the cycle computes the other statuses within seconds
        self._lagging.intersection_update(late)
        return self._lags.see(self._state.clock(), changed, self._state.deployed, self.status)

    def with_objectives(self) -> frozenset[str]:
        """Return the deployed models that have an objective. No I/O."""
        return frozenset(self._state.promised)

    def record_event(self, type_: Literal["Normal", "Warning"], reason: str, subject: str, message: str) -> None:
        """Add an event of another part of the control plane."""
        self._state.events.add(type_, reason, subject, message)

    def health(self, model: str) -> tuple[ServerHealth, ...]:
        """Return the probe results of a model, by server. No I/O."""
        return self._answers.health(model)

    def servers(self) -> tuple[ServerStatus, ...]:
        """Return the newest status of the servers."""
        return self._answers.servers()

    def routes(self) -> Mapping[str, Route]:
        """Return the route of every proved model. No I/O.

        After a pause of the process there are no routes until the servers have been observed again.
        """
        return self._routes.routes if self._freshness.current else {}

    async def wait_routes(self) -> None:
        """Wait until the routes change."""
        await self._routes.changed.wait()

    @property
    def pauses(self) -> int:
        """How often this process was stopped for longer than the lease. Routes from before a pause are invalid."""
        return self._freshness.pauses

    def withheld(self, model: str, server: str) -> str:
        """Return why requests for a model must not be sent to a server on which it answers; empty if they may be."""
        return self._freshness.withheld(model, server)

    def refusal(self) -> str:
        """Return why this instance can have no model loaded, now or soon; empty if it can."""
        return self._freshness.refusal()

    @property
    def informed(self) -> bool:
        """Whether all deployments were read since the store was last unreachable for longer than the lease."""
        return self._authority.informed

    def trials(self) -> dict[str, RolloutReadiness]:
        """Return the state of every rollout in progress, by model. No I/O."""
        return self._answers.trials()

    def spec(self, model: str) -> DeploymentSpec | None:
        """Return the desired state of a model; None if it has no known deployment. No I/O."""
        return self._answers.spec(model)

    def outage_seconds(self, model: str) -> float:
        """Return how long no server of a model has been reachable; 0 if one is. No I/O."""
        return self._answers.outage_seconds(model)

    def takes_sequences(self, model: str) -> bool:
        """Return whether a model, also under its candidate's name, may have open sequences. No I/O."""
        return self._desired_state.takes_sequences(model.removesuffix(CANDIDATE_SUFFIX))

    def send_through(self, traffic: TrafficDrainer) -> None:
        """Set the component that sends requests to the servers and drains a model before its unload."""
        self._executor.traffic = traffic

    async def wait_change(self) -> None:
        """Wait until the state may have changed."""
        await self._changed.wait()

    def events(self, after: int = 0) -> list[Event]:
        """Return the events with a larger id than ``after``, oldest first."""
        return self._state.events.after(after)

    async def wait_event(self, after: int, timeout: float) -> list[Event]:  # noqa: ASYNC109 - a long poll
        """Return the events after ``after``, waiting up to ``timeout`` seconds for one; empty if there was none."""
        return await self._state.events.wait(after, timeout)

    async def wait_settled(
        self,
        model: str,
        revision: int,
        timeout: float,  # noqa: ASYNC109 - a long poll
    ) -> DeploymentStatus:
        """Wait until a revision, or a newer one, has settled, at most ``timeout`` seconds.

        Returns:
            The status at the end; if ``phase.settled`` is false, the wait timed out.
        """
        return await self._wait(
            model, revision, timeout, lambda status: status.revision >= revision and status.phase.settled
        )

    def memory(self) -> tuple[ServerMemory, ...]:
        """Return the ledgers, by server. No I/O."""
        return self._answers.memory()

    def memory_of(self, model: str) -> tuple[tuple[str, ModelMemoryView], ...]:
        """Return a model's memory by server; empty if it has no known deployment. No I/O."""
        return self._answers.memory_of(model)

    def why(self, model: str) -> ExplanationView | None:
        """Return the explanation of a model's state; None if it has no known deployment. No I/O."""
        return self._answers.why(model)

    async def wait_read(self) -> None:
        """Wait until the deployments were read once; before that, no model is known to be undeployed."""
        await self._read.wait()

    async def look(self, server: str, model: str) -> None:
        """Take a new snapshot of a server, and return when the observation of a model is applied.

        That is not before a proof of it in flight has ended, nor while the server is unavailable.
        """
        if server not in self._state.servers or model not in self._state.desired_state:
            return
        step: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._post(SnapshotRequested(server, model, step))
        began = await step
        while (known := self._state.servers.get(server)) is not None and known.unit(model).seen < began:
            await self._changed.wait()

    def demand(self, model: str) -> None:
        """Request a model now: it is loaded, and its keep-alive restarts.

        Any number of calls share one load. `status` and `wait_loaded` report its progress.

        Raises:
            NotFoundError: It is not deployed.
            ConflictError: Its deployment says unloaded.
        """
        self._demand(model)

    async def wait_loaded(
        self,
        model: str,
        timeout: float,  # noqa: ASYNC109 - a long poll
    ) -> DeploymentStatus:
        """Request a model and wait until it is Ready, Degraded or Failed, at most ``timeout`` seconds.

        On a standby, a hold passes the request on to the leader; it is released when the wait is over, so that the
        model can be evicted for others.

        Returns:
            The status at the end; if ``phase.settled`` is false, the wait timed out.

        Raises:
            NotFoundError: It is not deployed.
            ConflictError: Its deployment says unloaded.
            StoreError: This instance is a standby, and the store failed.
        """
        end = asyncio.get_running_loop().time() + timeout
        await self._demand(model)
        lease: ModelHold | None = None
        if not self._authority.owns:
            seconds = max(min(timeout, _DEMAND_HOLD_SECONDS), 1.0)
            lease = await asyncio.to_thread(self._registry.holds.acquire, model, seconds=seconds, holder="load")

        def over(status: DeploymentStatus) -> bool:
            return status.phase.settled and not self._answers.is_demand_pending(
                model, status, leading=self._authority.owns
            )

        try:
            return await self._wait(model, 0, end - asyncio.get_running_loop().time(), over)
        finally:
            if lease is not None:
                self._background.give_back(lease)

    def lease_changed(self, lease: ModelHold) -> None:
        """Apply a hold that was just acquired, renewed or released, before the bucket is read again."""
        self._holds.tell(lease)
        self._post(HoldsChanged())

    async def plan_load(
        self, model: str, version: int | None = None, settings: DeploymentSettings | None = None
    ) -> LoadPlanView:
        """Return what loading a version would do; see `ReconcilerQueries.plan_load`. Changes nothing.

        Raises:
            NotFoundError: No such model or version.
            InvalidInputError: The version cannot run with these settings.
        """
        return await self._answers.plan_load(model, version, settings)

    def pools(self) -> Mapping[str, PoolDemand]:
        """Return the demand of each pool of servers; empty if this process does not lead. No I/O."""
        return self._placer.pools() if self._authority.owns else {}

    def server_joined(self, server: ManagedServer) -> None:
        """Begin to drive or observe a further server."""
        self._post(ServerJoined(server))

    def server_leaving(self, name: str) -> None:
        """Move the models of a server that stops as soon as it has none."""
        self._post(ServerLeaving(name))

    def server_left(self, server: ManagedServer) -> None:
        """Forget a server; its models are placed on others."""
        self._post(ServerLeft(server.name))

    def cordons_changed(self, number: int, cordons: Cordons) -> None:
        """Apply the cordons of a revision that was just committed, before the bucket is read again."""
        self._post(CordonsRead(number, cordons))

    def plan_drain(self, server: str, *, force: bool) -> DrainPlanView:
        """Return what the drain of a server would do. No I/O; changes nothing.

        Raises:
            NotFoundError: No server has this name, or none is placed yet.
        """
        return drain_plan_view(self._cordons.plan(server, force=force), server, force=force)

    def defragment(self, *, dry_run: bool, limit: int) -> DefragmentationView:
        """Move replicas if the gain exceeds the cost, or only return the moves. No I/O: the moves follow later."""
        found = self._placer.defragment(dry_run=dry_run, limit=limit)
        if not dry_run:
            self._post(Replaced())
        return defragmentation_view(found, dry_run=dry_run)

    @property
    def cycle_report(self) -> str:
        """The state of the loop, in one sentence."""
        return self._report

    @property
    def newest_cycle(self) -> CycleReport:
        """The report of the newest cycle."""
        return self._newest

    @property
    def statuses_computed(self) -> int:
        """How many statuses were computed."""
        return self._answers.computed

    @property
    def missed(self) -> Counter[str]:
        """How many changes the audit found that no handler had marked, by the kind of value that depends on them."""
        return self._audit.missed

    @property
    def waiting(self) -> int:
        """How many messages are in the inbox."""
        return self._inbox.qsize()

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._owner is not None and not self._owner.done()

    @property
    def leading(self) -> bool:
        """Whether this process is the leader; other instances on the same bucket only observe."""
        return self._lease.held

    async def _wait(
        self,
        model: str,
        revision: int,
        seconds: float,
        over: Callable[[DeploymentStatus], bool],
    ) -> DeploymentStatus:
        """Wait until ``over`` accepts a model's status; return the status then, or at the timeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            status = self.status(model)
            if status is not None and over(status):
                return status
            changed, left = self._changed, deadline - loop.time()
            if left <= 0:
                return status or DeploymentStatus(revision=revision, phase=Phase.PENDING, message="not observed yet")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)

    # The loop task

    def _post(self, message: Message) -> None:
        self._inbox.put_nowait(message)

    async def _own(self) -> None:
        while True:
            if not self._busy:
                self._apply(await self._inbox.get(), report := CycleReport())
            else:
                report = CycleReport()
                await asyncio.sleep(0)  # other tasks run before the rest
            began = time.perf_counter()
            while report.messages.total() < _BATCH and not self._inbox.empty():
                self._apply(self._inbox.get_nowait(), report)
                if time.perf_counter() - began > _BATCH_SECONDS:
                    break
            began = time.perf_counter()
            self._busy = False
            try:
                self._cycle.run(report)
                self._busy = report.more or not self._end_cycle()
            except Exception:
                # Boundary of the loop: an unexpected error of one model must not stop the others.
                logger.exception("unexpected error in a cycle after %s", ", ".join(report.messages) or "no message")
            self._newest = report
            self.loop_metrics.cycle(report, time.perf_counter() - began)
            self._changed.set()
            self._changed = asyncio.Event()

    def _end_cycle(self) -> bool:
        """Do what follows a cycle timer when nothing is left marked; return whether it is done."""
        if not self._reporting:
            return True
        if not self._answers.refresh(_STATUSES_AT_ONCE):
            return False
        self._reporting = False
        role = "leading" if self._lease.held else f"following {self._lease.leader}"
        sentence = report(role, self._answers.phases(), self._state.servers.values(), self._reader.trouble)
        if sentence != self._report:
            self._report = sentence
            logger.info("%s", sentence)
        self._audit.look()
        return True

    def _apply(self, message: Message, report: CycleReport) -> None:
        kind, began = type(message).__name__, time.perf_counter()
        self._state.step += 1
        report.messages[kind] += 1
        try:
            self._handle(message)
        except Exception:
            # Boundary of the loop: an unexpected error in one message must not stop the others.
            logger.exception("unexpected error while handling %s", kind)
        self.loop_metrics.beat(kind, time.perf_counter() - began)

    def _handle(self, message: Message) -> None:
        if self._has_left(message):
            return
        match message:
            case DesiredStateChanged(model=model):
                self._woken(model)
            case DesiredStateRead(desired_state=desired_state, epoch=epoch):
                self._observer.adopt(*desired_state.values())
                if self._reader.complete:
                    self._read.set()
                if epoch is not None:
                    self._freshness.informed(epoch)
            case SnapshotTaken():
                self._observer.seen(message)
            case ActionFinished():
                self._driver.done(message)
            case ReadingTaken():
                self._observer.gauged(message)
                self._placer.counted(message)
                self._arranger.guard(message.server)
            case LoadRequested(model=model, taken=taken):
                self._arranger.demanded(model)
                if not taken.done():
                    taken.set_result(None)
            case SnapshotRequested(server=name, model=model, step=step):
                if not step.done():  # else the caller has stopped waiting
                    step.set_result(self._state.step)
                if (server := self._state.servers.get(name)) is not None:
                    server.awaited.add(model)
                    self._background.look(server)
            case HoldsChanged() | Replaced():
                pass  # the cycle does the rest
            case FootprintsKept(models=models):
                self._state.touch(models)
                for server in self._state.servers.values():
                    server.scheduler.unjudged.update(models & server.scheduler.models.keys())
            case ServerJoined(managed=managed):
                self._membership.joined(managed)
            case ServerLeaving(name=name):
                self._membership.leaving(name)
            case ServerLeft(name=name):
                self._membership.left(name)
            case CordonsRead():
                self._cordons.apply(message)
            case RepositoryCleaned():
                self._observer.cleaned(message)
            case LeaseChanged(held=held):
                self._lease_changed(held)
            case Paused():
                self._freshness.paused()
                self._reader.read(None)
            case CycleTimer():
                self._tick()
            case ReadTimer():
                self._poll()

    def _has_left(self, message: Message) -> bool:
        """Return whether a message is the result of work for a server that has left meanwhile."""
        if not isinstance(message, SnapshotTaken | ActionFinished | ReadingTaken | RepositoryCleaned):
            return False
        return self._state.servers.get(message.server.name) is not message.server

    def _tick(self) -> None:
        assert self._loop is not None
        self._loop.call_later(self._settings.interval_seconds, self._post, CycleTimer())
        self._freshness.check_driven()
        self._reader.read(None)
        self._holds.read()
        self._cordons.read()
        self._cordons.look()
        for server in self._state.servers.values():
            self._background.clean(server)
            self._background.look(server)
        self._reverter.look()
        self._rememberer.look()
        self._answers.recheck()
        self._reporting = True

    def _poll(self) -> None:
        assert self._loop is not None
        self._loop.call_later(self._memory.poll_interval_seconds, self._post, ReadTimer())
        for server in self._state.servers.values():
            self._background.gauge(server)

    def _woken(self, model: str | None) -> None:
        desired_deployment = self._desired_state.from_cache(model) if model is not None else None
        known = self._state.desired_state.get(model) if model is not None else None
        if desired_deployment is not None and (
            known is None or desired_deployment.revision.number > known.revision.number
        ):
            self._observer.adopt(desired_deployment)
        else:
            self._reader.read(model)  # an alias may have moved, or something is not in memory

    def _lease_changed(self, held: bool) -> None:
        self._freshness.check_driven()
        for server in self._state.servers.values():
            self._state.plan_all_again(server)
        if held:
            self._state.events.add(
                "Normal", "LeadershipAcquired", "reconciler", "this instance holds the lease and drives the servers"
            )
            for server in self._state.servers.values():
                self._background.clean(server)
            self._reader.read(None)
        else:
            why = f"the lease could not be renewed: {self._lease.trouble}" if self._lease.trouble else ""
            what = (
                "this instance still drives its own server" if self._authority.alone else "this instance only observes"
            )
            message = f"{why or f'{self._lease.leader} leads'}; {what}"
            self._state.events.add("Warning", "LeadershipLost", "reconciler", message)
            for server in self._state.servers.values():
                server.cleaned = self._authority.alone and server.cleaned

    def _demand(self, model: str) -> "asyncio.Future[None]":
        desired_deployment = self._state.desired_state.get(model)
        if desired_deployment is None or desired_deployment.revision.spec.deleted:
            raise NotFoundError(f"{model} is not deployed; deploy it first", model=model)
        if not desired_deployment.revision.spec.loaded:
            raise ConflictError(f"the deployment of {model} says unloaded; deploy it again to load it", model=model)
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._post(LoadRequested(model, taken))
        return taken
