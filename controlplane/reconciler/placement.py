"""Places models on the servers: builds the planner's input from the loop's state, and applies the plan to the servers.

The decisions are in `controlplane.placement.planner`. Every instance computes the same plan from what it observes, so a
standby reaches the leader's plan without communication: loaded models stay where they are, which is where the leader
put them, and the number of replicas follows from how many are loaded.

A move is made before the old replica is unloaded: a model that moves off a healthy server stays there until every new
replica answers and is proved, unless it is pinned and the server has no memory for both it and the model that comes.
"""

from collections.abc import Callable, Mapping, Set
from datetime import datetime, timedelta

from controlplane.domain.deployment import DeploymentSettings, Mode, chooses_gpus
from controlplane.domain.states import ServerState
from controlplane.lifecycle.desired import DesiredDeployment, PreparedVersion
from controlplane.memory.policy.types import HOST
from controlplane.placement.autoscale import Scale, ScalingRules, Window, rescale
from controlplane.placement.capacity import CapacityIndex, replica_devices, suits
from controlplane.placement.defragment import Defragmentation, defragment
from controlplane.placement.planner import plan
from controlplane.placement.types import (
    CPU,
    GPU,
    NO_HINTS,
    UNLIMITED,
    Assignment,
    Hints,
    Plan,
    Pool,
    Server,
    ServerUsage,
    Vacate,
    Workload,
)
from controlplane.placement.wanted import NO_POOL, PoolDemand, wanted_servers
from controlplane.reconciler.load_support import LoadSupport
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.messages import ReadingTaken
from controlplane.reconciler.queue_pressure import QueuePressure
from controlplane.reconciler.routes import answers
from controlplane.reconciler.server_state import ServerAssignment, TrackedServer
from controlplane.settings import PlacementSettings

_STEPS = 64
"""Unaccounted memory is subtracted from a budget in steps of this fraction, so that plans do not change with every
reading."""
_LEAVING = "its agent is about to stop"
_NO_TRAFFIC = Window(0, 0.0, 1.0)
_SOME_GPU = "gpu:0"
"""Stands for a GPU on a system without any, to compute what a GPU would have to hold."""


