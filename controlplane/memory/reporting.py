"""Builds the memory views from the scheduler's state. Read-only."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from controlplane.domain.deployment import Mode
from controlplane.domain.names import candidate_name
from controlplane.lifecycle.actions import Load, Prove, Stage, Unload
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.replica import Replica
from controlplane.memory.model_state import ModelMemoryState
from controlplane.memory.policy.admission import (
    Figures,
    LoadRequest,
    figures_of,
    in_order,
)
from controlplane.memory.policy.eviction import protection
from controlplane.memory.policy.residency import expires_at
from controlplane.memory.policy.types import Footprint, HoldingState, ModelMemory, Slot
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.memory.views import (
    DeviceFootprint,
    DeviceMemory,
    LeakView,
    MemoryHolder,
    MemoryState,
    ModelMemoryView,
    QueuedLoad,
    ServerExplanation,
    ServerMemory,
)

_NEXT_VICTIMS = 5


@dataclass(frozen=True)
class ModelOnServer:
    """A deployed model on a server.

    Attributes:
        desired_deployment: Its desired state.
        unit: Its state on the server.
        trouble: Why nothing can be done on the server; empty if it is healthy.
        elsewhere: The servers it is placed on instead; empty if it is placed here or not placed yet.
    """

    desired_deployment: DesiredDeployment
    unit: Replica
    trouble: str = ""
    elsewhere: str = ""


def server_memory(
    scheduler: MemoryScheduler, occupants: Iterable[ModelOnServer], now: datetime, leak: LeakView | None = None
) -> ServerMemory:
    """Return the ledger of a server."""
    models = [
        model_view(scheduler, occupant)
        for occupant in occupants
        if not occupant.desired_deployment.revision.spec.deleted
        or scheduler.accounts.ledger.of_model(occupant.desired_deployment.model)
    ]
    return ServerMemory(
        server=scheduler.server,
        policy=scheduler.policy.name,
        devices=_devices(scheduler),
        models=tuple(sorted(models, key=lambda model: model.model)),
        queue=_queue(scheduler),
        evictions=tuple(reversed(scheduler.queue.evictions)),
        next_victims=_next_victims(scheduler, now),
        leak=leak if scheduler.accounts.limited else None,
        counters=_counters(scheduler),
    )


def model_view(scheduler: MemoryScheduler, occupant: ModelOnServer) -> ModelMemoryView:
    """Return the memory state of a model on a server."""
    desired_deployment, unit = occupant.desired_deployment, occupant.unit
    settings, model_state = desired_deployment.revision.spec.settings, scheduler.model_state(desired_deployment.model)
    state, why = _state(occupant, model_state)
    memory = scheduler.models.get(desired_deployment.model)
    return ModelMemoryView(
        model=desired_deployment.model,
        version=max(unit.facts.loaded) if unit.facts and unit.facts.loaded else desired_deployment.wanted.version,
        mode=settings.mode,
        priority=settings.priority,
        keep_alive_seconds=settings.keep_alive_seconds,
        state=state,
        why=why,
        footprint=_footprint(scheduler, desired_deployment),
        loaded_at=model_state.residency.loaded_at,
        last_used_at=model_state.demand.usage.last_used_at,
        rate_per_second=model_state.demand.usage.rate_per_second,
        pending=model_state.demand.usage.pending,
        expires_at=expires_at(memory, scheduler.rules) if memory else None,
        held_until=model_state.demand.held_until,
        demanded_at=model_state.demand.since,
        load_seconds=model_state.stats.load_seconds,
        loads=model_state.stats.loads,
        evictions=model_state.stats.evictions,
    )


def server_why(scheduler: MemoryScheduler, occupant: ModelOnServer, now: datetime) -> ServerExplanation:
    """Return why a model has its current state on a server."""
    model = occupant.desired_deployment.model
    view = model_view(scheduler, occupant)
    memory = scheduler.models.get(model)
    figures: Figures = {}
    kept: tuple[MemoryHolder, ...] = ()
    if memory is not None and not memory.loaded:
        request = LoadRequest(memory, Slot(model, memory.version), memory.footprint)
        figures = figures_of(request, scheduler.accounts.ledger, scheduler.models, now=now, rules=scheduler.rules)
        kept = holders(scheduler, memory, now)
    return ServerExplanation(
        server=scheduler.server,
        model=view,
        needed={device: one.needed_bytes for device, one in figures.items()},
        free={device: one.free_bytes for device, one in figures.items()},
        could_be_freed={device: one.could_be_freed_bytes for device, one in figures.items()},
        holders=kept,
        evictions=tuple(
            record for record in reversed(scheduler.queue.evictions) if model in (record.victim, record.for_model)
        ),
        next=_next(scheduler, view, memory, now),
    )


def _devices(scheduler: MemoryScheduler) -> tuple[DeviceMemory, ...]:
    ledger, found = scheduler.accounts.ledger, []
    for device in scheduler.accounts.devices if scheduler.accounts.limited else ():
        budget = ledger.budgets.get(device.name)
        found.append(
            DeviceMemory(
                device=device.name,
                kind="cpu" if device.name == "host" else "gpu",
                total_bytes=device.total_bytes,
                budget_bytes=budget.bytes if budget else 0,
                used_bytes=device.used_bytes,
                reserved_bytes=ledger.held(device.name, HoldingState.RESERVED),
                loading_bytes=ledger.held(device.name, HoldingState.LOADING),
                resident_bytes=ledger.held(device.name, HoldingState.RESIDENT),
                unloading_bytes=ledger.held(device.name, HoldingState.UNLOADING),
                unaccounted_bytes=ledger.unaccounted(device.name),
                free_bytes=ledger.free(device.name),
            )
        )
    return tuple(found)


def _queue(scheduler: MemoryScheduler) -> tuple[QueuedLoad, ...]:
    waiting = []
    for model, model_state in scheduler.model_states.items():
        request, memory = model_state.ticket.request, scheduler.models.get(model)
        if request is not None and not request.granted and memory is not None:
            waiting.append(LoadRequest(memory, request.slot, request.footprint, request.since))
    found = []
    for one in in_order(waiting):
        request = scheduler.model_states[one.model.model].ticket.request
        assert request is not None
        found.append(
            QueuedLoad(
                model=one.model.model,
                priority=one.model.priority,
                since=request.since,
                deadline=request.deadline,
                why=request.why,
            )
        )
    return tuple(found)


def _next_victims(scheduler: MemoryScheduler, now: datetime) -> tuple[str, ...]:
    able = [model for model in scheduler.models.values() if protection(model, now, scheduler.rules) is None]
    able.sort(key=lambda model: (model.priority, scheduler.policy.score(model, now), model.model))
    return tuple(model.model for model in able[:_NEXT_VICTIMS])


def _counters(scheduler: MemoryScheduler) -> dict[str, float]:
    counters = scheduler.counters
    plain = ("loads", "cold_starts", "evictions", "expirations", "refusals", "gaps", "out_of_memory", "measured")
    found = {name: float(counters[name]) for name in (*plain, "requests", "estimate_error_bytes")}
    found["estimate_error_max_bytes"] = float(scheduler.largest_error)
    found["load_wait_seconds"] = counters["load_wait_milliseconds"] / 1000
    for stage in ("fetch", "stage", "load", "prove"):
        found[f"load_{stage}_seconds"] = counters[f"{stage}_milliseconds"] / 1000
    return found


def _footprint(scheduler: MemoryScheduler, desired_deployment: DesiredDeployment) -> tuple[DeviceFootprint, ...]:
    prepared = desired_deployment.prepared.get(desired_deployment.wanted)
    expected: dict[str, Footprint] = scheduler.size(prepared, desired_deployment.model).by_device if prepared else {}
    measured = scheduler.measured(prepared, desired_deployment.model) if prepared else None
    held: dict[str, int] = {}
    for name in (desired_deployment.model, candidate_name(desired_deployment.model)):
        for holding in scheduler.accounts.ledger.of_model(name):
            held[holding.device] = held.get(holding.device, 0) + holding.bytes
    return tuple(
        DeviceFootprint(
            device=device,
            bytes=footprint.bytes,
            error_bytes=footprint.error_bytes,
            peak_bytes=footprint.peak_bytes,
            load_peak_bytes=measured.peak_bytes if measured else 0,
            inference_peak_bytes=measured.inference_peak_bytes if measured else 0,
            left_bytes=measured.left_bytes if measured else None,
            estimate_bytes=measured.estimate_bytes if measured else None,
            source=footprint.source.value,
            held_bytes=held.get(device, 0),
        )
        for device, footprint in expected.items()
    )


def _state(occupant: ModelOnServer, model_state: ModelMemoryState) -> tuple[MemoryState, str]:
    desired_deployment, unit = occupant.desired_deployment, occupant.unit
    spec, facts, verdict = desired_deployment.revision.spec, unit.facts, model_state.residency.verdict
    why = verdict.why if verdict else ""
    action = unit.doing.action if unit.doing and unit.task is not None else None
    if occupant.trouble and facts is None:
        return "unreachable", occupant.trouble
    if occupant.trouble:
        return ("loaded" if facts and facts.loaded else "pending"), occupant.trouble  # draining
    if isinstance(action, Unload):
        return "unloading", why or action.because
    if isinstance(action, Load) and not (facts and facts.loaded):
        return "loading", action.because
    if (
        model_state.ticket.request is not None
        and not model_state.ticket.request.granted
        and not (facts and facts.loaded)
    ):
        return "queued", model_state.ticket.request.why
    if facts is None:
        return "pending", "the server is being observed"
    if facts.loaded:
        return (
            "unloading" if model_state.residency.leaving or model_state.residency.downtime_reason else "loaded"
        ), why
    if model_state.residency.leaving or facts.leaving:
        return "unloading", why
    if occupant.elsewhere and spec.loaded and not spec.deleted:
        return "assigned-elsewhere", occupant.elsewhere
    if spec.deleted or not spec.loaded:
        return "disabled", "the deployment says unloaded"
    if model_state.ticket.refused:
        return "failed", model_state.ticket.refused
    if desired_deployment.problem:
        return "failed", desired_deployment.problem
    failure = unit.record.failures.get(desired_deployment.wanted)
    if failure is not None:
        return "failed", failure.message
    if isinstance(action, Stage | Prove):
        return "pending", action.because
    if verdict is None or verdict.loaded:
        return "pending", why
    return "unloaded", why


def holders(scheduler: MemoryScheduler, wanting: ModelMemory, now: datetime) -> tuple[MemoryHolder, ...]:
    """Return which memory on the devices that a model needs cannot be freed for it, and why; the largest first."""
    ledger, found = scheduler.accounts.ledger, []
    for device in wanting.footprint:
        for holding in ledger.holdings:
            if holding.device != device or not holding.bytes:
                continue
            name = holding.slot.triton_name.removesuffix(candidate_name(""))
            if name == wanting.model:
                continue
            memory = scheduler.models.get(name)
            if holding.state is not HoldingState.RESIDENT or memory is None:
                why = f"{holding.state.value}"
            else:
                why = protection(memory, now, scheduler.rules, priority=wanting.priority) or ""
            if why:
                found.append(MemoryHolder(model=name, device=device, bytes=holding.bytes, why=why))
        if stray := ledger.unaccounted(device):
            found.append(MemoryHolder(model="", device=device, bytes=stray, why="not attributed to any model"))
    return tuple(sorted(found, key=lambda one: -one.bytes))


def _next(scheduler: MemoryScheduler, view: ModelMemoryView, memory: ModelMemory | None, now: datetime) -> str:
    if view.state == "queued":
        return "waiting in the load queue"
    if view.state == "loaded":
        if view.expires_at is not None and view.mode is Mode.ON_DEMAND:
            return f"it is unloaded at {view.expires_at:%H:%M:%S} UTC unless it is used before"
        kept = protection(memory, now, scheduler.rules) if memory else None
        if kept:
            return f"it stays: {kept}"
        order = _next_victims(scheduler, now)
        if view.model in order:
            return f"it is number {order.index(view.model) + 1} in the eviction order"
        return "it stays until another model needs its memory"
    if view.state == "unloaded":
        if view.mode is Mode.ON_DEMAND:
            return "it is loaded at its first use: a load or a hold"
        return "it is loaded when there is room or when it is requested"
    return ""
