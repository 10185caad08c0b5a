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
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.names import Reference
from controlplane.domain.states import DeploymentStatus, Event, Phase, ServerState, ServerStatus
from controlplane.errors import ConflictError, ControlPlaneError, NotFoundError
from controlplane.memory.ledger import size_text
from controlplane.reconciler.actions import Action, Load, Prove, Unload, Wait
from controlplane.reconciler.events import EventLog
from controlplane.reconciler.executor import Executor, Outcome
from controlplane.reconciler.fleet import KnownServer, report
from controlplane.reconciler.gauging import Reading, differences, gauge
from controlplane.reconciler.holding import Holds
from controlplane.reconciler.lease import Lease
from controlplane.reconciler.memory_view import LoadPlanView, ServerMemory, WhyView
from controlplane.reconciler.planner import choose_goal, plan
from controlplane.reconciler.reading import Reader
from controlplane.reconciler.record import Backoff
from controlplane.reconciler.routing import Route, routes
from controlplane.reconciler.servers import ManagedServer
from controlplane.reconciler.status import Doing, overall
from controlplane.reconciler.steward import Measurement, Steward
from controlplane.reconciler.telling import Occupant, plan_for, server_memory, server_why
from controlplane.reconciler.traffic import Traffic
from controlplane.reconciler.types import DesiredModel, Mark
from controlplane.reconciler.units import Unit
from controlplane.reconciler.watching import Sight, look
from controlplane.reconciler.wishes import Prepared, Wish, Wishes
from controlplane.registry.leases import ModelLease
from controlplane.registry.registry import Registry
from controlplane.settings import MemorySettings, ReconcilerSettings

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.05
_WAIT_GROWTH = 1.15
"""Time until the next look while Triton is finishing something; it grows up to the interval between cycles."""
_DEMAND_LEASE_SECONDS = 60.0
"""A replica that does not lead passes a demand on by a client lease of this length."""


@dataclass(frozen=True)
class _Woken:
    model: str | None


@dataclass(frozen=True)
class _Wished:
    wishes: dict[str, Wish]


@dataclass(frozen=True)
class _Seen:
    server: KnownServer
    began: int
    sight: Sight


@dataclass(frozen=True)
class _Done:
    server: KnownServer
    unit: Unit
    outcome: Outcome
    reading: Reading | None = None
    grown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Gauged:
    server: KnownServer
    began: int
    reading: Reading


@dataclass(frozen=True)
class _Demanded:
    model: str
    taken: "asyncio.Future[None]"


@dataclass(frozen=True)
class _Held:
    pass


@dataclass(frozen=True)
class _Poll:
    pass


@dataclass(frozen=True)
class _Cleaned:
    server: KnownServer
    done: bool


@dataclass(frozen=True)
class _LeaseChanged:
    held: bool


@dataclass(frozen=True)
class _Tick:
    pass