class PlacementController:
    """Keeps the plan, and the servers' `TrackedServer.places`.

    Args:
        state: The loop's state.
        settings: Grace periods and scaling rules.
        leading: Whether this process decides the number of replicas.
    """

    def __init__(self, state: LoopState, settings: PlacementSettings, *, leading: Callable[[], bool]) -> None:
        self._state = state
        self._settings = settings
        self._leading = leading
        self._rules = ScalingRules(settings.scale_up_seconds, settings.scale_down_seconds)
        self._pressure = QueuePressure()
        self._began: datetime | None = None
        self._looked_at_all = False
        self._trouble_since: dict[str, datetime] = {}
        self._touched = state.follow(placement=True)
        self._moved: set[str] = set(state.servers)
        self._unseen: set[str] = set()
        self._moving: set[str] = set()
        self._scalable: set[str] = set()
        self._devices: dict[str, tuple[object, ...]] = {}
        self._support = LoadSupport()
        self._leads = False
        self._queue: list[str] = []
        """Changed models that are placed in the next calls, the next one last."""
        self.waiting = False
        """Whether changed models are left for the next call."""

    def place(self, moved: Set[str], limit: int) -> int:
        """Update the placement of changed models, and mark the models whose assignment changed.

        Args:
            moved: Servers whose health or capacity may have changed.
            limit: How many changed models are placed now; the others follow in the next calls.

        Returns:
            How many models were checked.
        """
        self.waiting = False
        now = self._state.clock()
        self._began = self._began or now
        self._moved |= moved
        if not self._ready(now):
            return 0
        before = self._state.plan
        moved, self._moved = (self._moved | self._trouble_since.keys()) & self._state.servers.keys(), set()
        servers = self._servers(moved, now)
        touched = self._take_touched(moved, servers, limit)
        if not touched and servers is before.servers:
            return 0
        shifted = self._changed_servers(before.servers, servers)
        # What is on a server that has only another budget stays as it is, unless the plan changes it.
        seated = {
            model
            for name in shifted
            if name in before.server_usage
            and not self._has_other_room_alone(before.servers.get(name), servers.get(name))
            for model in before.server_usage[name].models
        }
        strayed = set() if self._leading() else self._follow(touched)
        workloads = self._workloads(servers, touched)
        if strayed:
            others = {model: one for model, one in workloads.items() if model not in strayed}
            self._state.plan = plan(before, servers, others)
        new = {model for model in touched | seated if model in workloads and model not in self._state.plan.assignments}
        hinted = shifted or strayed or workloads is not before.workloads
        hints = self.hints(new | seated) if hinted else NO_HINTS
        self._state.plan = made = plan(self._state.plan, servers, workloads, hints)
        settled = touched | seated
        if made is not before:
            self._tell(before, made)
            settled |= {
                model
                for model, assignments in made.assignments.items()
                if before.assignments.get(model) is not assignments
            }
            settled |= before.assignments.keys() - made.assignments.keys()
            settled |= made.unplaced.keys() | before.unplaced.keys()
            self._state.touch(settled - touched, moves=False)
        settled = (settled & self._state.desired_state.keys()) - self._unseen
        for model in sorted(settled):
            for server in self._settle(model, self._state.desired_state[model]):
                self._state.plan_again(server, model, moves=False)
        return len(settled)

    def _take_touched(self, moved: Set[str], servers: Mapping[str, Server], limit: int) -> set[str]:
        """Take models that changed, and those that are being moved or that wait for their first observation."""
        known = self._state.desired_state.keys()
        devices = {name: self._properties(name, servers[name]) for name in moved}
        leads = self._leading()
        if leads is not self._leads or any(self._devices.get(name) != one for name, one in devices.items()):
            self._touched.update(known)  # what a model needs, and where it loads, depends on these
        self._devices |= devices
        self._leads = leads
        if not self._queue and self._touched:
            self._queue = self._in_order(self._touched & known)
            self._touched.clear()
        taken = self._queue[-limit:]
        del self._queue[-limit:]
        self.waiting = bool(self._queue or self._touched)
        touched = {*taken, *(self._moving & known), *(self._unseen & known)}
        touched |= {one for model in touched for one in self._state.graph.pipelines.get(model, ())} & known
        self._unseen = self._not_seen(touched)
        return touched

    def _in_order(self, models: Set[str]) -> list[str]:
        """Return models in the order in which they are placed, the first one last: loaded ones keep their places."""
        present: set[str] = set().union(*(server.present for server in self._state.servers.values()))

        def order(model: str) -> tuple[bool, bool, int, str]:
            settings = self._state.desired_state[model].revision.spec.settings
            return model not in present, settings.mode is not Mode.PINNED, -settings.priority, model

        return sorted(models, key=order, reverse=True)

    def _properties(self, name: str, placed: Server) -> tuple[object, ...]:
        """Return what determines how much memory models need on a server, and which of them it loads."""
        server = self._state.servers[name]
        accounts = server.scheduler.accounts
        return accounts.known, accounts.limited, accounts.topology, placed.has_gpu, self._support.target(server).runs

    @staticmethod
    def _changed_servers(before: Mapping[str, Server], now: Mapping[str, Server]) -> list[str]:
        if before is now:
            return []
        left = before.keys() - now.keys()
        return [*left, *(name for name, server in now.items() if before.get(name) is not server)]

    @staticmethod
    def _has_other_room_alone(before: Server | None, now: Server | None) -> bool:
        return before is not None and now is not None and before.differs_in_room_alone(now)

    def forget(self, name: str) -> None:
        """Remove what is known of a server that left."""
        self._trouble_since.pop(name, None)
        self._devices.pop(name, None)
        self._moved.discard(name)

    def overlooked(self, model: str) -> bool:
        """Return whether a model's workload differs from the one in the plan."""
        if not self._looked_at_all or model in self._touched or model in self._queue or model in self._unseen:
            return False
        kept = self._state.plan.workloads.get(model)
        return kept != self._workload_of(model, self._state.plan.servers)

    def counted(self, gauged: ReadingTaken) -> None:
        """Apply a server's counters; when a window ends, decide how many replicas each model has."""
        counters, now = gauged.reading.counters, self._state.clock()
        if counters is None or not self._leading():
            return
        self._pressure.take(gauged.server.name, counters)
        windows = self._pressure.windows(now, self._settings.window_seconds)
        if windows is None:
            return
        for model in sorted(self._scalable & self._state.scales.keys()):
            scale = self._state.scales[model]
            settings = self._state.desired_state[model].revision.spec.settings
            most = settings.max_replicas or settings.min_replicas
            if settings.min_replicas == most == scale.replicas:
                self._scalable.discard(model)
                continue
            self._state.scales[model] = made = rescale(
                scale,
                windows.get(model, _NO_TRAFFIC),
                least=settings.min_replicas,
                most=most,
                objective_milliseconds=settings.target_queue_milliseconds,
                now=now,
                rules=self._rules,
            )
            if made != scale:
                self._state.touch((model,))
            if made.replicas != scale.replicas:
                self._state.events.add("Normal", "Scaled", model, made.why or f"{made.replicas} replicas")

    def pools(self) -> dict[str, PoolDemand]:
        """Return the demand of each pool of servers, as this process observes it. No I/O."""
        label = self._settings.pool_label
        seconds: dict[str, float] = {}
        for name, server in self._state.servers.items():
            pool = server.managed.labels.get(label) or NO_POOL
            seconds[pool] = seconds.get(pool, 0.0) + self._pressure.total_seconds.get(name, 0.0)
        wanted = wanted_servers(self._state.plan, label, self._idle())
        return {
            pool: PoolDemand(wanted.get(pool, 0), seconds.get(pool, 0.0))
            for pool in sorted(wanted.keys() | seconds.keys())
        }

    def _idle(self) -> set[str]:
        """Return the on-demand models that are neither loaded nor requested."""
        return {
            model
            for model in self._state.plan.workloads
            if (known := self._state.desired_state.get(model)) is not None
            and known.revision.spec.settings.mode is Mode.ON_DEMAND
            and not self._loaded_on(model)
            and not any(self._is_requested(server, model) for server in self._state.servers.values())
        }

    @staticmethod
    def _is_requested(server: TrackedServer, model: str) -> bool:
        model_state = server.scheduler.model_states.get(model)
        return model_state is not None and model_state.demand.since is not None

    def preview(
        self, model: str, prepared: PreparedVersion, settings: DeploymentSettings
    ) -> tuple[tuple[Assignment, ...], str]:
        """Return where a version, deployed or not, would be placed, and why nowhere. Changes nothing."""
        servers = dict(self._state.plan.servers)
        if not servers:
            return tuple(Assignment(name, (), 0) for name in self._state.servers), ""
        scale = self._state.scales.get(model, Scale(settings.min_replicas))
        workload = self._workload(model, prepared, settings, scale, servers)
        made = plan(self._state.plan, servers, {**self._state.plan.workloads, model: workload})
        return made.assignments.get(model) or _provisional(made, workload), made.unplaced.get(model, "")

    def defragment(self, *, dry_run: bool, limit: int) -> Defragmentation:
        """Return the moves that are worth their cost, and make them unless it is a dry run."""
        rates: dict[str, float] = {}
        for server in self._state.servers.values():
            for model, model_state in server.scheduler.model_states.items():
                rates[model] = rates.get(model, 0.0) + model_state.demand.usage.rate_per_second
        cached = self.hints(self._state.plan.assignments.keys()).cached
        found = defragment(self._state.plan, Hints(cached=cached, rates=rates), limit=limit)
        if not dry_run and found.moves:
            before, self._state.plan = self._state.plan, found.plan
            self._tell(before, found.plan)
            self._state.touch(
                {
                    model
                    for model, assignments in found.plan.assignments.items()
                    if before.assignments.get(model) is not assignments
                }
            )
        return found

    def _follow(self, touched: Set[str]) -> set[str]:
        """Return the models that the leader has placed elsewhere, and adopt the numbers of replicas that it chose."""
        strayed, known = set(), self._state.servers
        for model in touched & self._state.plan.assignments.keys():
            assignments = self._state.plan.assignments[model]
            loaded = self._loaded_on(model)
            here = {assignment.server for assignment in assignments}
            elsewhere = loaded - here and (here - loaded or len(loaded) > len(here))
            if elsewhere or any(
                self._on_others(model, assignment) for assignment in assignments if assignment.server in known
            ):
                strayed.add(model)
            scale = self._state.scales.get(model)
            if loaded and scale is not None and scale.replicas != len(loaded):
                self._state.scales[model] = Scale(len(loaded))
                self._scalable.add(model)
        return strayed

    def _on_others(self, model: str, assignment: Assignment) -> bool:
        """Return whether a model is loaded on other devices of a server than its assigned ones."""
        devices = self._loaded_devices(self._state.servers[assignment.server], model)
        return bool(devices) and set(devices) != set(assignment.devices)

    @staticmethod
    def _loaded_devices(server: TrackedServer, model: str) -> tuple[str, ...]:
        """Return the devices that a loaded model uses; empty if unknown."""
        unit = server.units.get(model)
        if unit is None or unit.facts is None or not unit.facts.loaded or unit.facts.gpus is None:
            return ()
        accounts = server.scheduler.accounts
        # On a server without GPUs the host is implied.
        return accounts.names(unit.facts.gpus) if accounts.gpus else ()

    def _loaded_on(self, model: str) -> set[str]:
        return {
            name
            for name, server in self._state.servers.items()
            if (unit := server.units.get(model)) is not None and unit.facts is not None and unit.facts.loaded
        }

    def _not_seen(self, models: Set[str]) -> set[str]:
        """Return models without a placement that may be loaded on a server not yet observed since the start."""
        return {
            model
            for model in models
            if model not in self._state.plan.assignments and model not in self._state.plan.unplaced
            for server in self._state.servers.values()
            if server.trouble is None and (unit := server.unit(model)).facts is None and unit.task is None
        }

    def _ready(self, now: datetime) -> bool:
        """Return whether the cordons are known, and every server was observed and measured once or timed out.

        So loaded models stay where they are, and no model is placed on a cordoned server.
        """
        if not self._state.cordons_known:
            return False
        if self._looked_at_all:
            return True
        patient = self._began is not None and now - self._began < timedelta(
            seconds=self._settings.server_down_grace_seconds
        )
        self._looked_at_all = not patient
        return (
            not patient
            or len(self._state.servers) == 1
            or all(
                server.snapshot.state is not ServerState.STARTING and (server.away or server.scheduler.accounts.known)
                for server in self._state.servers.values()
            )
        )

    def _servers(self, moved: Set[str], now: datetime) -> Mapping[str, Server]:
        """Return the servers as planner input: the same objects as before if nothing changed."""
        before = self._state.plan.servers
        changed = {}
        for name in sorted(moved):
            server, known = self._state.servers[name], before.get(name)
            managed = server.managed
            made = Server(
                name, _pools(server), managed.zone, managed.labels, self._trouble(server, known, now), *_closing(server)
            )
            if made != known:
                changed[name] = made
        if not changed and before.keys() <= self._state.servers.keys():
            return before
        found = {**before, **changed}
        return {name: found[name] for name in self._state.servers if name in found}  # in the order of the settings

    def _trouble(self, server: TrackedServer, before: Server | None, now: datetime) -> str:
        """Return why a server can accept no models, after a grace period for one that was healthy; else empty."""
        if server.undriven:
            return server.undriven
        if server.trouble is None or not server.away:  # a drained server still answers
            self._trouble_since.pop(server.name, None)
            return ""
        since = self._trouble_since.setdefault(server.name, now)
        patient = before is not None and not before.trouble
        if patient and (now - since).total_seconds() < self._settings.server_down_grace_seconds:
            return ""
        return server.trouble.message

    def _workloads(self, servers: Mapping[str, Server], touched: Set[str]) -> Mapping[str, Workload]:
        """Return the workloads to place: the same objects as before if nothing changed."""
        before = self._state.plan.workloads
        changed: dict[str, Workload | None] = {}
        for model in sorted(touched):
            made = None if model in self._unseen else self._workload_of(model, servers)
            if before.get(model) != made:
                changed[model] = made
        if not changed:
            return before
        return {model: one for model, one in {**before, **changed}.items() if one is not None}

    def _workload_of(self, model: str, servers: Mapping[str, Server]) -> Workload | None:
        desired_deployment = self._state.desired_state[model]
        prepared = _runnable(desired_deployment)
        if prepared is None:
            self._state.scales.pop(model, None)
            return None
        settings = desired_deployment.revision.spec.settings
        scale = self._state.scales.get(model)
        if scale is None:
            most = settings.max_replicas or settings.min_replicas
            replicas = min(max(len(self._loaded_on(model)), settings.min_replicas), most)
            scale = self._state.scales[model] = Scale(replicas)
        if settings.max_replicas or scale.replicas != settings.min_replicas:
            self._scalable.add(model)
        return self._workload(model, prepared, settings, scale, servers)

    def _workload(
        self,
        model: str,
        prepared: PreparedVersion,
        settings: DeploymentSettings,
        scale: Scale,
        servers: Mapping[str, Server],
    ) -> Workload:
        sizes, seconds = self._sizes(model, prepared, servers)
        most = settings.max_replicas or settings.min_replicas
        if chooses_gpus(settings) or prepared.facts.wants_gpu:
            sizes = self._on_gpus_alone(model, prepared, sizes, chooses=chooses_gpus(settings))
        return Workload(
            model,
            sizes or {CPU: 0},
            replicas=min(max(scale.replicas, settings.min_replicas), most),
            min_replicas=settings.min_replicas,
            guaranteed=settings.mode is Mode.PINNED,
            priority=settings.priority,
            selector=tuple(sorted(settings.node_selector.items())),
            gpus=prepared.facts.named_gpus if GPU in sizes else (),
            gpu_count=settings.gpu_count,
            gpu_product=settings.gpu_product,
            gpu_min_bytes=settings.gpu_min_memory_bytes,
            cannot=self._cannot(model, prepared, settings),
            load_seconds=seconds,
        )

    def _cannot(self, model: str, prepared: PreparedVersion, settings: DeploymentSettings) -> Mapping[str, str]:
        """Return the servers that cannot load a version, or on which a member of a pipeline is not placed.

        If no server can, but an earlier version of the deployment can be loaded instead, none is excluded: that version
        has to stay placed.
        """
        selector = settings.node_selector.items()
        able = [
            server
            for server in self._state.servers.values()
            if all(server.managed.labels.get(key) == value for key, value in selector)
        ]
        found = self._support.refusals(model, prepared, able)
        desired_deployment = self._state.desired_state.get(model)
        falls_back = desired_deployment is not None and any(
            target.version != prepared.target.version for target in desired_deployment.prepared
        )
        cannot = {} if falls_back and len(found) == len(able) else dict(found)
        for member in prepared.settings.members:
            where = {assignment.server for assignment in self._state.plan.assignments.get(member, ())}
            for server in able if where else ():
                if server.name not in where:
                    cannot.setdefault(server.name, f"its member {member} is placed on {', '.join(sorted(where))}")
        return cannot

    def _sizes(
        self, model: str, prepared: PreparedVersion, servers: Mapping[str, Server]
    ) -> tuple[dict[str, int], float]:
        """Return what a replica needs on each device, by kind of device, and how long its load takes."""
        sizes: dict[str, int] = {}
        seconds = 1.0
        for name, server in self._state.servers.items():
            if name not in servers:
                continue  # it has just joined
            scheduler, pools = server.scheduler, servers[name].pools
            kind = GPU if servers[name].has_gpu and prepared.facts.may_use_gpu else CPU
            if kind not in sizes and scheduler.accounts.known:
                size = scheduler.size(prepared, model, tuple(pool.name for pool in pools if pool.kind == kind))
                sizes[kind] = size.footprint.reserve_bytes
                seconds = size.load_seconds or seconds
        return sizes, seconds

    def _on_gpus_alone(
        self, model: str, prepared: PreparedVersion, sizes: dict[str, int], *, chooses: bool
    ) -> dict[str, int]:
        """Return what a replica that requires GPUs needs; Triton may have GPUs even if no source reports them."""
        if GPU in sizes:
            return {GPU: sizes[GPU]}
        schedulers = [server.scheduler for server in self._state.servers.values()]
        if any(not scheduler.accounts.known for scheduler in schedulers):
            return sizes
        if not chooses and any(not scheduler.accounts.limited for scheduler in schedulers):
            return sizes
        return {GPU: schedulers[0].size(prepared, model, (_SOME_GPU,)).footprint.reserve_bytes} if schedulers else sizes

    def hints(self, models: Set[str]) -> Hints:
        """Return where models, and those without a place, are loaded or have their files."""
        loaded: dict[str, dict[str, tuple[str, ...]]] = {}
        cached: dict[str, set[str]] = {}
        for name, server in self._state.servers.items():
            for model in models | self._state.plan.unplaced.keys():
                unit = server.units.get(model)
                if unit is not None and unit.facts is not None and unit.facts.loaded:
                    loaded.setdefault(model, {})[name] = self._loaded_devices(server, model)
                if unit is not None and unit.facts is not None and unit.facts.staged:
                    cached.setdefault(model, set()).add(name)
        return Hints(loaded, {model: frozenset(names) for model, names in cached.items()})

    # Effects of the plan

    def _settle(self, model: str, desired_deployment: DesiredDeployment) -> list[TrackedServer]:
        """Apply the plan to the servers' assignments of one model; return the servers whose decision changed."""
        spec = desired_deployment.revision.spec
        assignments = {assignment.server: assignment for assignment in self._state.plan.assignments.get(model, ())}
        workload = self._state.plan.workloads.get(model)
        # If no server has enough memory, one server reports that with its numbers.
        provisional = (
            {} if assignments or workload is None else {s.server: s for s in _provisional(self._state.plan, workload)}
        )
        answering = bool(assignments) and all(self._serves(name, model) for name in assignments)
        elsewhere = ", ".join(assignments) or "no server"
        changed = []
        for name, server in self._state.servers.items():
            if workload is None:
                # Nothing is to be loaded, or nothing can be; every server that still has the model must unload it.
                place = ServerAssignment(True, "", assignment=bool(spec.loaded and not spec.deleted))
            elif name in assignments:
                place = ServerAssignment(
                    True, assignments[name].why, assignment=True, devices=assignments[name].devices
                )
            elif name in provisional:
                why = self._state.plan.unplaced.get(model, "")
                place = ServerAssignment(True, why, assignment=True, devices=provisional[name].devices)
            elif not answering and self._stays(server, model):
                place = ServerAssignment(True, f"it stays loaded until it answers on {elsewhere}")
            else:
                unplaced = self._state.plan.unplaced.get(model)
                why = f": {unplaced}" if unplaced and not assignments else ""
                if assignments and name in workload.cannot:
                    why = f"; {name} cannot load it: {workload.cannot[name]}"
                place = ServerAssignment(False, f"placed on {elsewhere}{why}")
            before = server.places.get(model)
            if before != place:
                server.places[model] = place
                if place.assignment:
                    server.scheduler.assignment(model, place.devices)
                if (
                    before is None
                    or before.here != place.here
                    or (place.assignment and before.devices != place.devices)
                ):
                    changed.append(server)
        self._hand_over(model, changed)
        stays = any(
            place.here and not place.assignment for place in (s.places[model] for s in self._state.servers.values())
        )
        (self._moving.add if stays or provisional else self._moving.discard)(model)
        return changed

    def _serves(self, name: str, model: str) -> bool:
        server = self._state.servers[name]
        return server.trouble is None and answers(server.unit(model))

    def _stays(self, server: TrackedServer, model: str) -> bool:
        """Return whether a model that is to leave a server may stay there until it answers on the new one."""
        unit, before = server.unit(model), server.places.get(model)
        if server.away or unit.facts is None or not unit.facts.loaded or (before is not None and not before.here):
            return False
        workload, place = self._state.plan.workloads[model], self._state.plan.servers[server.name]
        if place.drained and place.vacate is Vacate.ALWAYS and not self._state.plan.assignments.get(model):
            return False
        if not workload.guaranteed:
            return True
        guaranteed = self._state.plan.server_usage.get(server.name, ServerUsage()).guaranteed
        return all(
            guaranteed.get(pool.name, 0) + workload.bytes[pool.kind] <= pool.bytes
            for pool in place.pools
            if pool.kind in workload.bytes and suits(workload, pool)
        )

    def _hand_over(self, model: str, changed: list[TrackedServer]) -> None:
        """Move pending load requests, and the loaded state, of a model to the servers that it is now assigned to."""
        left = [server for server in changed if not server.places[model].here]
        new = [server for server in changed if server.places[model].here and server.places[model].assignment]
        now = self._state.clock()
        waits = loaded = False
        for server in self._state.servers.values():
            model_state = server.scheduler.model_states.get(model)
            if model_state is None or server in new:
                continue
            loaded = loaded or model_state.residency.loaded_at is not None or model_state.residency.restore
            if server in left:
                waits = waits or model_state.demand.since is not None
                model_state.demand.end()
                model_state.residency.restored()
        for server in new:
            if loaded:
                server.scheduler.model_state(model).residency.restore_here()
        if waits:
            for server in self._state.servers.values():
                if server.places[model].assignment:
                    server.scheduler.demand(model, now)

    def _tell(self, before: Plan, made: Plan) -> None:
        """Record events for moved and unplaced models, unless there is only one server."""
        if len(self._state.servers) == 1:
            return
        events = self._state.events
        for model, assignments in made.assignments.items():
            old = before.assignments.get(model, ())
            if assignments is old:
                continue
            here, there = {assignment.server for assignment in assignments}, {assignment.server for assignment in old}
            for assignment in assignments:
                if assignment.server not in there and not assignment.waits:
                    events.add("Normal", "Assigned", model, f"on {assignment.server}: {assignment.why}")
            if there - here:
                events.add("Normal", "Unassigned", model, f"from {', '.join(sorted(there - here))}")
        for model, why in made.unplaced.items():
            if before.unplaced.get(model) != why:
                events.add("Warning", "FailedScheduling", model, why)


