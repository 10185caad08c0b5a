"""Computes what loading a version on a server would do: waiting, evictions, downtime and time. Read-only."""

from datetime import datetime

from controlplane.domain.deployment import DeploymentSettings, Switch
from controlplane.domain.rollout.strategy import StrategyKind
from controlplane.domain.units import size_text
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.memory.policy.admission import Admit, Evict, LoadRequest, Queue, Refuse, figures_of
from controlplane.memory.policy.types import ModelMemory, Slot, Usage
from controlplane.memory.policy.update_strategy import (
    Impossible,
    Recreate,
    Rolling,
    UpdateStrategy,
    choose_update_strategy,
)
from controlplane.memory.reporting import holders
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.memory.views import PlannedEviction, ServerLoadPlan
from controlplane.triton.instance_groups import asked_gpus

_FETCH_BYTES_PER_SECOND = 100 * 1024 * 1024
"""Assumed speed of the store."""


def plan_for(
    scheduler: MemoryScheduler,
    prepared: PreparedVersion,
    model: str,
    facts: ReplicaObservation | None,
    fetch_bytes: int,
    devices: tuple[str, ...],
    placed_why: str,
    now: datetime,
) -> ServerLoadPlan:
    """Return the effect of loading a version on a server."""
    version, size = prepared.target.version, scheduler.size(prepared, model, devices)
    gpus = asked_gpus(prepared.config, scheduler.accounts.numbers(devices)) if devices else None
    there = facts is not None and version in facts.loaded and facts.digest == prepared.target.digest
    if there and facts is not None and (gpus is None or facts.gpus is None or gpus == facts.gpus):
        return ServerLoadPlan(
            server=scheduler.server,
            decision="nothing",
            why=f"version {version} is loaded already",
            devices=devices,
            placed_why=placed_why,
        )
    known = scheduler.models.get(model)
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
    ledger = scheduler.accounts.ledger
    figures = figures_of(request, ledger, scheduler.models, now=now, rules=scheduler.rules)
    decision = scheduler.queue.decide(request, now)
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
        choice = choose_update_strategy(
            _old_slot(model, facts),
            size.by_device,
            scheduler.accounts.settled(),
            load_seconds=load_seconds,
            evictable={device: one.could_be_freed_bytes for device, one in figures.items()},
            forced=_forced(prepared.settings),
        )
        match choice:
            case Rolling():
                beside = True
            case Recreate(why=why, gap_seconds=gap):
                beside, kind, victims = False, "admit", ()
            case Impossible(why=why) if kind != "queue" or scheduler.queue.no_room_alongside(request):
                kind, victims = "refuse", ()
    return ServerLoadPlan.model_validate(
        {
            "server": scheduler.server,
            "devices": devices,
            "placed_why": placed_why,
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
            "holders": holders(scheduler, memory, now) if kind in {"refuse", "queue"} else (),
            "fetch_bytes": fetch_bytes,
            "seconds": round(fetch_seconds + load_seconds + (1.2 if victims or gap else 0.0), 3),
            "seconds_why": f"{fetch_seconds:.3g} s to fetch {size_text(fetch_bytes)}, {load_seconds:.3g} s to load and "
            f"prove ({measured})"
            + (", 1.2 s until the memory of the unloaded models is free" if victims or gap else ""),
            "beside": beside,
            "gap_seconds": round(gap, 3),
        }
    )


def _forced(settings: DeploymentSettings) -> UpdateStrategy | None:
    """Return the strategy that the settings force; a rollout that compares versions needs both at once."""
    if settings.rollout.kind is not StrategyKind.IMMEDIATE:
        return UpdateStrategy.ROLLING
    return None if settings.update_strategy is Switch.AUTO else UpdateStrategy(settings.update_strategy.value)


def _old_slot(model: str, facts: ReplicaObservation | None) -> Slot:
    version = max(facts.loaded) if facts and facts.loaded else 0
    return Slot(model, version)
