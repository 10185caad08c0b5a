"""Places models on the servers: makes the plan's arguments from what the loop knows, and the plan's word the servers'.

It decides nothing itself: `controlplane.memory.placement` does. Every replica does the same with what it sees, so that
a follower comes to the leader's view without a word between them: what is loaded stays where it is, which is where the
leader put it, and the number of copies follows from how many are loaded.

A move is made before it is broken: where a model leaves a server that is well, it stays there until every new copy
answers and is proved; unless it is pinned and the server has no room for it beside who comes.
"""

from collections.abc import Callable, Mapping, Set
from datetime import datetime, timedelta

from controlplane.domain.deployment import DeploymentSettings, InstanceKind, Mode
from controlplane.domain.states import ServerState
from controlplane.memory.placement.board import suits
from controlplane.memory.placement.planning import plan
from controlplane.memory.placement.rebalancing import Defragmentation, defragment
from controlplane.memory.placement.scaling import Scale, ScalingRules, Window, rescale
from controlplane.memory.placement.types import CPU, GPU, UNLIMITED, Hints, Plan, Pool, Room, Server, Workload
from controlplane.memory.types import HOST
from controlplane.reconciler.driving import Driver
from controlplane.reconciler.fleet import KnownServer, Place
from controlplane.reconciler.messages import Gauged
from controlplane.reconciler.pressure import Pressure
from controlplane.reconciler.routing import answers
from controlplane.reconciler.state import LoopState
from controlplane.reconciler.wishes import Prepared, Wish
from controlplane.settings import PlacementSettings

_STEPS = 64
"""What nobody accounts for is taken off a budget in steps of this part of it, so that plans do not change at once."""
_NOBODY = Window(0, 0.0, 1.0)


