"""State of the servers and the models on them. Mutable; belongs to the loop."""

import asyncio
import heapq
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.domain.advisories import warnings_for
from controlplane.domain.cordons import Cordon, CordonStatus
from controlplane.domain.rollout.strategy import StrategyKind
from controlplane.domain.states import Phase, ServerState, ServerStatus
from controlplane.lifecycle.actions import Action, Load, Prove
from controlplane.lifecycle.desired import DesiredDeployment, PreparedVersion
from controlplane.lifecycle.probe_schedule import ProbeTracker
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import DesiredReplica
from controlplane.lifecycle.status import Trouble
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.reconciler.leak_restart import LeakRestarter
from controlplane.registry.proofs import ProofKey, Proofs
from controlplane.servers.health import ServerHealth
from controlplane.servers.server import ManagedServer
from controlplane.servers.snapshot import ServerSnapshot
from controlplane.triton.code_settings import code_settings
from controlplane.triton.embedded.backend_directory import native_backends
from controlplane.triton.embedded.runtime_versions import processor, runtime_version
from controlplane.triton.instance_groups import Gpus, asked_gpus


@dataclass(frozen=True, slots=True)
class ServerAssignment:
    """Whether a model is assigned to a server.

    Attributes:
        here: Whether the model is to be on this server.
        why: The reason, or where it is instead.
        assignment: Whether it is assigned to this server; if not, it only stays until it answers where it is assigned.
        devices: The assigned devices of the server; empty if unspecified.
    """

    here: bool
    why: str
    assignment: bool = False
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemberNeed:
    """What pipelines need of one model on a server.

    Attributes:
        versions: The versions that they need.
        by: The pipelines.
        users: Those of them that are loaded now.
    """

    versions: frozenset[int]
    by: tuple[str, ...]
    users: tuple[str, ...]