def _provisional(made: Plan, workload: Workload) -> tuple[Assignment, ...]:
    """Return the largest devices that a workload could use if they were empty; empty if no server has suitable ones.

    A server that takes no new replicas is none of them, unless it is in trouble: its memory is not the reason.
    """
    able = []
    for name, server in made.servers.items():
        pools = sorted(CapacityIndex.pools_for(workload, server), key=lambda pool: (-pool.bytes, pool.name))
        if pools and CapacityIndex.labelled(workload, server) and not (server.drained or server.cordoned):
            chosen = tuple(pool.name for pool in pools[: replica_devices(workload, pools)])
            able.append((not server.trouble, pools[0].bytes, name, chosen))
    if not able:
        return ()
    _, _, name, devices = max(able)
    return (Assignment(name, devices, 0, why=made.unplaced.get(workload.model, "")),)


def _closing(server: TrackedServer) -> tuple[str, Vacate, str]:
    """Return why a server is drained, how far, and why it is cordoned."""
    cordon = server.cordon
    if server.leaving:
        return _LEAVING, Vacate.LAST, ""
    if cordon is not None and cordon.drain:
        return cordon.sentence, Vacate.ALWAYS if cordon.force else Vacate.ANYWHERE, ""
    return server.guard.draining, Vacate.GAPS, cordon.sentence if cordon else ""