_Message = _Woken | _Wished | _Seen | _Done | _Gauged | _Demanded | _Held | _Cleaned | _LeaseChanged | _Tick | _Poll


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Closes the difference between the deployments in the bucket and what the Triton servers run.

    Belongs to the event loop that `start` was called in; only `wake` may be called from other threads.

    Args:
        registry: The bucket.
        servers: The Triton servers. Every deployment runs on all of them.
        settings: Intervals and back-off.
        memory: What models may use of the servers' memory, and who makes room for whom.
        clock: Gives the time (UTC).
    """

    def __init__(
        self,
        registry: Registry,
        servers: Sequence[ManagedServer],
        settings: ReconcilerSettings,
        *,
        memory: MemorySettings | None = None,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wishes = Wishes(registry)
        self._backoff = Backoff(settings.backoff_initial_seconds, settings.backoff_max_seconds)
        self._lease = Lease(
            registry.store,
            seconds=settings.lease_seconds,
            on_change=lambda: self._post(_LeaseChanged(self._lease.held)),
        )
        self._executor = Executor(
            registry,
            self._wishes,
            may_act=lambda: self._lease.held,
            proof_timeout_seconds=settings.proof_timeout_seconds,
        )
        self._reader = Reader(
            self._wishes,
            hand_over=lambda wishes: self._post(_Wished(wishes)),
            may_follow=lambda: self._lease.held,
        )
        self._holds = Holds(registry.leases, on_read=lambda: self._post(_Held()), may_sweep=lambda: self._lease.held)
        self._registry = registry
        self._memory = memory or MemorySettings()
        self._servers = {
            server.name: KnownServer(server, Steward.of(server, self._memory, registry.footprints))
            for server in servers
        }
        self._current: dict[str, Wish] = {}
        self._inbox: asyncio.Queue[_Message] = asyncio.Queue()
        self._events = EventLog(clock)
        self._changed = asyncio.Event()
        self._step = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner: asyncio.Task[None] | None = None
        self._report = "not started"

    # What others call

    async def start(self) -> None:
        """Take the lease if it is free, and begin."""
        self._loop = asyncio.get_running_loop()
        await self._lease.start()
        self._owner = asyncio.create_task(self._own(), name="reconciler")
        self._post(_Tick())
        self._post(_Poll())

    async def stop(self) -> None:
        """Stop acting. What Triton was told already, it goes on doing; the next start looks at what became of it."""
        tasks = [task for task in (self._owner, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reader.stop()
        await self._holds.stop()
        for server in self._servers.values():
            if server.later:
                server.later.cancel()
        self._owner = self._loop = None
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
            server.unit(model).status(self._desired(server, wish), server.trouble, now)
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
        return tuple(server.status() for server in self._servers.values())

    def routes(self) -> dict[str, Route]:
        """Return where every model that is proved can be asked. No I/O."""
        well = [server for server in self._servers.values() if server.trouble is None]
        return routes(self._current, (unit for server in well for unit in server.units.values()))

    def send_through(self, traffic: Traffic) -> None:
        """Say who sends requests to the servers, and has to be told before a model leaves one."""
        self._executor.traffic = traffic

    async def wait_change(self) -> None:
        """Wait until something happened that may have changed what is there."""
        await self._changed.wait()

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
        now = self._clock()
        return tuple(server_memory(server.steward, self._occupants(server), now) for server in self._servers.values())

    def why(self, model: str) -> WhyView | None:
        """Return why a model is where it is; None where no deployment of it is known. No I/O."""
        wish = self._current.get(model)
        if wish is None:
            return None
        now = self._clock()
        servers = [server_why(server.steward, self._occupant(server, wish), now) for server in self._servers.values()]
        return WhyView(model=model, servers=tuple(servers))

    def demand(self, model: str) -> None:
        """Say that somebody wants to use a model now: it is loaded, and its keep-alive starts anew.

        Any number of calls share one load. `status` and `wait_loaded` say how it goes.

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
        """Demand a model and wait until it is Ready, Degraded or Failed, at most ``timeout`` seconds.

        On a replica that does not lead, a short client lease passes the demand on to the one that does.

        Returns:
            The status by then; where ``phase.settled`` is false, the time was up.

        Raises:
            NotFoundError: It is not deployed.
            ConflictError: Its deployment says unloaded.
            StoreError: This replica does not lead, and the store failed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await self._demand(model)
        if not self.leading:
            seconds = max(min(timeout, _DEMAND_LEASE_SECONDS), 1.0)
            await asyncio.to_thread(self._registry.leases.acquire, model, seconds=seconds, holder="load")
        while True:
            status = self.status(model)
            if status is not None and status.phase.settled and not self._awaited(model, status):
                return status
            changed, left = self._changed, deadline - loop.time()
            if left <= 0:
                return status or DeploymentStatus(revision=0, phase=Phase.PENDING, message="not looked at yet")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)

    def lease_changed(self, lease: ModelLease) -> None:
        """Take in a client lease that was just taken, renewed or given back, before the bucket is read again."""
        self._holds.tell(lease)
        self._post(_Held())

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
            InvalidInputError: It cannot be run so.
        """
        wish = self._current.get(model)
        spec = wish.revision.spec if wish and not wish.revision.spec.deleted else None
        wanted = settings or (spec.settings if spec else DeploymentSettings())

        def prepare() -> tuple[Prepared, int]:
            number = version or (spec.version if spec else self._registry.resolve(Reference(model)).number)
            prepared = self._wishes.prepare(model, number, wanted)
            missing = {file.sha256: file.size_bytes for file in prepared.manifest.files}
            path_of = self._registry.cache.path_of
            return prepared, sum(size for digest, size in missing.items() if not path_of(digest).exists())

        prepared, fetch_bytes = await asyncio.to_thread(prepare)
        now = self._clock()
        plans = []
        for server in self._servers.values():
            facts = server.units[model].facts if model in server.units else None
            plans.append(plan_for(server.steward, prepared, model, facts, fetch_bytes, now))
        return LoadPlanView(model=model, version=prepared.target.version, servers=tuple(plans))

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

    # The owner

    def _post(self, message: _Message) -> None:
        self._inbox.put_nowait(message)

    async def _own(self) -> None:
        while True:
            message = await self._inbox.get()
            self._step += 1
            try:
                self._handle(message)
                self._arrange_all()
            except Exception:
                # The loop's edge: one model's surprise must not stop the others.
                logger.exception("the reconciler stumbled over %s", type(message).__name__)
            self._changed.set()
            self._changed = asyncio.Event()

    def _handle(self, message: _Message) -> None:
        match message:
            case _Woken(model=model):
                self._woken(model)
            case _Wished(wishes=wishes):
                self._adopt(*wishes.values())
            case _Seen(server=server, began=began, sight=sight):
                self._seen(server, began, sight)
            case _Done(server=server):
                self._done(server, message)
            case _Gauged(server=server, began=began, reading=reading):
                self._gauged(server, began, reading)
            case _Demanded(model=model, taken=taken):
                self._demanded(model)
                if not taken.done():
                    taken.set_result(None)
            case _Held():
                pass  # what follows from it is arranged after every message
            case _Cleaned(server=server, done=done):
                server.cleaning, server.cleaned = None, done
                self._drive_all(server)
            case _LeaseChanged(held=held):
                self._lease_changed(held)
            case _Tick():
                self._tick()
            case _Poll():
                self._poll()

    def _tick(self) -> None:
        assert self._loop is not None
        self._loop.call_later(self._settings.interval_seconds, self._post, _Tick())
        self._reader.read(None)
        self._holds.read()
        for server in self._servers.values():
            self._clean(server)
            self._look(server)
        role = "leading" if self._lease.held else f"following {self._lease.leader}"
        sentence = report(role, self.statuses().values(), self._servers.values(), self._reader.trouble)
        if sentence != self._report:
            self._report = sentence
            logger.info("%s", sentence)

    def _poll(self) -> None:
        assert self._loop is not None
        self._loop.call_later(self._memory.poll_interval_seconds, self._post, _Poll())
        for server in self._servers.values():
            self._gauge(server)

    def _woken(self, model: str | None) -> None:
        wish = self._wishes.quick(model) if model is not None else None
        known = self._current.get(model) if model is not None else None
        if wish is not None and (known is None or wish.revision.number > known.revision.number):
            self._adopt(wish)
        else:
            self._reader.read(model)  # an alias may have moved, or something is not in memory

    def _adopt(self, *wishes: Wish) -> None:
        adopted = [wish.model for wish in wishes if self._take_in(wish)]
        for server in self._servers.values() if adopted else ():
            self._judge(server)
            for model in adopted:
                self._drive(server, server.unit(model))

    def _take_in(self, wish: Wish) -> bool:
        """Want what a revision wants, unless that or something newer is wanted already."""
        known = self._current.get(wish.model)
        if known is not None and wish.revision.number <= known.revision.number:
            return False
        self._current[wish.model] = wish
        if known is not None or not wish.revision.spec.deleted:
            self._events.add("Normal", "RevisionSeen", wish.model, wish.sentence)
        now = self._clock()
        for server in self._servers.values():
            unit = server.unit(wish.model)
            unit.adopt(wish, now, self._backoff)
            server.steward.adopt(wish.model)
            if unit.facts is None and unit.task is None and server.trouble is None:
                unit.facts = server.sight.facts(wish.model)
                if unit.facts is None:
                    self._look(server)
                else:
                    server.steward.see(wish.model, unit.facts, self._step, now)
        return True

    def _seen(self, server: KnownServer, began: int, sight: Sight) -> None:
        server.looking = None
        before, server.sight, server.observed_at = server.sight, sight, self._clock()
        well = sight.state is ServerState.READY
        if sight.state is not before.state:
            message = f"Triton {sight.version} answers" if well else sight.message
            self._events.add("Normal" if well else "Warning", f"Server{sight.state}", server.name, message)
        if not well or sight.generation != before.generation:
            for unit in server.units.values():
                unit.lost()
            server.steward.lost(restarted=sight.generation != before.generation)
        if well and not server.steward.accounts.known:
            self._gauge(server)
        if well:
            for model in self._current:
                unit = server.unit(model)
                if unit.task is None:
                    # What we did since the look began is newer than the look.
                    facts = sight.facts(model) if unit.changed <= began else None
                    if facts is not None:
                        unit.see(facts)
                        server.steward.see(model, facts, self._step, self._clock())
                    elif unit.facts is None:
                        server.look_again = True
        self._judge(server)
        self._drive_all(server)
        if server.look_again:
            server.look_again = False
            self._look(server)

    def _done(self, server: KnownServer, done: _Done) -> None:
        unit, outcome, now = done.unit, done.outcome, self._clock()
        unit.task = unit.doing = None
        unit.changed = self._step
        if isinstance(outcome.action, Prove):
            unit.proved_at = time.monotonic()
        wish = self._current.get(unit.model)
        reading = done.reading if done.reading and done.reading.generation == server.sight.generation else None
        self._keep(server, server.steward.ended(wish, unit, outcome, reading, done.grown, self._step, now))
        if server.steward.out_of_memory(wish, unit, outcome):
            unit.facts = None
            message = f"on {unit.server}: {outcome.error}; its footprint is corrected, and others make room"
            self._events.add("Warning", "OutOfMemory", unit.model, message)
        else:
            unit.settle(outcome, now=now, backoff=self._backoff, events=self._events)
        if unit.facts is None:
            self._look(server)
        self._judge(server)
        self._drive(server, unit)

    def _drive_all(self, server: KnownServer) -> None:
        for model in self._current:
            self._drive(server, server.unit(model))
        if not any(unit.doing for unit in server.units.values()):
            server.waits = 0

    def _drive(self, server: KnownServer, unit: Unit) -> None:
        """Take the next step for one model on one server, if there is one and none is in flight."""
        wish = self._current.get(unit.model)
        if wish is None or unit.task is not None:
            return
        unit.doing = None
        asked = False
        if server.trouble is None and unit.facts is not None and server.steward.accounts.known:
            action = self._next_action(self._desired(server, wish), unit)
            if isinstance(action, Wait):
                unit.doing = Doing(action)
                self._look_later(server)
            elif action is not None and self._may(server, action):
                asked = not self._begin_or_ask(server, unit, wish, action)
        if not asked and unit.task is None:
            server.steward.queue.withdraw(unit.model)
        failure = unit.record.failures.get(wish.wanted)
        if failure is not None and failure.blocks(self._clock()):
            server.steward.failed(unit.model, failure.message)
        unit.announce(self._desired(server, wish), server.trouble, self._clock(), self._events)

    def _begin_or_ask(self, server: KnownServer, unit: Unit, wish: Wish, action: Action) -> bool:
        """Begin an action; one that needs memory only with a reservation, else it is put into the queue."""
        need = server.steward.queue.needs(wish, unit, action) if isinstance(action, Load) else None
        if need is None or server.steward.queue.granted(unit.model, need):
            self._begin(server, unit, wish, action)
            return True
        request = server.steward.queue.ask(unit.model, need, self._clock())
        unit.doing = Doing(Wait(f"waits for memory: {request.why}"), Phase.PENDING)
        return False

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

    def _may(self, server: KnownServer, action: Action) -> bool:
        """Whether this replica may do it. Asking a loaded version changes nothing, so every replica may."""
        if isinstance(action, Prove) and not action.candidate:
            return True
        return self._lease.held and server.cleaned

    def _begin(self, server: KnownServer, unit: Unit, wish: Wish, action: Action) -> None:
        target = getattr(action, "target", None)
        prepared = wish.prepared.get(target) if target is not None else None
        unit.doing = Doing(action)

        def progress(phase: Phase) -> None:
            if unit.doing is not None and unit.doing.action is action:
                unit.doing = Doing(action, phase)

        managed = server.managed
        loads = isinstance(action, Load) and server.steward.tenant(unit.model).request is not None
        proves = isinstance(action, Prove) and unit.record.marks.get(action.target.version) is not Mark.PASSED
        server.steward.began(unit, action, self._clock())

        async def act() -> None:
            before = await gauge(managed, counters=False) if loads and managed.devices else None
            outcome = await self._executor.run(managed, unit.model, action, prepared, progress)
            after = None
            if managed.devices and (loads or proves or isinstance(action, Unload)):
                after = await gauge(managed, counters=False)
            self._post(_Done(server, unit, outcome, after, differences(before, after)))

        logger.debug("%s on %s: %s", unit.model, unit.server, action)
        unit.task = self._spawn(act(), f"{type(action).__name__} {unit.model}")

    def _lease_changed(self, held: bool) -> None:
        if held:
            self._events.add("Normal", "Leading", "reconciler", "this replica holds the lease and acts")
            for server in self._servers.values():
                self._clean(server)
            self._reader.read(None)
        else:
            self._events.add("Warning", "Following", "reconciler", f"{self._lease.leader} leads; this one observes")
            for server in self._servers.values():
                server.cleaned = False

    # Memory

    def _arrange_all(self) -> None:
        """Give out memory, now that something may have changed."""
        now = self._clock()
        held = self._holds.until(now)
        for server in self._servers.values():
            server.steward.hold({model: end for model, end in held.items() if model in self._current}, now)
            for model in self._judge(server):
                self._drive(server, server.unit(model))
            if server.trouble is None and self._lease.held:
                self._arrange(server, now)

    def _arrange(self, server: KnownServer, now: datetime) -> None:
        moves = server.steward.queue.arrange(server.units, now)
        for model, why in moves.refused:
            self._refused(server, server.unit(model), why, now)
        for record in moves.evicted:
            self._events.add("Normal", "Evicted", record.victim, f"from {server.name}: {record.why}")
            self._drive(server, server.unit(record.victim))
        for model in moves.go:
            unit = server.unit(model)
            self._drive(server, unit)
            if unit.task is None:
                server.steward.queue.withdraw(model)  # it wants something else by now
        for model in moves.waiting:
            unit, request = server.unit(model), server.steward.tenant(model).request
            if unit.task is None and request is not None:
                unit.doing = Doing(Wait(f"waits for memory: {request.why}"), Phase.PENDING)

    def _refused(self, server: KnownServer, unit: Unit, why: str, now: datetime) -> None:
        wish = self._current.get(unit.model)
        if wish is not None:
            unit.record = unit.record.after_failure(wish.wanted, why, final=False, now=now, backoff=self._backoff)
            self._events.add("Warning", "LoadRefused", unit.model, f"on {unit.server}: {why}")
            self._judge(server)
            self._drive(server, unit)

    def _judge(self, server: KnownServer) -> list[str]:
        """Ask the steward which models shall be loaded; return those for which that changed."""
        pairs = [(wish, server.unit(model)) for model, wish in self._current.items()]
        return server.steward.judge(pairs, self._clock())

    def _demand(self, model: str) -> "asyncio.Future[None]":
        wish = self._current.get(model)
        if wish is None or wish.revision.spec.deleted:
            raise NotFoundError(f"{model} is not deployed; deploy it first", model=model)
        if not wish.revision.spec.loaded:
            raise ConflictError(f"the deployment of {model} says unloaded; deploy it again to load it", model=model)
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._post(_Demanded(model, taken))
        return taken

    def _demanded(self, model: str) -> None:
        wish = self._current.get(model)
        if wish is None:
            return
        for server in self._servers.values():
            unit = server.unit(model)
            server.steward.demand(model, self._clock())
            waits = server.steward.tenant(model).demanded_at is not None
            if waits and unit.task is None and not wish.problem:
                unit.record = unit.record.wanted_anew(wish.wanted)
            self._judge(server)
            self._drive(server, unit)

    def _awaited(self, model: str, status: DeploymentStatus) -> bool:
        """Whether a demand for a model that is not loaded is still at work somewhere."""
        if status.phase is not Phase.UNLOADED:
            return False
        wish = self._current.get(model)
        if wish is None or wish.revision.spec.deleted or not wish.revision.spec.loaded:
            return False
        return not self.leading or any(
            server.steward.tenant(model).demanded_at is not None for server in self._servers.values()
        )

    def _gauged(self, server: KnownServer, began: int, reading: Reading) -> None:
        server.gauging = None
        steward = server.steward
        if server.trouble is not None or reading.generation != server.sight.generation:
            return
        proving = [unit.model for unit in server.units.values() if unit.doing and isinstance(unit.doing.action, Prove)]
        self._keep(server, steward.take(reading, proving, began, self._clock()))
        for device, size in steward.unaccounted():
            self._events.add(
                "Warning",
                "UnaccountedMemory",
                server.name,
                f"nobody accounts for {size_text(size)} in use on {device}; they count against its budget",
            )

    def _keep(self, server: KnownServer, measurements: list[Measurement]) -> None:
        """Keep measured footprints with their versions in the bucket."""
        if not measurements or not self._lease.held:
            return

        def put() -> None:
            for one in measurements:
                self._registry.footprints.put(one.key, one.measured, actor=f"reconciler on {server.name}")

        async def run() -> None:
            try:
                await asyncio.to_thread(put)
            except ControlPlaneError as error:
                logger.warning("a measured footprint cannot be kept: %s", error)

        self._spawn(run(), "keep footprints")

    def _occupant(self, server: KnownServer, wish: Wish) -> Occupant:
        return Occupant(wish, server.unit(wish.model), server.trouble.message if server.trouble else "")

    def _occupants(self, server: KnownServer) -> list[Occupant]:
        return [self._occupant(server, wish) for wish in self._current.values()]

    # What takes time

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s ended by surprise", task.get_name(), exc_info=error)

    def _clean(self, server: KnownServer) -> None:
        """Remove what a crash left in a model repository. The leader's alone: another's may be the leader's work."""
        if not self._lease.held or server.cleaned or server.cleaning is not None:
            return

        async def clean() -> None:
            try:
                await asyncio.to_thread(server.managed.repository.clean)
            except ControlPlaneError as error:
                logger.warning("%s: its model repository cannot be cleaned: %s", server.name, error)
                self._post(_Cleaned(server, done=False))
            else:
                self._post(_Cleaned(server, done=True))

        server.cleaning = self._spawn(clean(), f"clean {server.name}")

    def _look(self, server: KnownServer) -> None:
        if server.looking is not None:
            server.look_again = True
            return
        began = self._step
        models = tuple(self._current)

        async def seen() -> None:
            sight = await look(server.managed, models, server.sight.version)
            self._post(_Seen(server, began, sight))

        server.looking = self._spawn(seen(), f"look at {server.name}")

    def _gauge(self, server: KnownServer) -> None:
        if server.gauging is not None:
            return
        began, counters = self._step, server.trouble is None

        async def gauged() -> None:
            self._post(_Gauged(server, began, await gauge(server.managed, counters=counters)))

        server.gauging = self._spawn(gauged(), f"gauge {server.name}")

    def _look_later(self, server: KnownServer) -> None:
        assert self._loop is not None
        if server.later is None:

            def now() -> None:
                server.later = None
                self._look(server)

            pause = min(_WAIT_SECONDS * _WAIT_GROWTH ** min(server.waits, 100), self._settings.interval_seconds)
            server.waits += 1
            server.later = self._loop.call_later(pause, now)

    def _desired(self, server: KnownServer, wish: Wish) -> DesiredModel:
        desired = wish.desired(server.unit(wish.model).record.good)
        verdict = server.steward.desired(wish.model)
        if not desired.loaded or verdict is None or verdict.loaded:
            return desired
        refused = server.steward.tenant(wish.model).refused
        return replace(desired, loaded=False, why=refused or verdict.why, refused=bool(refused))