class Placer:
    """Keeps the plan, and the servers' `KnownServer.places`.

    Args:
        state: What the loop knows.
        driver: Takes next steps.
        settings: How patient to be.
        leading: Whether this process decides how many copies there are.
    """

    def __init__(
        self, state: LoopState, driver: Driver, settings: PlacementSettings, *, leading: Callable[[], bool]
    ) -> None:
        self._state = state
        self._driver = driver
        self._settings = settings
        self._leading = leading
        self._rules = ScalingRules(settings.scale_up_seconds, settings.scale_down_seconds)
        self._pressure = Pressure()
        self._began: datetime | None = None
        self._trouble_since: dict[str, datetime] = {}

    def place(self) -> None:
        """Place what is wanted, now that something may have changed; drive whose place changed."""
        now = self._state.clock()
        self._began = self._began or now
        if not self._ready(now):
            return
        before = self._state.plan
        servers = self._servers(now)
        strayed = set() if self._leading() else self._follow()
        workloads = self._workloads(servers)
        if strayed:
            others = {model: one for model, one in workloads.items() if model not in strayed}
            self._state.plan = plan(before, servers, others)
        new = workloads.keys() - self._state.plan.seats.keys()
        self._state.plan = made = plan(self._state.plan, servers, workloads, self._hints(new))
        if made is not before:
            self._tell(before, made)
        changed: list[tuple[KnownServer, str]] = []
        for model, wish in self._state.wishes.items():
            changed.extend((server, model) for server in self._settle(model, wish))
        for server in {one.name: one for one, _ in changed}.values():
            self._state.judge(server)
        for server, model in changed:
            self._driver.drive(server, server.unit(model))

    def counted(self, gauged: Gauged) -> None:
        """Take in a server's counters; decide, where it is time for that, how many copies each model has."""
        counters, now = gauged.reading.counters, self._state.clock()
        if counters is None or not self._leading():
            return
        self._pressure.take(gauged.server.name, counters)
        windows = self._pressure.windows(now, self._settings.window_seconds)
        if windows is None:
            return
        for model, scale in self._state.scales.items():
            settings = self._state.wishes[model].revision.spec.settings
            most = settings.max_copies or settings.min_copies
            if settings.min_copies == most == scale.copies:
                continue
            self._state.scales[model] = made = rescale(
                scale,
                windows.get(model, _NOBODY),
                least=settings.min_copies,
                most=most,
                objective_milliseconds=settings.queue_objective_milliseconds,
                now=now,
                rules=self._rules,
            )
            if made.copies != scale.copies:
                self._state.events.add("Normal", "Scaled", model, made.why or f"{made.copies} copies")

    def preview(self, model: str, prepared: Prepared, settings: DeploymentSettings) -> tuple[tuple[str, ...], str]:
        """Return where a version would be placed that need not be deployed, and why nowhere. Changes nothing."""
        servers = dict(self._state.plan.servers)
        if not servers:
            return tuple(self._state.servers), ""
        scale = self._state.scales.get(model, Scale(settings.min_copies))
        workload = self._workload(model, prepared, settings, scale, servers)
        made = plan(self._state.plan, servers, {**self._state.plan.workloads, model: workload})
        seats = tuple(seat.server for seat in made.seats.get(model, ()))
        return seats or tuple(filter(None, (_largest(made, workload),))), made.lacking.get(model, "")

    def defragment(self, *, dry_run: bool, limit: int) -> Defragmentation:
        """Say which moves are worth their cost, and make them unless it is a dry run."""
        rates: dict[str, float] = {}
        for server in self._state.servers.values():
            for model, tenant in server.steward.tenants.items():
                rates[model] = rates.get(model, 0.0) + tenant.usage.rate_per_second
        cached = self._hints(self._state.plan.seats.keys()).cached
        found = defragment(self._state.plan, Hints(cached=cached, rates=rates), limit=limit)
        if not dry_run and found.moves:
            before, self._state.plan = self._state.plan, found.plan
            self._tell(before, found.plan)
            self.place()
        return found

    def _follow(self) -> set[str]:
        """Models that the leader has put elsewhere than this replica thought; the numbers of copies it chose."""
        strayed = set()
        for model, seats in self._state.plan.seats.items():
            loaded = self._loaded_on(model)
            here = {seat.server for seat in seats}
            if loaded - here and (here - loaded or len(loaded) > len(here)):
                strayed.add(model)
            scale = self._state.scales.get(model)
            if loaded and scale is not None and scale.copies != len(loaded):
                self._state.scales[model] = Scale(len(loaded))
        return strayed

    def _loaded_on(self, model: str) -> set[str]:
        return {
            name
            for name, server in self._state.servers.items()
            if (unit := server.units.get(model)) is not None and unit.facts is not None and unit.facts.loaded
        }

    def _ready(self, now: datetime) -> bool:
        """Whether every server was looked at and measured once, or had its time: what is loaded shall stay."""
        if self._began is not None and now - self._began >= timedelta(seconds=self._settings.grace_seconds):
            return True
        return len(self._state.servers) == 1 or all(
            server.sight.state is not ServerState.STARTING and (server.away or server.steward.accounts.known)
            for server in self._state.servers.values()
        )

    def _servers(self, now: datetime) -> dict[str, Server]:
        """The servers as the plan takes them: the same objects as before where nothing changed."""
        found = {}
        for name, server in self._state.servers.items():
            before = self._state.plan.servers.get(name)
            managed = server.managed
            made = Server(name, _pools(server), managed.zone, managed.labels, self._trouble(server, before, now))
            found[name] = before if before is not None and before == made else made
        return found

    def _trouble(self, server: KnownServer, before: Server | None, now: datetime) -> str:
        """Why a server can take nothing. One that was well is given time to come back."""
        if server.trouble is None:
            self._trouble_since.pop(server.name, None)
            return ""
        since = self._trouble_since.setdefault(server.name, now)
        patient = before is not None and not before.trouble
        if patient and (now - since).total_seconds() < self._settings.grace_seconds:
            return ""
        return server.trouble.message

    def _workloads(self, servers: Mapping[str, Server]) -> dict[str, Workload]:
        found = {}
        for model, wish in self._state.wishes.items():
            prepared = _runnable(wish)
            if prepared is None:
                self._state.scales.pop(model, None)
                continue
            before = self._state.plan.workloads.get(model)
            settings = wish.revision.spec.settings
            scale = self._state.scales.get(model)
            if scale is None:
                scale = self._state.scales[model] = Scale(len(self._loaded_on(model)))
            made = self._workload(model, prepared, settings, scale, servers)
            found[model] = before if before is not None and before == made else made
        return found

    def _workload(
        self,
        model: str,
        prepared: Prepared,
        settings: DeploymentSettings,
        scale: Scale,
        servers: Mapping[str, Server],
    ) -> Workload:
        sizes: dict[str, int] = {}
        seconds = 1.0
        for name, server in self._state.servers.items():
            kind = GPU if servers[name].has_gpu else CPU
            if kind not in sizes and server.steward.accounts.known:
                size = server.steward.size(prepared, model)
                kind = CPU if HOST in size.devices or not servers[name].has_gpu else GPU
                sizes[kind] = size.footprint.reserve_bytes
                seconds = size.load_seconds or seconds
        most = settings.max_copies or settings.min_copies
        if settings.instance_kind is InstanceKind.GPU and GPU in sizes:
            sizes.pop(CPU, None)
        return Workload(
            model,
            sizes or {CPU: 0},
            copies=min(max(scale.copies, settings.min_copies), most),
            min_copies=settings.min_copies,
            firm=settings.mode is Mode.PINNED,
            priority=settings.priority,
            selector=tuple(sorted(settings.node_selector.items())),
            gpus=settings.gpus if GPU in sizes else (),
            load_seconds=seconds,
        )

    def _hints(self, models: Set[str]) -> Hints:
        """Where models that have no place yet are loaded, or have their files."""
        loaded: dict[str, dict[str, tuple[str, ...]]] = {}
        cached: dict[str, set[str]] = {}
        for name, server in self._state.servers.items():
            for model in models | self._state.plan.lacking.keys():
                unit = server.units.get(model)
                if unit is not None and unit.facts is not None and unit.facts.loaded:
                    loaded.setdefault(model, {})[name] = ()
                if unit is not None and unit.facts is not None and unit.facts.staged:
                    cached.setdefault(model, set()).add(name)
        return Hints(loaded, {model: frozenset(names) for model, names in cached.items()})

    # What follows from the plan

    def _settle(self, model: str, wish: Wish) -> list[KnownServer]:
        """Bring the servers' places of one model to what the plan says; return the servers whose word changed."""
        spec = wish.revision.spec
        seats = {seat.server: seat for seat in self._state.plan.seats.get(model, ())}
        workload = self._state.plan.workloads.get(model)
        # Where it can be loaded nowhere for want of memory, one server says so with its figures.
        provisional = "" if seats or workload is None else _largest(self._state.plan, workload)
        answering = bool(seats) and all(self._serves(name, model) for name in seats)
        elsewhere = ", ".join(seats) or "no server"
        changed = []
        for name, server in self._state.servers.items():
            if workload is None:
                # Nothing is to be loaded, or nothing can be; whoever still has it has to let it go.
                place = Place(True, "", seat=bool(spec.loaded and not spec.deleted))
            elif name in seats:
                place = Place(True, seats[name].why, seat=True)
            elif name == provisional:
                place = Place(True, self._state.plan.lacking.get(model, ""), seat=True)
            elif not answering and self._stays(server, model):
                place = Place(True, f"it stays until it answers on {elsewhere}")
            else:
                lacking = self._state.plan.lacking.get(model)
                place = Place(False, f"placed on {elsewhere}" + (f": {lacking}" if lacking and not seats else ""))
            before = server.places.get(model)
            if before != place:
                server.places[model] = place
                if before is None or before.here != place.here:
                    changed.append(server)
        self._hand_over(model, changed)
        return changed

    def _serves(self, name: str, model: str) -> bool:
        server = self._state.servers[name]
        return server.trouble is None and answers(server.unit(model))

    def _stays(self, server: KnownServer, model: str) -> bool:
        """Whether a model that is to leave a server may stay there until it answers where it goes."""
        unit, before = server.unit(model), server.places.get(model)
        if server.away or unit.facts is None or not unit.facts.loaded or (before is not None and not before.here):
            return False
        workload, place = self._state.plan.workloads[model], self._state.plan.servers[server.name]
        if not workload.firm:
            return True
        firm = self._state.plan.rooms.get(server.name, Room()).firm
        return all(
            firm.get(pool.name, 0) + workload.bytes[pool.kind] <= pool.bytes
            for pool in place.pools
            if pool.kind in workload.bytes and suits(workload, pool)
        )

    def _hand_over(self, model: str, changed: list[KnownServer]) -> None:
        """Whoever waits for a model, waits for it where it is placed now; what was loaded is loaded there."""
        left = [server for server in changed if not server.places[model].here]
        new = [server for server in changed if server.places[model].here and server.places[model].seat]
        now = self._state.clock()
        waits = loaded = False
        for server in self._state.servers.values():
            tenant = server.steward.tenants.get(model)
            if tenant is None or server in new:
                continue
            loaded = loaded or tenant.loaded_at is not None or tenant.restore
            if server in left:
                waits = waits or tenant.demanded_at is not None
                tenant.demanded_at, tenant.restore = None, False
        for server in new:
            server.steward.tenant(model).restore = loaded or server.steward.tenant(model).restore
        if waits:
            for server in self._state.servers.values():
                if server.places[model].seat:
                    server.steward.demand(model, now)

    def _tell(self, before: Plan, made: Plan) -> None:
        """Tell in events who moved, and who cannot be placed; nothing of a fleet of one."""
        if len(self._state.servers) == 1:
            return
        events = self._state.events
        for model, seats in made.seats.items():
            old = before.seats.get(model, ())
            if seats is old:
                continue
            here, there = {seat.server for seat in seats}, {seat.server for seat in old}
            for seat in seats:
                if seat.server not in there and not seat.waits:
                    events.add("Normal", "Placed", model, f"on {seat.server}: {seat.why}")
            if there - here:
                events.add("Normal", "Displaced", model, f"from {', '.join(sorted(there - here))}")
        for model, why in made.lacking.items():
            if before.lacking.get(model) != why:
                events.add("Warning", "NotPlaced", model, why)