def _runnable(desired_deployment: DesiredDeployment) -> PreparedVersion | None:
    """Return the version that determines a model's memory; None if nothing is to be or can be loaded."""
    spec = desired_deployment.revision.spec
    if spec.deleted or not spec.loaded:
        return None
    return next(
        (
            desired_deployment.prepared[target]
            for target in desired_deployment.targets
            if target in desired_deployment.prepared
        ),
        None,
    )


def _pools(server: TrackedServer) -> tuple[Pool, ...]:
    accounts = server.scheduler.accounts
    if not accounts.limited:
        return (Pool(HOST, UNLIMITED),)
    found: list[Pool] = []
    for device in accounts.devices:
        budget = accounts.ledger.budgets.get(device.name)
        if budget is None or (device.name != HOST and device not in accounts.gpus):
            continue
        step = max(budget.bytes // _STEPS, 1)
        stray = -(-accounts.ledger.unaccounted(device.name) // step) * step
        size = max(budget.bytes - stray, 0)
        if device.name == HOST:
            found.append(Pool(HOST, size))
            continue
        number = device.device_id if device.device_id is not None else len(found)
        found.append(Pool(device.name, size, number, device.product, device.total_bytes, device.device_id is not None))
    if not any(pool.name == HOST for pool in found):
        found.append(Pool(HOST, UNLIMITED))
    return tuple(found)
