"""What the loop tells about memory, made from what the steward has. Changes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from controlplane.domain.deployment import DeploymentSettings, Mode, Switch
from controlplane.domain.names import candidate_name
from controlplane.domain.strategy import StrategyKind
from controlplane.memory.admission import Admit, Evict, Figures, LoadRequest, Queue, Refuse, figures_of, in_order
from controlplane.memory.eviction import protection
from controlplane.memory.ledger import size_text
from controlplane.memory.placement.types import Seat
from controlplane.memory.residency import expires_at
from controlplane.memory.switching import Beside, NoSwitch, SwitchChoice, UnloadFirst, choose_switch
from controlplane.memory.types import Footprint, HoldingState, ModelMemory, Slot, Usage
from controlplane.reconciler.actions import Load, Prove, Stage, Unload
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.memory_view import (
    DeviceFootprint,
    DeviceMemory,
    HeldBy,
    LeakView,
    MemoryState,
    ModelMemoryView,
    PlannedEviction,
    QueuedLoad,
    ServerLoadPlan,
    ServerMemory,
    ServerWhy,
)
from controlplane.reconciler.steward import Steward
from controlplane.reconciler.tenants import Tenant
from controlplane.reconciler.units import Unit
from controlplane.reconciler.wishes import Prepared, Wish
from controlplane.triton.instance_groups import asked_gpus

_NEXT_VICTIMS = 5
_FETCH_BYTES_PER_SECOND = 100 * 1024 * 1024
"""Assumed speed of the store, for plans."""


@dataclass(frozen=True)
class Occupant:
    """A deployed model on a server.

    Attributes:
        wish: What is wanted of it.
        unit: How it stands.
        trouble: Why nothing can be done on the server; empty when it is well.
        elsewhere: Where its place is instead; empty where it is here, or not decided.
    """

    wish: Wish
    unit: Unit
    trouble: str = ""
    elsewhere: str = ""


def server_memory(
    steward: Steward, occupants: Iterable[Occupant], now: datetime, leak: LeakView | None = None
) -> ServerMemory:
    """Return the ledger of a server."""
    models = [
        model_view(steward, occupant)
        for occupant in occupants
        if not occupant.wish.revision.spec.deleted or steward.accounts.ledger.of_model(occupant.wish.model)
    ]
    return ServerMemory(
        server=steward.server,
        policy=steward.policy.name,
        devices=_devices(steward),
        models=tuple(sorted(models, key=lambda model: model.model)),
        queue=_queue(steward),
        evictions=tuple(reversed(steward.queue.evictions)),
        next_victims=_next_victims(steward, now),
        leak=leak if steward.accounts.limited else None,
        counters=_counters(steward),
    )


def model_view(steward: Steward, occupant: Occupant) -> ModelMemoryView:
    """Return how a model stands on a server."""
    wish, unit = occupant.wish, occupant.unit
    settings, tenant = wish.revision.spec.settings, steward.tenant(wish.model)
    state, why = _state(occupant, tenant)
    memory = steward.models.get(wish.model)
    return ModelMemoryView(
        model=wish.model,
        version=max(unit.facts.loaded) if unit.facts and unit.facts.loaded else wish.wanted.version,
        mode=settings.mode,
        priority=settings.priority,
        keep_alive_seconds=settings.keep_alive_seconds,
        state=state,
        why=why,
        footprint=_footprint(steward, wish),
        loaded_at=tenant.loaded_at,
        last_used_at=tenant.usage.last_used_at,
        rate_per_second=tenant.usage.rate_per_second,
        pending=tenant.usage.pending,
        expires_at=expires_at(memory, steward.rules) if memory else None,
        held_until=tenant.held_until,
        demanded_at=tenant.demanded_at,
        load_seconds=tenant.load_seconds,
        loads=tenant.loads,
        evictions=tenant.evictions,
    )


def server_why(steward: Steward, occupant: Occupant, now: datetime) -> ServerWhy:
    """Return why a model is where it is on a server."""
    model = occupant.wish.model
    view = model_view(steward, occupant)
    memory = steward.models.get(model)
    figures: Figures = {}
    holders: tuple[HeldBy, ...] = ()
    if memory is not None and not memory.loaded:
        request = LoadRequest(memory, Slot(model, memory.version), memory.footprint)
        figures = figures_of(request, steward.accounts.ledger, steward.models, now=now, rules=steward.rules)
        holders = _holders(steward, memory, now)
    return ServerWhy(
        server=steward.server,
        model=view,
        needed={device: one.needed_bytes for device, one in figures.items()},
        free={device: one.free_bytes for device, one in figures.items()},
        could_be_freed={device: one.could_be_freed_bytes for device, one in figures.items()},
        holders=holders,
        evictions=tuple(
            record for record in reversed(steward.queue.evictions) if model in (record.victim, record.for_model)
        ),
        next=_next(steward, view, memory, now),
    )


def plan_for(
    steward: Steward,
    prepared: Prepared,
    model: str,
    facts: Facts | None,
    fetch_bytes: int,
    seat: Seat,
    now: datetime,
) -> ServerLoadPlan:
    """Say what loading a version on a server would do."""
    version, size = prepared.target.version, steward.size(prepared, model, seat.devices)
    gpus = asked_gpus(prepared.config, steward.accounts.numbers(seat.devices)) if seat.devices else None
    there = facts is not None and version in facts.loaded and facts.digest == prepared.target.digest
    if there and facts is not None and (gpus is None or facts.gpus is None or gpus == facts.gpus):
        return ServerLoadPlan(
            server=steward.server,
            decision="nothing",
            why=f"version {version} is loaded already",
            devices=seat.devices,
            placed_why=seat.why,
        )
    known = steward.models.get(model)
    replaces = facts is not None and bool(facts.loaded)
    memory = ModelMemory(
        model=model,
        mode=prepared.settings.mode,
        version=version,
        footprint=size.by_device,
        priority=prepared.settings.priority,
        loaded=replaces,
        demanded_at=now,
        usage=known.usage if known else Usage(),
    )
    slot = Slot(f"{model} (new)" if replaces else model, version)
    request = LoadRequest(memory, slot, size.by_device)
    ledger = steward.accounts.ledger
    figures = figures_of(request, ledger, steward.models, now=now, rules=steward.rules)
    decision = steward.queue.decide(request, now)
    load_seconds = size.load_seconds or (known.load_seconds if known else 1.0)
    fetch_seconds = fetch_bytes / _FETCH_BYTES_PER_SECOND
    measured = "measured" if size.load_seconds else "not measured yet"
    beside: bool | None = None
    gap = 0.0
    why = getattr(decision, "why", "")
    kind = {Admit: "admit", Evict: "evict", Queue: "queue", Refuse: "refuse"}[type(decision)]
    victims = decision.victims if isinstance(decision, Evict) else ()
    reasons = decision.reasons if isinstance(decision, Evict) else {}
    if replaces:
        choice = choose_switch(
            _old_slot(model, facts),
            size.by_device,
            steward.accounts.settled(),
            load_seconds=load_seconds,
            evictable={device: one.could_be_freed_bytes for device, one in figures.items()},
            forced=_forced(prepared.settings),
        )
        match choice:
            case Beside():
                beside = True
            case UnloadFirst(why=why, gap_seconds=gap):
                beside, kind, victims = False, "admit", ()
            case NoSwitch(why=why) if kind != "queue" or steward.queue.no_room_beside(request):
                kind, victims = "refuse", ()
    return ServerLoadPlan.model_validate(
        {
            "server": steward.server,
            "devices": seat.devices,
            "placed_why": seat.why,
            "decision": kind,
            "why": why,
            "needed": {device: one.needed_bytes for device, one in figures.items()},
            "free": {device: one.free_bytes for device, one in figures.items()},
            "could_be_freed": {device: one.could_be_freed_bytes for device, one in figures.items()},
            "evictions": tuple(
                PlannedEviction(
                    model=victim.model,
                    bytes={device: footprint.bytes for device, footprint in victim.footprint.items()},
                    why=reasons.get(victim.model, ""),
                )
                for victim in victims
            ),
            "holders": _holders(steward, memory, now) if kind in {"refuse", "queue"} else (),
            "fetch_bytes": fetch_bytes,
            "seconds": round(fetch_seconds + load_seconds + (1.2 if victims or gap else 0.0), 3),
            "seconds_why": f"{fetch_seconds:.3g} s to fetch {size_text(fetch_bytes)}, {load_seconds:.3g} s to load and "
            f"prove ({measured})" + (", 1.2 s until the memory of what leaves is free" if victims or gap else ""),
            "beside": beside,
            "gap_seconds": round(gap, 3),
        }
    )


def _forced(settings: DeploymentSettings) -> SwitchChoice | None:
    """What the settings insist on; a rollout by evidence needs both versions at once."""
    if settings.rollout.kind is not StrategyKind.SWITCH:
        return SwitchChoice.BESIDE
    return None if settings.switch is Switch.AUTO else SwitchChoice(settings.switch.value)


def _old_slot(model: str, facts: Facts | None) -> Slot:
    version = max(facts.loaded) if facts and facts.loaded else 0
    return Slot(model, version)


def _devices(steward: Steward) -> tuple[DeviceMemory, ...]:
    ledger, found = steward.accounts.ledger, []
    for device in steward.accounts.devices if steward.accounts.limited else ():
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


def _queue(steward: Steward) -> tuple[QueuedLoad, ...]:
    waiting = []
    for model, tenant in steward.tenants.items():
        request, memory = tenant.request, steward.models.get(model)
        if request is not None and not request.granted and memory is not None:
            waiting.append(LoadRequest(memory, request.slot, request.footprint, request.since))
    found = []
    for one in in_order(waiting):
        request = steward.tenants[one.model.model].request
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


def _next_victims(steward: Steward, now: datetime) -> tuple[str, ...]:
    able = [model for model in steward.models.values() if protection(model, now, steward.rules) is None]
    able.sort(key=lambda model: (model.priority, steward.policy.score(model, now), model.model))
    return tuple(model.model for model in able[:_NEXT_VICTIMS])


def _counters(steward: Steward) -> dict[str, float]:
    counters = steward.counters
    plain = ("loads", "cold_starts", "evictions", "expirations", "refusals", "gaps", "out_of_memory", "measured")
    found = {name: float(counters[name]) for name in (*plain, "requests", "estimate_error_bytes")}
    found["estimate_error_max_bytes"] = float(steward.largest_error)
    found["load_wait_seconds"] = counters["load_wait_milliseconds"] / 1000
    for stage in ("fetch", "stage", "load", "prove"):
        found[f"load_{stage}_seconds"] = counters[f"{stage}_milliseconds"] / 1000
    return found


def _footprint(steward: Steward, wish: Wish) -> tuple[DeviceFootprint, ...]:
    prepared = wish.prepared.get(wish.wanted)
    expected: dict[str, Footprint] = steward.size(prepared, wish.model).by_device if prepared else {}
    measured = steward.measured(prepared, wish.model) if prepared else None
    held: dict[str, int] = {}
    for name in (wish.model, candidate_name(wish.model)):
        for holding in steward.accounts.ledger.of_model(name):
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


def _state(occupant: Occupant, tenant: Tenant) -> tuple[MemoryState, str]:
    wish, unit = occupant.wish, occupant.unit
    spec, facts, verdict = wish.revision.spec, unit.facts, tenant.verdict
    why = verdict.why if verdict else ""
    action = unit.doing.action if unit.doing and unit.task is not None else None
    if occupant.trouble and facts is None:
        return "unreachable", occupant.trouble
    if occupant.trouble:
        return ("loaded" if facts and facts.loaded else "pending"), occupant.trouble  # it is drained, and answers
    if isinstance(action, Unload):
        return "unloading", why or action.because
    if isinstance(action, Load) and not (facts and facts.loaded):
        return "loading", action.because
    if tenant.request is not None and not tenant.request.granted and not (facts and facts.loaded):
        return "queued", tenant.request.why
    if facts is None:
        return "pending", "it is being looked at"
    if facts.loaded:
        return ("unloading" if tenant.leaving or tenant.gap else "loaded"), why
    if tenant.leaving or facts.leaving:
        return "unloading", why
    if occupant.elsewhere and spec.loaded and not spec.deleted:
        return "elsewhere", occupant.elsewhere
    if spec.deleted or not spec.loaded:
        return "disabled", "the deployment says unloaded"
    if tenant.refused:
        return "failed", tenant.refused
    if wish.problem:
        return "failed", wish.problem
    failure = unit.record.failures.get(wish.wanted)
    if failure is not None:
        return "failed", failure.message
    if isinstance(action, Stage | Prove):
        return "pending", action.because
    if verdict is None or verdict.loaded:
        return "pending", why
    return "unloaded", why


def _holders(steward: Steward, wanting: ModelMemory, now: datetime) -> tuple[HeldBy, ...]:
    ledger, found = steward.accounts.ledger, []
    for device in wanting.footprint:
        for holding in ledger.holdings:
            if holding.device != device or not holding.bytes:
                continue
            name = holding.slot.triton_name.removesuffix(candidate_name(""))
            if name == wanting.model:
                continue
            memory = steward.models.get(name)
            if holding.state is not HoldingState.RESIDENT or memory is None:
                why = f"{holding.state.value}"
            else:
                why = protection(memory, now, steward.rules, priority=wanting.priority) or ""
            if why:
                found.append(HeldBy(model=name, device=device, bytes=holding.bytes, why=why))
        if stray := ledger.unaccounted(device):
            found.append(HeldBy(model="", device=device, bytes=stray, why="nobody accounts for it"))
    return tuple(sorted(found, key=lambda one: -one.bytes))


def _next(steward: Steward, view: ModelMemoryView, memory: ModelMemory | None, now: datetime) -> str:
    if view.state == "queued":
        return "it is loaded when its turn and its memory have come"
    if view.state == "loaded":
        if view.expires_at is not None and view.mode is Mode.ON_DEMAND:
            return f"unless it is used before, it is unloaded at {view.expires_at:%H:%M:%S} UTC"
        kept = protection(memory, now, steward.rules) if memory else None
        if kept:
            return f"it stays: {kept}"
        order = _next_victims(steward, now)
        if view.model in order:
            return f"it is number {order.index(view.model) + 1} to go when room is needed"
        return "it stays until others need room more"
    if view.state == "unloaded":
        if view.mode is Mode.ON_DEMAND:
            return "it is loaded at its first use: a load or a lease"
        return "it is loaded when there is room, or when somebody asks for it"
    return ""