def _largest(made: Plan, workload: Workload) -> str:
    """The largest server that has the labels and a device for it; empty where there is none."""
    able = [
        (not server.trouble, max(pool.bytes for pool in server.pools), name)
        for name, server in made.servers.items()
        if all(server.labels.get(key) == value for key, value in workload.selector)
        and any(suits(workload, pool) for pool in server.pools)
    ]
    return max(able, default=(False, 0, ""))[2]


def _runnable(wish: Wish) -> Prepared | None:
    """The version that decides how much memory a model needs; None where nothing shall or can be loaded."""
    spec = wish.revision.spec
    if spec.deleted or not spec.loaded:
        return None
    return next((wish.prepared[target] for target in wish.targets if target in wish.prepared), None)


def _pools(server: KnownServer) -> tuple[Pool, ...]:
    accounts = server.steward.accounts
    if not accounts.limited:
        return (Pool(HOST, UNLIMITED),)
    found: list[Pool] = []
    for device in accounts.devices:
        budget = accounts.ledger.budgets.get(device.name)
        if budget is None or (device.name != HOST and (device.lost or not device.allocatable)):
            continue
        step = max(budget.bytes // _STEPS, 1)
        stray = -(-accounts.ledger.unaccounted(device.name) // step) * step
        number = device.device_id if device.device_id is not None else len(found)
        found.append(
            Pool(device.name, max(budget.bytes - stray, 0), None if device.name == HOST else number, device.product)
        )
    if not any(pool.name == HOST for pool in found):
        found.append(Pool(HOST, UNLIMITED))
    return tuple(found)