@dataclass
class TrackedServer:
    """A server as last observed.

    Attributes:
        managed: The server.
        scheduler: Its memory scheduler.
        snapshot: The newest snapshot.
        observed_at: Time of that snapshot (UTC).
        looking: The snapshot in progress.
        look_again: Whether something changed since that snapshot began.
        later: Timer of a delayed snapshot.
        waits: Consecutive snapshots that found Triton still busy.
        cleaned: Whether the remains of a crash were removed since this process leads; nothing is staged before that.
        cleaning: The cleaning task.
        gauging: The reading in progress.
        places: Assignments by model; a missing model has not been decided.
        units: Replicas by model.
        needs: What pipelines need of their members here, by member.
        broken: Why a pipeline cannot be loaded, by pipeline.
        server_health: Health state.
        undriven: Why no instance drives it; empty if one does.
        advised: The version of Triton whose advisories were reported.
        cordon: An operator's decision that it takes no new replicas; None if it takes them.
        leaving: Whether it stops as soon as its models are elsewhere.
        vacated: Whether it was reported that its drain is complete.
        guard: Drains and restarts it when it has leaked too much memory.
        unplanned: Models whose next action must be planned again.
        present: Models that are on the server or have an action in flight; only these can change with time alone.
        awaited: Models whose next observation a caller or the loop waits for.
        well: Whether the newest snapshot was applied for all models; then only differences of the next one are applied.
        said: The trouble that was last applied to its models.
        away_since: When it was last found unreachable (monotonic seconds); None while it is reachable.
        proofs: Passed proofs on record; None uses none.
    """

    managed: ManagedServer
    scheduler: MemoryScheduler
    snapshot: ServerSnapshot = field(default_factory=lambda: ServerSnapshot(ServerState.STARTING, "not observed yet"))
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
    needs: dict[str, MemberNeed] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    server_health: ServerHealth = field(default_factory=ServerHealth)
    undriven: str = ""
    cordon: Cordon | None = None
    leaving: bool = False
    vacated: bool = False
    advised: str = ""
    unplanned: set[str] = field(default_factory=set)
    present: set[str] = field(default_factory=set)
    awaited: set[str] = field(default_factory=set)
    well: bool = False
    said: Trouble | None = None
    away_since: float | None = field(default_factory=time.monotonic)
    proofs: Proofs | None = None
    guard: LeakRestarter = field(init=False)
    _turns: list[tuple[datetime, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the leak restarter."""
        self.guard = LeakRestarter(self.scheduler, supervised=self.managed.embedded is not None)

    @property
    def name(self) -> str:
        """The server's name."""
        return self.managed.name

    @property
    def away(self) -> bool:
        """Whether it is unreachable."""
        return self.snapshot.state is not ServerState.READY

    @property
    def trouble(self) -> Trouble | None:
        """Why no action is possible on it; None if it is healthy."""
        if self.undriven:
            return Trouble(f"{self.name} is not driven: {self.undriven}")
        if not self.away:
            draining = self.guard.draining
            return Trouble(f"{self.name} is out of service: {draining}") if draining else None
        return Trouble(f"{self.name} is {self.snapshot.state.lower()}: {self.snapshot.message}")

    def unit(self, model: str) -> Replica:
        """Return the replica of a model on this server."""
        if model not in self.units:
            self.units[model] = Replica(self.name, model, watch=ProbeTracker(asked_at=time.monotonic()))
        return self.units[model]

    def keep_watch(self, unit: Replica) -> None:
        """Update whether a model is in `present`."""
        if unit.idle:
            self.present.discard(unit.model)
        else:
            self.present.add(unit.model)

    def wake_at(self, unit: Replica, at: datetime | None) -> None:
        """Plan a model again at the given time; None waits for a change."""
        if at is not None and at != unit.wakes_at:
            heapq.heappush(self._turns, (at, unit.model))
        unit.wakes_at = at

    def due(self, now: datetime) -> list[str]:
        """Remove and return the models that are due to be planned again."""
        found = []
        while self._turns and self._turns[0][0] <= now:
            at, model = heapq.heappop(self._turns)
            unit = self.units.get(model)
            if unit is not None and unit.wakes_at == at:
                unit.wakes_at = None
                found.append(model)
        return found

    def need(self, model: str, versions: frozenset[int], by: tuple[str, ...], users: tuple[str, ...]) -> None:
        """Record what pipelines need of a model here."""
        self.scheduler.set_needed(model, by)
        if by:
            self.needs[model] = MemberNeed(versions, by, users)
        else:
            self.needs.pop(model, None)

    def set_broken(self, model: str, why: str) -> None:
        """Record why a pipeline cannot be loaded; empty if it can."""
        if why:
            self.broken[model] = why
        else:
            self.broken.pop(model, None)

    def has_place(self, model: str) -> bool:
        """Return whether a model is to be on this server."""
        place = self.places.get(model)
        return place is not None and place.here

    def gpus(self, model: str, prepared: PreparedVersion) -> Gpus | None:
        """Return the GPUs that a version is assigned here; None if the choice is left to Triton."""
        place = self.places.get(model)
        devices = place.devices if place is not None else ()
        return asked_gpus(prepared.config, self.scheduler.accounts.numbers(devices)) if devices else None

    def gpus_for(self, model: str, prepared: PreparedVersion | None, action: Action) -> Gpus | None:
        """Return the GPUs that the configuration for an action names; None if the choice is left to Triton.

        Args:
            model: The model.
            prepared: The action's target; None if the current desired state does not contain it.
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

    def proof_key(self, model: str, prepared: PreparedVersion) -> ProofKey | None:
        """Return the key under which a proof of a version here is recorded; None if a part of it is not known."""
        embedded, backend = self.managed.embedded, prepared.manifest.backend
        device = self.scheduler.device_kind(prepared, model)
        if not self.snapshot.version or not device or code_settings(prepared.settings, prepared.manifest.format):
            return None  # what such settings name can change without the configuration
        version = f"triton {self.snapshot.version}"
        if embedded is None:
            version += f", server {self.managed.id}"  # its backends and its processor are not known
        else:
            native = backend in native_backends(embedded.backends)  # the name of the directory is their digest
            runtime = "native" if native else runtime_version(backend)
            if not runtime or not embedded.backends.name:
                return None
            version += f", {embedded.backends.name}, {runtime}, {processor()}"
        return ProofKey(prepared.manifest.content_digest, prepared.target.digest, f"{backend}: {version}", device)

    def _proof_on_record(self, desired_deployment: DesiredDeployment) -> bool:
        """Return whether the desired version may be loaded once: an immediate update that must pass no comparison."""
        facts, wanted = self.unit(desired_deployment.model).facts, desired_deployment.wanted
        if self.proofs is None or facts is None or not facts.loaded or facts.candidate is not None:
            return False
        if wanted.version <= max(facts.loaded) or wanted.digest != facts.digest:
            return False
        settings, prepared = desired_deployment.revision.spec.settings, desired_deployment.prepared.get(wanted)
        if settings.max_latency_ratio is not None or settings.max_memory_ratio is not None or prepared is None:
            return False  # the comparison with the active version decides before the switch
        if settings.rollout.kind is not StrategyKind.IMMEDIATE or desired_deployment.trial is not None:
            return False
        key = self.proof_key(desired_deployment.model, prepared)
        return key is not None and self.proofs.known(key)

    def _displaced(self, desired_deployment: DesiredDeployment) -> str:
        """Return why a loaded model must be loaded again on other GPUs; empty if it is on its assigned ones."""
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
        return "" if gpus is None or gpus == facts.gpus else f"it is now assigned to {', '.join(place.devices)}"

    def desired(self, desired_deployment: DesiredDeployment) -> DesiredReplica:
        """Return the desired state here: the deployment's, if the model is assigned here and memory allows it."""
        desired = desired_deployment.desired(self.unit(desired_deployment.model).record.good)
        place = self.places.get(desired_deployment.model)
        if relocation_reason := self._displaced(desired_deployment):
            desired = replace(desired, relocation_reason=relocation_reason)
        elif desired.loaded and self._proof_on_record(desired_deployment):
            desired = replace(desired, proof_on_record=True)
        if (need := self.needs.get(desired_deployment.model)) is not None:
            desired = replace(desired, needed=need.versions, users=need.users)
        if desired.loaded and (broken := self.broken.get(desired_deployment.model)):
            return replace(desired, loaded=False, why=broken, refused=True)
        if desired.loaded and place is not None and not place.here:
            return replace(desired, loaded=False, why=place.why)
        verdict = self.scheduler.desired(desired_deployment.model)
        if not desired.loaded or verdict is None or verdict.loaded:
            facts = self.unit(desired_deployment.model).facts
            # This matters only with a candidate, and the check walks through all reservations of the ledger.
            beside = desired.loaded and facts is not None and facts.candidate is not None
            return (
                replace(desired, fits_alongside=True)
                if beside and self.scheduler.fits_alongside(desired_deployment)
                else desired
            )
        refused = self.scheduler.model_state(desired_deployment.model).ticket.refused
        return replace(desired, loaded=False, why=refused or verdict.why, refused=bool(refused))

    def status(self, cordon: CordonStatus | None) -> ServerStatus:
        """Return the newest status of the server, with its cordon."""
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
            cordon=cordon,
            models=snapshot.index,
            observed_at=self.observed_at,
            conditions=self.server_health.conditions,
        )


def report(role: str, phases: Mapping[Phase, int], servers: Iterable[TrackedServer], store_trouble: str) -> str:
    """Return the present state as one sentence."""
    counts = sorted((phase.value, count) for phase, count in phases.items() if count)
    parts = [role, ", ".join(f"{count} {phase}" for phase, count in counts) or "nothing is deployed"]
    known = list(servers)
    parts.extend(server.trouble.message for server in known if server.trouble)
    if store_trouble:
        parts.append(f"failed to read the store: {store_trouble}")
    for server in known:
        busy = [(model, server.units[model]) for model in sorted(server.present) if model in server.units]
        parts.extend(
            f"{model} on {server.name}: {unit.doing.action.because}"
            for model, unit in busy
            if unit.task is not None and unit.doing is not None
        )
    return "; ".join(parts)
