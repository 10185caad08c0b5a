"""The servers and the models on them, as the loop knows them. Mutable; the loop's own."""

import asyncio
import heapq
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.domain.advisories import warnings_for
from controlplane.domain.states import Phase, ServerState, ServerStatus
from controlplane.lifecycle.actions import Action, Load, Prove
from controlplane.lifecycle.desired import DesiredDeployment, PreparedVersion
from controlplane.lifecycle.probe_schedule import ProbeTracker
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import DesiredReplica
from controlplane.lifecycle.status import Trouble
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.reconciler.leak_restart import LeakRestarter
from controlplane.servers.health import ServerHealth
from controlplane.servers.server import ManagedServer
from controlplane.servers.snapshot import ServerSnapshot
from controlplane.triton.instance_groups import Gpus, asked_gpus


@dataclass(frozen=True, slots=True)
class ServerAssignment:
    """Whether a model's place is on a server.

    Attributes:
        here: Whether.
        why: Why, or where it is instead.
        assignment: Whether it is assigned; else it only stays until it answers where it is.
        devices: The devices of the server that it is assigned; empty where that is not said.
    """

    here: bool
    why: str
    assignment: bool = False
    devices: tuple[str, ...] = ()


@dataclass
class TrackedServer:
    """A server as the loop last saw it.

    Attributes:
        managed: The server.
        scheduler: Who looks after its memory.
        snapshot: The newest look at it.
        observed_at: When that was (UTC).
        looking: The look that is going on.
        look_again: Something changed since that one began.
        later: The look that waits for its time.
        waits: Looks in a row that found Triton still busy.
        cleaned: Whether the leftovers of a crash were removed since this process leads; nothing is staged before.
        cleaning: The task that does that.
        gauging: The measurement that is going on.
        places: Whether a model's place is here, by model; a model that is not in it has not been decided on.
        units: By model.
        server_health: How it is.
        undriven: Why no instance drives it; empty where one does.
        advised: The version of Triton whose advisories were reported.
        guard: Who drains and restarts it when it has lost too much memory.
        unplanned: Models whose next action is to be planned again.
        present: Models of which something is there, or is being done: all that time alone may change.
        awaited: Models that somebody waits to be seen.
        well: Whether the newest look took in what each model shows; then the next one takes in what differs.
        said: The trouble that the models on it were told of last.
    """

    managed: ManagedServer
    scheduler: MemoryScheduler
    snapshot: ServerSnapshot = field(default_factory=lambda: ServerSnapshot(ServerState.STARTING, "not looked at yet"))
    observed_at: datetime | None = None
    looking: "asyncio.Task[None] | None" = None
    look_again: bool = False
    later: asyncio.TimerHandle | None = None
    waits: int = 0
    cleaned: bool = False
    cleaning: "asyncio.Task[None] | None" = None
    gauging: "asyncio.Task[None] | None" = None
    places: dict[str, ServerAssignment] = field(default_factory=dict)
    units: dict[str, Replica] = field(default_factory=dict)
    server_health: ServerHealth = field(default_factory=ServerHealth)
    undriven: str = ""
    advised: str = ""
    unplanned: set[str] = field(default_factory=set)
    present: set[str] = field(default_factory=set)
    awaited: set[str] = field(default_factory=set)
    well: bool = False
    said: Trouble | None = None
    guard: LeakRestarter = field(init=False)
    _turns: list[tuple[datetime, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Give it somebody who restarts it when it leaks."""
        self.guard = LeakRestarter(self.scheduler, supervised=self.managed.embedded is not None)

    @property
    def name(self) -> str:
        """The server's name."""
        return self.managed.name

    @property
    def away(self) -> bool:
        """Whether it cannot be reached."""
        return self.snapshot.state is not ServerState.READY

    @property
    def trouble(self) -> Trouble | None:
        """Why nothing can be done on it; None when it is well."""
        if self.undriven:
            return Trouble(f"{self.name} takes no work: {self.undriven}")
        if not self.away:
            draining = self.guard.draining
            return Trouble(f"{self.name} takes no work: {draining}") if draining else None
        return Trouble(f"{self.name} is {self.snapshot.state.lower()}: {self.snapshot.message}")

    def unit(self, model: str) -> Replica:
        """Return what is known of a model here."""
        if model not in self.units:
            self.units[model] = Replica(self.name, model, watch=ProbeTracker(asked_at=time.monotonic()))
        return self.units[model]

    def keep_watch(self, unit: Replica) -> None:
        """Keep a model among those present as long as something of it is there or is being done."""
        if unit.idle:
            self.present.discard(unit.model)
        else:
            self.present.add(unit.model)

    def wake_at(self, unit: Replica, at: datetime | None) -> None:
        """Have a model planned again at a time; None: when something changes."""
        if at is not None and at != unit.wakes_at:
            heapq.heappush(self._turns, (at, unit.model))
        unit.wakes_at = at

    def due(self, now: datetime) -> list[str]:
        """Take the models whose time to be planned again has come."""
        found = []
        while self._turns and self._turns[0][0] <= now:
            at, model = heapq.heappop(self._turns)
            unit = self.units.get(model)
            if unit is not None and unit.wakes_at == at:
                unit.wakes_at = None
                found.append(model)
        return found

    def has_place(self, model: str) -> bool:
        """Whether a model's place is here."""
        place = self.places.get(model)
        return place is not None and place.here

    def gpus(self, model: str, prepared: PreparedVersion) -> Gpus | None:
        """Return the GPUs of a version's place here; None where they are left to Triton."""
        place = self.places.get(model)
        devices = place.devices if place is not None else ()
        return asked_gpus(prepared.config, self.scheduler.accounts.numbers(devices)) if devices else None

    def gpus_for(self, model: str, prepared: PreparedVersion | None, action: Action) -> Gpus | None:
        """Return the GPUs that the configuration for an action names; None where they are left to Triton.

        Args:
            model: The model.
            prepared: The action's target; None where the present wish does not know it.
            action: The action.
        """
        facts, place = self.unit(model).facts, self.gpus(model, prepared) if prepared is not None else None
        if facts is None:
            return place
        match action:
            case Load():
                return facts.gpus_to_say(action, place)
            case Prove(candidate=False):
                return facts.said_gpus
        return place

    def _displaced(self, desired_deployment: DesiredDeployment) -> str:
        """Why what is loaded has to be loaded again on other GPUs; empty where it is where it should be."""
        facts, place = self.unit(desired_deployment.model).facts, self.places.get(desired_deployment.model)
        if facts is None or not facts.loaded or facts.gpus is None or facts.externally_modified:
            return ""
        if place is None or not place.devices:
            return ""
        found = (
            one
            for key, one in desired_deployment.prepared.items()
            if key.digest == facts.digest and key.version in facts.loaded
        )
        prepared = next(found, None)
        gpus = self.gpus(desired_deployment.model, prepared) if prepared is not None else None
        return "" if gpus is None or gpus == facts.gpus else f"its place is on {', '.join(place.devices)} now"

    def desired(self, desired_deployment: DesiredDeployment) -> DesiredReplica:
        """Return what is wanted here: what the deployment says, if the model's place is here and memory allows it."""
        desired = desired_deployment.desired(self.unit(desired_deployment.model).record.good)
        place = self.places.get(desired_deployment.model)
        if relocation_reason := self._displaced(desired_deployment):
            desired = replace(desired, relocation_reason=relocation_reason)
        if desired.loaded and place is not None and not place.here:
            return replace(desired, loaded=False, why=place.why)
        verdict = self.scheduler.desired(desired_deployment.model)
        if not desired.loaded or verdict is None or verdict.loaded:
            facts = self.unit(desired_deployment.model).facts
            # Only a candidate makes it matter; to ask the ledger costs a walk through all its holdings.
            beside = desired.loaded and facts is not None and facts.candidate is not None
            return (
                replace(desired, fits_alongside=True)
                if beside and self.scheduler.fits_alongside(desired_deployment)
                else desired
            )
        refused = self.scheduler.model_state(desired_deployment.model).refused
        return replace(desired, loaded=False, why=refused or verdict.why, refused=bool(refused))

    def status(self) -> ServerStatus:
        """Return the server as last seen."""
        managed, snapshot = self.managed, self.snapshot
        return ServerStatus(
            name=managed.name,
            id=managed.id,
            grpc_url=managed.client.grpc_url,
            http_url=managed.http_url,
            metrics_url=managed.metrics_url,
            embedded=managed.embedded is not None,
            state=snapshot.state,
            message=snapshot.message or self.undriven,
            driven=not self.undriven,
            triton_version=snapshot.version,
            advisories=warnings_for(snapshot.version, embedded=managed.embedded is not None),
            models=snapshot.index,
            observed_at=self.observed_at,
            conditions=self.server_health.conditions,
        )


def report(role: str, phases: Mapping[Phase, int], servers: Iterable[TrackedServer], store_trouble: str) -> str:
    """Put the present state into one sentence."""
    counts = sorted((phase.value, count) for phase, count in phases.items() if count)
    parts = [role, ", ".join(f"{count} {phase}" for phase, count in counts) or "nothing is deployed"]
    known = list(servers)
    parts.extend(server.trouble.message for server in known if server.trouble)
    if store_trouble:
        parts.append(f"the store cannot be read: {store_trouble}")
    for server in known:
        busy = [(model, server.units[model]) for model in sorted(server.present) if model in server.units]
        parts.extend(
            f"{model} on {server.name}: {unit.doing.action.because}"
            for model, unit in busy
            if unit.task is not None and unit.doing is not None
        )
    return "; ".join(parts)
