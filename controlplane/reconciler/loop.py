"""The loop: observes, plans, and lets the executor act; reports.

One task owns all state. Everything that happens (a call of `wake`, a look at a server that is done, an action that is
done, the clock) is a message in its inbox, and the handlers between two messages do not wait for anything. Whatever
takes time (a look, a read of the store, an action) runs in a task of its own and sends a message when it is done; a
model with an action in flight is left alone until then.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.names import Reference
from controlplane.domain.states import DeploymentStatus, Event, Phase, ServerState, ServerStatus
from controlplane.errors import ControlPlaneError
from controlplane.reconciler.actions import Action, Prove, Wait
from controlplane.reconciler.events import EventLog
from controlplane.reconciler.executor import Executor, Outcome
from controlplane.reconciler.lease import Lease
from controlplane.reconciler.memory_view import LoadPlanView, ServerMemory, WhyView
from controlplane.reconciler.planner import choose_goal, plan
from controlplane.reconciler.record import Backoff
from controlplane.reconciler.servers import ManagedServer
from controlplane.reconciler.status import Doing, Trouble, overall
from controlplane.reconciler.types import DesiredModel, Mark
from controlplane.reconciler.units import Unit
from controlplane.reconciler.watching import Sight, look
from controlplane.reconciler.wishes import Wish, Wishes
from controlplane.registry.leases import ModelLease
from controlplane.registry.registry import Registry
from controlplane.settings import ReconcilerSettings

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.05
"""Time until the next look while Triton is finishing something."""


@dataclass(frozen=True)
class _Woken:
    model: str | None


@dataclass(frozen=True)
class _Wished:
    wishes: dict[str, Wish]
    model: str | None


@dataclass(frozen=True)
class _Seen:
    server: str
    began: int
    sight: Sight


@dataclass(frozen=True)
class _Done:
    unit: Unit
    outcome: Outcome


@dataclass(frozen=True)
class _Tick:
    pass


_Message = _Woken | _Wished | _Seen | _Done | _Tick


@dataclass
class _Server:
    """A server as the loop last saw it."""

    managed: ManagedServer
    sight: Sight = field(default_factory=lambda: Sight(ServerState.STARTING, "not looked at yet"))
    observed_at: datetime | None = None
    looking: "asyncio.Task[None] | None" = None
    look_again: bool = False
    later: asyncio.TimerHandle | None = None
    units: dict[str, Unit] = field(default_factory=dict)

    @property
    def trouble(self) -> Trouble | None:
        if self.sight.state is ServerState.READY:
            return None
        return Trouble(f"{self.managed.name} is {self.sight.state.lower()}: {self.sight.message}")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Closes the difference between the deployments in the bucket and what the Triton servers run.

    Belongs to the event loop that `start` was called in; only `wake` may be called from other threads.

    Args:
        registry: The bucket.
        servers: The Triton servers. Every deployment runs on all of them.
        settings: Intervals and back-off.
        clock: Gives the time (UTC).
    """

    def __init__(
        self,
        registry: Registry,
        servers: Sequence[ManagedServer],
        settings: ReconcilerSettings,
        *,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wishes = Wishes(registry)
        self._backoff = Backoff(settings.backoff_initial_seconds, settings.backoff_max_seconds)
        self._lease = Lease(registry.store, seconds=settings.lease_seconds, on_change=self._lease_changed)
        self._executor = Executor(
            registry,
            self._wishes,
            may_act=lambda: self._lease.held,
            proof_timeout_seconds=settings.proof_timeout_seconds,
        )
        self._servers = {server.name: _Server(server) for server in servers}
        self._current: dict[str, Wish] = {}
        self._inbox: asyncio.Queue[_Message] = asyncio.Queue()
        self._events = EventLog(clock)
        self._changed = asyncio.Event()
        self._step = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: set[str | None] = set()
        self._read_again: set[str | None] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner: asyncio.Task[None] | None = None
        self._store_trouble = ""
        self._report = "not started"

    # ------------------------------------------------------------------ what others call

    async def start(self) -> None:
        """Clean up what a crash left, take the lease if it is free, and begin."""
        self._loop = asyncio.get_running_loop()
        for server in self._servers.values():
            try:
                await asyncio.to_thread(server.managed.repository.clean)
            except ControlPlaneError as error:
                logger.warning("%s: its model repository cannot be cleaned: %s", server.managed.name, error)
        await self._lease.start()
        self._owner = asyncio.create_task(self._own(), name="reconciler")
        self._post(_Tick())

    async def stop(self) -> None:
        """Stop acting. What Triton was told already, it goes on doing; the next start looks at what became of it."""
        tasks = [task for task in (self._owner, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers.values():
            if server.later:
                server.later.cancel()
        self._owner = None
        self._executor.close()
        await self._lease.stop()

    def wake(self, model: str | None = None) -> None:
        """Say that something changed in the bucket, so that it is acted on at once.

        Args:
            model: Whose deployment or alias changed; None looks at all.
        """
        if self._loop is None:
            return  # `start` reads everything anyway
        try:
            same = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            same = False
        if same:
            self._post(_Woken(model))
        else:
            self._loop.call_soon_threadsafe(self._post, _Woken(model))

    def status(self, model: str) -> DeploymentStatus | None:
        """Return how a deployment stands; None where none is known. No I/O."""
        wish = self._current.get(model)
        if wish is None:
            return None
        now = self._clock()
        statuses = [
            self._unit(server, model).status(self._desired(server, wish), server.trouble, now)
            for server in self._servers.values()
        ]
        return overall(wish.revision.number, statuses)

    def statuses(self) -> dict[str, DeploymentStatus]:
        """Return how all deployments stand, by model; removed ones only until they are gone."""
        found = {}
        for model, wish in self._current.items():
            status = self.status(model)
            if status and not (wish.revision.spec.deleted and status.phase is Phase.UNLOADED):
                found[model] = status
        return found

    def servers(self) -> tuple[ServerStatus, ...]:
        """Return the servers as last seen."""
        return tuple(_server_status(server) for server in self._servers.values())

    def events(self, after: int = 0) -> list[Event]:
        """Return the events with a larger id than ``after``, oldest first."""
        return self._events.after(after)

    async def wait_event(self, after: int, timeout: float) -> list[Event]:  # noqa: ASYNC109 - a long poll
        """Return the events after ``after``, waiting up to ``timeout`` seconds for one; empty when there was none."""
        return await self._events.wait(after, timeout)

    async def wait_settled(
        self,
        model: str,
        revision: int,
        timeout: float,  # noqa: ASYNC109 - a long poll
    ) -> DeploymentStatus:
        """Wait until a revision, or a newer one, has settled, at most ``timeout`` seconds.

        Returns:
            The status by then; where ``phase.settled`` is false, the time was up.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            status = self.status(model)
            if status is not None and status.revision >= revision and status.phase.settled:
                return status
            changed, left = self._changed, deadline - loop.time()
            with contextlib.suppress(TimeoutError):
                if left > 0:
                    await asyncio.wait_for(changed.wait(), left)
                    continue
            return status or DeploymentStatus(revision=revision, phase=Phase.PENDING, message="not looked at yet")

    def memory(self) -> tuple[ServerMemory, ...]:
        """Return the ledgers, by server. No I/O."""
        raise NotImplementedError

    def why(self, model: str) -> WhyView | None:
        """Return why a model is where it is; None where no deployment of it is known. No I/O."""
        raise NotImplementedError

    def demand(self, model: str) -> None:
        """Say that somebody wants to use a model now: it is loaded, and its keep-alive starts anew.

        Any number of calls share one load. `status` and `wait_loaded` say how it goes.

        Raises:
            NotFoundError: It is not deployed.
            ConflictError: Its deployment says unloaded.
        """
        raise NotImplementedError

    async def wait_loaded(
        self,
        model: str,
        timeout: float,  # noqa: ASYNC109 - a long poll
    ) -> DeploymentStatus:
        """Demand a model and wait until it is Ready, Degraded or Failed, at most ``timeout`` seconds.

        Raises:
            NotFoundError: It is not deployed.
            ConflictError: Its deployment says unloaded.
        """
        raise NotImplementedError

    def lease_changed(self, lease: ModelLease) -> None:
        """Take in a client lease that was just taken, renewed or given back, before the bucket is read again."""
        raise NotImplementedError

    async def plan_load(
        self, model: str, version: int | None = None, settings: DeploymentSettings | None = None
    ) -> LoadPlanView:
        """Say what loading a version would do. Changes nothing.

        Args:
            model: The model; it need not be deployed.
            version: The version; None takes the deployed one, or the newest.
            settings: How it would be run; None takes the deployment's.

        Raises:
            NotFoundError: No such model or version.
        """
        raise NotImplementedError

    @property
    def cycle_report(self) -> str:
        """What the loop is about, in one sentence."""
        return self._report

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._owner is not None and not self._owner.done()

    @property
    def leading(self) -> bool:
        """Whether this process acts; others on the same bucket observe."""
        return self._lease.held

    # ------------------------------------------------------------------ the owner

    def _post(self, message: _Message) -> None:
        self._inbox.put_nowait(message)

    async def _own(self) -> None:
        while True:
            message = await self._inbox.get()
            self._step += 1
            try:
                self._handle(message)
            except Exception:
                # The loop's edge: one model's surprise must not stop the others.
                logger.exception("the reconciler stumbled over %s", type(message).__name__)
            self._changed.set()
            self._changed = asyncio.Event()

    def _handle(self, message: _Message) -> None:
        match message:
            case _Woken(model=model):
                self._woken(model)
            case _Wished(wishes=wishes, model=model):
                self._wished(wishes, model)
            case _Seen(server=server, began=began, sight=sight):
                self._seen(self._servers[server], began, sight)
            case _Done(unit=unit, outcome=outcome):
                self._done(unit, outcome)
            case _Tick():
                self._tick()

    def _tick(self) -> None:
        assert self._loop is not None
        self._loop.call_later(self._settings.interval_seconds, self._post, _Tick())
        self._read(None)
        for server in self._servers.values():
            self._look(server)
        self._tell()

    def _woken(self, model: str | None) -> None:
        if model is None:
            self._read(None)
            return
        wish = self._wishes.quick(model)
        known = self._current.get(model)
        if wish is not None and (known is None or wish.revision.number > known.revision.number):
            self._adopt(wish)
        else:
            self._read(model)  # an alias may have moved, or something is not in memory

    def _wished(self, wishes: dict[str, Wish], model: str | None) -> None:
        self._reading.discard(model)
        for wish in wishes.values():
            self._adopt(wish)
        if model in self._read_again:
            self._read_again.discard(model)
            self._read(model)

    def _adopt(self, wish: Wish) -> None:
        known = self._current.get(wish.model)
        if known is not None and wish.revision.number <= known.revision.number:
            return
        self._current[wish.model] = wish
        spec = wish.revision.spec
        if known is not None or not spec.deleted:
            what = f"version {spec.version}" if spec.loaded and not spec.deleted else "nothing"
            self._events.add(
                "Normal",
                "RevisionSeen",
                wish.model,
                f"revision {wish.revision.number} by {wish.revision.actor} wants {what} loaded"
                + (f" ({wish.revision.reason})" if wish.revision.reason else ""),
            )
        now = self._clock()
        for server in self._servers.values():
            unit = self._unit(server, wish.model)
            unit.adopt(wish, now, self._backoff)
            if unit.facts is None and unit.task is None and server.trouble is None:
                unit.facts = server.sight.facts(wish.model)
                if unit.facts is None:
                    self._look(server)
            self._drive(server, unit)

    def _seen(self, server: _Server, began: int, sight: Sight) -> None:
        server.looking = None
        before, server.sight, server.observed_at = server.sight, sight, self._clock()
        if sight.state is not before.state:
            good = sight.state is ServerState.READY
            self._events.add(
                "Normal" if good else "Warning",
                f"Server{sight.state}",
                server.managed.name,
                f"Triton {sight.version} answers" if good else sight.message,
            )
        if sight.state is not ServerState.READY or sight.generation != before.generation:
            for unit in server.units.values():
                unit.lost()
        if sight.state is ServerState.READY:
            for model in self._current:
                unit = self._unit(server, model)
                # What we did since the look began is newer than the look.
                if unit.task is None and (unit.changed <= began or unit.facts is None):
                    if unit.changed > began:
                        server.look_again = True
                        continue
                    facts = sight.facts(model)
                    if facts is None:
                        server.look_again = True
                    else:
                        unit.see(facts)
                self._drive(server, unit)
        if server.look_again:
            server.look_again = False
            self._look(server)

    def _done(self, unit: Unit, outcome: Outcome) -> None:
        server = self._servers[unit.server]
        unit.task = unit.doing = None
        unit.changed = self._step
        unit.settle(outcome, now=self._clock(), backoff=self._backoff, events=self._events)
        if isinstance(outcome.action, Prove):
            unit.proved_at = time.monotonic()
        if unit.facts is None:
            self._look(server)
            self._announce(server, unit)
        else:
            self._drive(server, unit)

    def _drive(self, server: _Server, unit: Unit) -> None:
        """Take the next step for one model on one server, if there is one and none is in flight."""
        wish = self._current.get(unit.model)
        if wish is None or unit.task is not None:
            return
        unit.doing = None
        if server.trouble is None and unit.facts is not None:
            action = self._next_action(self._desired(server, wish), unit)
            if isinstance(action, Wait):
                unit.doing = Doing(action)
                self._look_later(server)
            elif action is not None and (self._lease.held or _is_harmless(action)):
                self._begin(server, unit, wish, action)
        self._announce(server, unit)

    def _next_action(self, desired: DesiredModel, unit: Unit) -> Action | None:
        assert unit.facts is not None
        now = self._clock()
        observed = unit.facts.with_record(unit.record)
        action = plan(desired, observed, now)
        due = time.monotonic() - unit.proved_at >= self._settings.probe_interval_seconds
        if action is None and due and desired.loaded:
            goal = choose_goal(desired, observed, now)
            if goal and goal.version in observed.loaded and observed.mark(goal.version) is Mark.PASSED:
                return Prove(goal, candidate=False, because=f"version {goal.version} is asked again from time to time")
        return action

    def _begin(self, server: _Server, unit: Unit, wish: Wish, action: Action) -> None:
        target = getattr(action, "target", None)
        prepared = wish.prepared.get(target) if target is not None else None
        unit.doing = Doing(action)

        def progress(phase: Phase) -> None:
            if unit.doing is not None and unit.doing.action is action:
                unit.doing = Doing(action, phase)

        async def act() -> None:
            outcome = await self._executor.run(server.managed, unit.model, action, prepared, progress)
            self._post(_Done(unit, outcome))

        logger.debug("%s on %s: %s", unit.model, unit.server, action)
        unit.task = self._spawn(act(), f"{type(action).__name__} {unit.model}")

    # ------------------------------------------------------------------ what takes time

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]", name: str) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s ended by surprise", task.get_name(), exc_info=error)

    def _look(self, server: _Server) -> None:
        if server.looking is not None:
            server.look_again = True
            return
        began = self._step
        models = tuple(self._current)

        async def seen() -> None:
            sight = await look(server.managed, models, server.sight.version)
            self._post(_Seen(server.managed.name, began, sight))

        server.looking = self._spawn(seen(), f"look at {server.managed.name}")

    def _look_later(self, server: _Server) -> None:
        assert self._loop is not None
        if server.later is None:

            def now() -> None:
                server.later = None
                self._look(server)

            server.later = self._loop.call_later(_WAIT_SECONDS, now)

    def _read(self, model: str | None) -> None:
        """Read one deployment, or all, and follow their aliases."""
        if model in self._reading:
            self._read_again.add(model)
            return
        self._reading.add(model)
        leading = self._lease.held

        def read() -> dict[str, Wish]:
            if model is None:
                wishes = self._wishes.read_all()
            else:
                wish = self._wishes.read(model)
                wishes = {} if wish is None else {model: wish}
            return {name: self._followed(wish) if leading else wish for name, wish in wishes.items()}

        async def run() -> None:
            wishes: dict[str, Wish] = {}
            try:
                wishes = await asyncio.to_thread(read)
                self._store_trouble = ""
            except ControlPlaneError as error:
                if str(error) != self._store_trouble:
                    logger.warning("the deployments cannot be read: %s", error)
                self._store_trouble = str(error)
            finally:
                self._post(_Wished(wishes, model))

        self._spawn(run(), f"read {model or 'deployments'}")

    def _followed(self, wish: Wish) -> Wish:
        if Reference.parse(wish.revision.spec.reference).alias is None:
            return wish
        try:
            moved = self._wishes.follow_alias(wish)
            return (self._wishes.read(wish.model) or wish) if moved else wish
        except ControlPlaneError as error:
            logger.warning("the alias of %s cannot be followed now: %s", wish.model, error)
            return wish

    # ------------------------------------------------------------------ reports

    def _unit(self, server: _Server, model: str) -> Unit:
        if model not in server.units:
            server.units[model] = Unit(server.managed.name, model, proved_at=time.monotonic())
        return server.units[model]

    def _desired(self, server: _Server, wish: Wish) -> DesiredModel:
        return wish.desired(self._unit(server, wish.model).record.good)

    def _announce(self, server: _Server, unit: Unit) -> None:
        wish = self._current[unit.model]
        status = unit.status(self._desired(server, wish), server.trouble, self._clock())
        if status.phase is unit.told:
            return
        unit.told = status.phase
        if status.phase.settled:
            bad = status.phase in {Phase.FAILED, Phase.DEGRADED}
            message = f"on {unit.server}: {status.message}"
            self._events.add("Warning" if bad else "Normal", status.phase.value, unit.model, message)

    def _lease_changed(self) -> None:
        if self._lease.held:
            self._events.add("Normal", "Leading", "reconciler", "this replica holds the lease and acts")
        else:
            self._events.add("Warning", "Following", "reconciler", f"{self._lease.leader} leads; this one observes")
        self.wake(None)

    def _tell(self) -> None:
        """Put the present state into one sentence, and log it where it changed."""
        phases = Counter(str(status.phase) for status in self.statuses().values())
        busy = [unit for server in self._servers.values() for unit in server.units.values() if unit.task is not None]
        parts = ["leading" if self._lease.held else f"following {self._lease.leader}"]
        parts.append(
            ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
            if phases
            else "nothing is deployed"
        )
        parts.extend(server.trouble.message for server in self._servers.values() if server.trouble)
        if self._store_trouble:
            parts.append(f"the store cannot be read: {self._store_trouble}")
        parts.extend(f"{unit.model} on {unit.server}: {unit.doing.action.because}" for unit in busy if unit.doing)
        report = "; ".join(parts)
        if report != self._report:
            self._report = report
            logger.info("%s", report)


def _is_harmless(action: Action) -> bool:
    """Whether a replica that does not lead may do it, too: asking a loaded version changes nothing."""
    return isinstance(action, Prove) and not action.candidate


def _server_status(server: _Server) -> ServerStatus:
    managed, sight = server.managed, server.sight
    return ServerStatus(
        name=managed.name,
        grpc_url=managed.client.grpc_url,
        http_url=managed.http_url,
        metrics_url=managed.metrics_url,
        embedded=managed.embedded is not None,
        state=sight.state,
        message=sight.message,
        triton_version=sight.version,
        models=sight.index,
        observed_at=server.observed_at,
    )
