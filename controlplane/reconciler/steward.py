"""The steward of one server's memory: who shall be loaded, who may load now, who makes room. Mutable; the loop's own.

It decides nothing itself: `controlplane.memory` does, from frozen values. The steward keeps what those are made of
(the ledger, use, demands, leases), and carries what they say to the loop, which acts:

1. `judge` says for every model whether it shall be loaded; the planner then works towards that.
2. A load that needs memory is begun only with a grant (`needs`, `ask`, `granted`). Who has none waits in the queue.
3. `arrange` goes through the queue: grants, evictions, refusals. It is called whenever something changed.
4. `began`, `ended`, `see` and `take` follow what happens.

No I/O, and nothing here waits.
"""

import logging
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from controlplane.domain.deployment import Mode
from controlplane.domain.names import candidate_name
from controlplane.errors import InsufficientMemoryError, LoadRefusedError
from controlplane.gpu.budgets import BudgetRules
from controlplane.memory.admission import (
    Admit,
    Decision,
    Evict,
    LoadRequest,
    Queue,
    Refuse,
    decide,
    decide_all,
    figures_of,
)
from controlplane.memory.eviction import EvictionRules, policy_named, thrashing
from controlplane.memory.residency import Wanted, wanted
from controlplane.memory.switching import UnloadFirst, choose_switch
from controlplane.memory.types import HOST, Footprint, FootprintSource, HoldingState, ModelMemory, Slot
from controlplane.memory.usage import used
from controlplane.reconciler.accounts import Accounts
from controlplane.reconciler.actions import Action, Load, Prove, Stage, Unload
from controlplane.reconciler.executor import Outcome
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.gauging import Reading
from controlplane.reconciler.memory_view import EvictionRecord
from controlplane.reconciler.servers import ManagedServer
from controlplane.reconciler.sizing import Size, size_of
from controlplane.reconciler.tenants import Request, Tenant
from controlplane.reconciler.types import Mark
from controlplane.reconciler.units import Unit
from controlplane.reconciler.wishes import Prepared, Wish
from controlplane.registry.footprints import FootprintKey, Footprints, MeasuredFootprint
from controlplane.settings import MemorySettings
from controlplane.triton.statistics import VersionKey

logger = logging.getLogger(__name__)

_EVICTIONS_KEPT = 200
_GREW = 1.1
"""A loaded version that has grown by this factor is measured again."""
_CORRECTION = 1.5
"""What Triton had no memory for is taken to need this much more than was thought."""
_ALL = 0.98
"""So much of what could be freed is asked for at most, as its figure moves a little all the time."""
_FIRST = datetime.min.replace(tzinfo=UTC)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|bad_alloc|cannot allocate memory|failed to allocate|unable to allocate|memoryerror"
    r"|insufficient memory|not enough memory",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Need:
    """Memory that a load needs.

    Attributes:
        slot: For which version, under which Triton name.
        footprint: How much, by device.
    """

    slot: Slot
    footprint: Mapping[str, Footprint]


@dataclass
class Moves:
    """What the loop shall do now.

    Attributes:
        go: Models whose load may begin, or that are to be looked at again.
        evicted: Evictions that were decided, to be unloaded.
        refused: Loads that are given up, with the reason.
        waiting: Models whose load goes on waiting.
    """

    go: list[str] = field(default_factory=list)
    evicted: list[EvictionRecord] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measurement:
    """Something to be written to the registry."""

    key: FootprintKey
    measured: MeasuredFootprint


class Steward:
    """Looks after the memory of one server.

    Args:
        server: Its name.
        rules: The budgets of its devices.
        settings: Policy and limits.
        footprints: What was measured; only what is in memory is used here.
        told: Whether somebody tells about its devices.
    """

    def __init__(
        self, server: str, rules: BudgetRules, settings: MemorySettings, footprints: Footprints, *, told: bool
    ) -> None:
        self.server = server
        self.settings = settings
        self.policy = policy_named(settings.policy)
        self.rules = EvictionRules(minimum_residence_seconds=settings.minimum_residence_seconds)
        self.accounts = Accounts(rules, told=told)
        self.tenants: dict[str, Tenant] = {}
        self.models: dict[str, ModelMemory] = {}
        self.evictions: deque[EvictionRecord] = deque(maxlen=_EVICTIONS_KEPT)
        self.counters: Counter[str] = Counter()
        self.largest_error = 0
        self._footprints = footprints
        self._corrected: dict[FootprintKey, int] = {}
        self._forced: dict[FootprintKey, int] = {}
        self._sizes: dict[VersionKey, tuple[Prepared, Size]] = {}
        self._sized_for: tuple[object, ...] = ()
        self._differences: dict[str, dict[str, int]] = {}
        self._reported: dict[str, int] = {}
        self._keys: dict[VersionKey, FootprintKey] = {}

    @classmethod
    def of(cls, server: ManagedServer, settings: MemorySettings, footprints: Footprints) -> "Steward":
        """Return the steward of a server."""
        return cls(server.name, server.budgets, settings, footprints, told=server.devices is not None)

    # What is known

    def tenant(self, model: str) -> Tenant:
        """Return what is remembered of a model."""
        if model not in self.tenants:
            self.tenants[model] = Tenant(model)
        return self.tenants[model]

    def forget(self, model: str) -> None:
        """A model is not deployed any more."""
        self.tenants.pop(model, None)
        self.models.pop(model, None)

    def size(self, prepared: Prepared, model: str) -> Size:
        """Say what a version needs here."""
        state = (self._footprints.changes, self.accounts.topology)
        if state != self._sized_for:
            self._sizes.clear()
            self._sized_for = state
        known = self._sizes.get((model, prepared.target.version))
        if known is not None and known[0] is prepared:
            size = known[1]
        else:
            size = size_of(prepared, model, self.accounts.devices, self._footprints)
            size = replace(size, devices=tuple(name for name in size.devices if self.accounts.tells_of(name)))
            self._sizes[model, prepared.target.version] = (prepared, size)
        corrected = max(self._corrected.get(size.key, 0), self._forced.get(size.key, 0))
        if corrected > size.footprint.reserve_bytes:
            return replace(size, footprint=Footprint(corrected, 0, FootprintSource.MEASURED, corrected))
        return size

    def desired(self, model: str) -> Wanted | None:
        """Whether a model shall be loaded, as last judged; None where memory has no say."""
        tenant = self.tenants.get(model)
        return tenant.verdict if tenant else None

    def adopt(self, model: str) -> None:
        """Something else is wanted of it: what was said against it may not hold any more."""
        tenant = self.tenant(model)
        tenant.refused, tenant.second_round = "", False

    def demand(self, model: str, now: datetime) -> None:
        """Somebody wants to use it now."""
        tenant = self.tenant(model)
        tenant.refused = ""
        known = self.models.get(model)
        if known is not None and known.loaded and not known.busy:
            tenant.usage = used(tenant.usage, now)
            return
        if tenant.demanded_at is None:
            tenant.demanded_at = now
            self._count_thrash(tenant, now)

    def hold(self, leases: Mapping[str, datetime], now: datetime) -> None:
        """Take the ends of the client leases, by model, as they are now."""
        for model in leases.keys() - self.tenants.keys():
            self.tenant(model)
        for model, tenant in self.tenants.items():
            until = leases.get(model)
            if until is not None and tenant.held_until is None:
                tenant.refused = ""
                known = self.models.get(model)
                if known is not None and not known.loaded:
                    self._count_thrash(tenant, now)
            elif until is None and tenant.held_until is not None:
                tenant.usage = used(tenant.usage, now)  # who held it has used it until now
            tenant.held_until = until

    def _count_thrash(self, tenant: Tenant, now: datetime) -> None:
        tenant.thrash = thrashing(tenant.thrash, tenant.evicted_at, now, self.rules)
        tenant.evicted_at = None

    # Who shall be loaded

    def judge(self, occupants: Iterable[tuple[Wish, Unit]], now: datetime) -> list[str]:
        """Say for every model whether it shall be loaded; return those whose answer changed."""
        models: dict[str, ModelMemory] = {}
        loose: set[str] = set()
        for wish, unit in occupants:
            tenant = self.tenant(wish.model)
            spec = wish.revision.spec
            if spec.deleted or not spec.loaded or wish.wanted not in wish.prepared or not self.accounts.known:
                loose.add(wish.model)
                tenant.request = None if tenant.request and not tenant.request.granted else tenant.request
                if spec.deleted or not spec.loaded:
                    tenant.demanded_at, tenant.leaving, tenant.refused, tenant.gap = None, None, "", ""
                continue
            self._settle_tenant(tenant, unit, now)
            models[wish.model] = self._memory_of(wish, unit, tenant)
        self.models = models
        answers = wanted(models, self.accounts.ledger, self.policy, now, rules=self.rules)
        changed = []
        for model, tenant in self.tenants.items():
            verdict = None if model in loose else answers.get(model)
            if verdict is not None:
                if tenant.leaving is not None:
                    verdict = Wanted(loaded=False, why=tenant.leaving.why)
                elif tenant.gap:
                    verdict = Wanted(loaded=False, why=tenant.gap)
                elif not verdict.loaded and models[model].mode is Mode.RESIDENT:
                    verdict = self._or_never(models[model], verdict, now)
            before = tenant.verdict
            tenant.verdict = verdict
            if (before is None or before.loaded) != (verdict is None or verdict.loaded):
                changed.append(model)
                if verdict is not None and not verdict.loaded and models[model].loaded and tenant.leaving is None:
                    self._expired(models[model], verdict, now)
        return changed

    def _or_never(self, model: ModelMemory, verdict: Wanted, now: datetime) -> Wanted:
        """Tell a resident model that can never fit from one that waits for room."""
        tenant, budgets = self.tenant(model.model), self.accounts.ledger.budgets
        tenant.refused = ""
        if all(device in budgets and need.reserve_bytes <= budgets[device].bytes
               for device, need in model.footprint.items()):  # fmt: skip
            return verdict
        request = LoadRequest(model, Slot(model.model, model.version), model.footprint)
        decision = self.decide(request, now)
        if isinstance(decision, Refuse):
            tenant.refused = f"out of memory: {decision.why}"
            return Wanted(loaded=False, why=tenant.refused)
        return verdict

    def decide(self, request: LoadRequest, now: datetime) -> Decision:
        """Say what would become of a load. Changes nothing."""
        return decide(
            request,
            self.accounts.ledger,
            self.models,
            policy=self.policy,
            loads_in_flight=0,
            max_loads=self.settings.max_concurrent_loads,
            now=now,
            rules=self.rules,
        )

    def _settle_tenant(self, tenant: Tenant, unit: Unit, now: datetime) -> None:
        facts = unit.facts
        if facts is None or unit.task is not None:
            return
        gone = not facts.loaded and facts.candidate is None and not facts.leaving and not facts.candidate_leaving
        if gone:
            tenant.leaving = None
            if tenant.gap:
                # The new version takes the old one's place at once, whatever its mode.
                tenant.gap = ""
                tenant.demanded_at = tenant.demanded_at or now
        if facts.loaded:
            tenant.restore = False

    def _memory_of(self, wish: Wish, unit: Unit, tenant: Tenant) -> ModelMemory:
        settings = wish.revision.spec.settings
        size = self.size(wish.prepared[wish.wanted], wish.model)
        facts = unit.facts
        loaded = facts is not None and bool(facts.loaded)
        held = self._held(wish.model)
        mode = settings.mode
        if tenant.restore and not loaded and mode is Mode.ON_DEMAND:
            mode = Mode.RESIDENT
        return ModelMemory(
            model=wish.model,
            mode=mode,
            version=wish.wanted.version,
            footprint=held if loaded and held else size.by_device,
            priority=settings.priority,
            keep_alive_seconds=settings.keep_alive_seconds,
            load_seconds=tenant.load_seconds or size.load_seconds or 1.0,
            loaded=loaded,
            # What is on its way out already is no candidate for another eviction.
            busy=unit.task is not None or tenant.leaving is not None or bool(tenant.gap),
            loaded_at=tenant.loaded_at,
            usage=tenant.usage,
            held_until=tenant.held_until,
            demanded_at=tenant.demanded_at,
            evictions=tenant.thrash,
        )

    def _held(self, model: str) -> dict[str, Footprint]:
        held: dict[str, int] = {}
        for name in (model, candidate_name(model)):
            for holding in self.accounts.ledger.of_model(name):
                if holding.state is not HoldingState.RESERVED:
                    held[holding.device] = held.get(holding.device, 0) + holding.bytes
        return {device: Footprint(size, 0, FootprintSource.MEASURED, size) for device, size in held.items()}

    def _expired(self, model: ModelMemory, verdict: Wanted, now: datetime) -> None:
        self.counters["expirations"] += 1
        self._record(model, "", verdict.why, now)

    def _record(self, model: ModelMemory, for_model: str, why: str, now: datetime) -> EvictionRecord:
        freed = {device: footprint.bytes for device, footprint in model.footprint.items()}
        record = EvictionRecord(
            at=now, server=self.server, victim=model.model, for_model=for_model, bytes=freed, why=why
        )
        self.evictions.append(record)
        return record

    # Who may load

    def needs(self, wish: Wish, unit: Unit, load: Load) -> Need | None:
        """Return what memory a load needs; None where all of its versions are loaded already."""
        assert unit.facts is not None
        facts, model = unit.facts, unit.model
        if load.candidate:
            return self._need(Slot(candidate_name(model), load.target.version), [load.target.version], wish, load)
        renewed = load.reload or bool(facts.loaded and facts.digest != load.target.digest)
        new = [version for version in load.versions if renewed or version not in facts.loaded]
        if not new:
            return None
        # Triton has the renewed ones beside the old ones for a while; those have a slot of that name already.
        name = f"{model} (renewed)" if renewed and facts.loaded else model
        return self._need(Slot(name, max(new)), new, wish, load)

    def _need(self, slot: Slot, versions: list[int], wish: Wish, load: Load) -> Need | None:
        by_version = {target.version: prepared for target, prepared in wish.prepared.items()}
        footprint: dict[str, Footprint] = {}
        for version in versions:
            prepared = wish.prepared.get(load.target) if version == load.target.version else by_version.get(version)
            if prepared is None:
                continue  # what an earlier revision left loaded, as it is
            for device, one in self.size(prepared, wish.model).by_device.items():
                before = footprint.get(device)
                footprint[device] = one if before is None else _sum(before, one)
        return Need(slot, footprint) if footprint else None

    def ask(self, model: str, need: Need, now: datetime) -> Request:
        """Put a load into the queue, or find it there."""
        tenant = self.tenant(model)
        request = tenant.request
        if request is None or request.slot != need.slot or request.footprint != need.footprint:
            if request is not None:
                self.withdraw(model)
            deadline = now + timedelta(seconds=self.settings.load_queue_timeout_seconds)
            request = tenant.request = Request(need.slot, need.footprint, now, deadline)
        return request

    def granted(self, model: str, need: Need) -> bool:
        """Whether this load's memory is reserved."""
        request = self.tenant(model).request
        return request is not None and request.granted and request.slot == need.slot

    def withdraw(self, model: str) -> None:
        """A load is not wanted any more."""
        tenant = self.tenant(model)
        if tenant.request is not None:
            if tenant.request.granted:
                self.accounts.ledger = self.accounts.ledger.released(tenant.request.slot)
            tenant.request = None

    def arrange(self, units: Mapping[str, Unit], now: datetime) -> Moves:
        """Go through the queue."""
        moves = Moves()
        waiting = {
            model: tenant.request
            for model, tenant in self.tenants.items()
            if tenant.request is not None and not tenant.request.granted and model in self.models
        }
        if not waiting or not self.accounts.known:
            return moves
        in_flight = sum(
            tenant.loading is not None or (tenant.request is not None and tenant.request.granted)
            for tenant in self.tenants.values()
        )
        requests = [self._load_request(model, request, now) for model, request in waiting.items()]
        entitled = [request for request in requests if self._entitled(request.model, now)]
        promised: Counter[str] = Counter()
        for request, decision in decide_all(
            entitled,
            self.accounts.ledger,
            self.models,
            policy=self.policy,
            loads_in_flight=in_flight,
            max_loads=self.settings.max_concurrent_loads,
            now=now,
            rules=self.rules,
        ):
            model = request.model.model
            waits = waiting[model]
            in_place = isinstance(decision, Queue | Refuse | Evict) and self._unload_first(request, units[model], now)
            if in_place:
                moves.go.append(model)
                continue
            match decision:
                case Admit():
                    in_flight += self._grant(model, waits, now, moves)
                case Evict(victims=victims, why=why, reasons=reasons):
                    waits.why = why
                    for victim in victims:
                        moves.evicted.append(self._evict(victim, model, reasons.get(victim.model, ""), now))
                    _promise(promised, request)
                case Queue(why=why):
                    waits.why = why
                    _promise(promised, request)
                    if now >= waits.deadline:
                        seconds = self.settings.load_queue_timeout_seconds
                        self._refuse(model, f"no room after {seconds:g} s of waiting: {why}", moves)
                case Refuse(why=why):
                    self._refuse(model, f"out of memory: {why}", moves)
        for request in requests:
            model = request.model.model
            if not self._entitled(request.model, now) and (left := self.tenant(model).request) is not None:
                in_flight += self._let_in(request, left, promised, in_flight, now, moves)
        moves.waiting.extend(
            model for model in waiting if (still := self.tenant(model).request) is not None and not still.granted
        )
        return moves

    def _let_in(
        self,
        request: LoadRequest,
        waits: Request,
        promised: Mapping[str, int],
        in_flight: int,
        now: datetime,
        moves: Moves,
    ) -> int:
        """Decide about a model that is loaded only because there is room: nobody goes, and nobody waits, for it."""
        decision = decide(
            request,
            self.accounts.ledger,
            self.models,
            policy=self.policy,
            loads_in_flight=in_flight,
            max_loads=self.settings.max_concurrent_loads,
            now=now,
            rules=self.rules,
            promised=promised,
        )
        if isinstance(decision, Admit):
            return self._grant(request.model.model, waits, now, moves)
        waits.why = decision.why
        if isinstance(decision, Refuse):
            self._refuse(request.model.model, f"out of memory: {decision.why}", moves)
        return 0

    def _load_request(self, model: str, request: Request, now: datetime) -> LoadRequest:
        memory = self.models[model]
        since = request.since
        if memory.mode is Mode.PINNED and not memory.loaded:
            since = _FIRST  # after a restart of the server those come first
        elif not self._entitled(memory, now) and memory.usage.last_used_at is not None:
            since = now + max(now - memory.usage.last_used_at, timedelta())  # what was used most recently first
        return LoadRequest(memory, request.slot, request.footprint, since)

    def _entitled(self, model: ModelMemory, now: datetime) -> bool:
        """Whether somebody waits for it, or it is pinned, or loaded and changed: others may have to go for it."""
        leased = model.held_until is not None and model.held_until > now
        return model.mode is Mode.PINNED or leased or model.demanded_at is not None or model.loaded

    def _grant(self, model: str, request: Request, now: datetime, moves: Moves) -> int:
        try:
            self.accounts.ledger = self.accounts.ledger.reserve(request.slot, request.footprint, now)
        except InsufficientMemoryError as error:
            request.why = error.message
            return 0
        request.granted = True
        self.counters["load_wait_milliseconds"] += int((now - request.since).total_seconds() * 1000)
        moves.go.append(model)
        return 1

    def _evict(self, victim: ModelMemory, for_model: str, reason: str, now: datetime) -> EvictionRecord:
        tenant = self.tenant(victim.model)
        why = f"it makes room for {for_model}" + (f": {reason}" if reason else "")
        record = self._record(victim, for_model, why, now)
        tenant.leaving = record
        tenant.verdict = Wanted(loaded=False, why=why)
        tenant.evictions += 1
        tenant.evicted_at = now
        self.counters["evictions"] += 1
        for name in (victim.model, candidate_name(victim.model)):
            for holding in self.accounts.ledger.of_model(name):
                self.accounts.ledger = self.accounts.ledger.unloading(holding.slot, now)
        self.models.pop(victim.model, None)
        return record

    def _refuse(self, model: str, why: str, moves: Moves) -> None:
        tenant = self.tenant(model)
        tenant.request, tenant.demanded_at, tenant.refused = None, None, why
        self.counters["refusals"] += 1
        moves.refused.append((model, why))

    def _unload_first(self, request: LoadRequest, unit: Unit, now: datetime) -> bool:
        """Where old and new do not fit together, whoever else goes: the old one makes room for the new one."""
        facts, model = unit.facts, request.model.model
        if facts is None or not facts.loaded:
            return False
        others = [name for name in self.models if name != model]
        evictable = {
            device: figures.could_be_freed_bytes
            for device, figures in figures_of(
                request, self.accounts.ledger, self.models, now=now, rules=self.rules
            ).items()
        }
        ledger = self.accounts.settled()
        slots = sorted({holding.slot for name in (model, candidate_name(model)) for holding in ledger.of_model(name)})
        if not slots:
            return False
        for slot in slots[1:]:
            ledger = ledger.released(slot)
        # Who may go only later is waited for, rather than making a gap: only what can never fit makes one.
        for device, need in request.footprint.items():
            pinned = sum(
                holding.bytes
                for name in others
                if self.models[name].mode is Mode.PINNED
                for holding in self.accounts.ledger.of_model(name)
                if holding.device == device
            )
            own = sum(
                holding.bytes for slot in slots for holding in self.accounts.ledger.of(slot) if holding.device == device
            )
            budget = self.accounts.ledger.budgets.get(device)
            room = (budget.bytes if budget else 0) - self.accounts.ledger.unaccounted(device) - pinned - own
            if need.reserve_bytes > room:
                break
        else:
            return False
        choice = choose_switch(
            slots[0], request.footprint, ledger, load_seconds=request.model.load_seconds, evictable=evictable
        )
        if not isinstance(choice, UnloadFirst):
            return False
        tenant = self.tenant(model)
        tenant.gap = f"unloaded before version {request.slot.version} is loaded: {choice.why}"
        tenant.verdict = Wanted(loaded=False, why=tenant.gap)
        tenant.request = None
        self.counters["gaps"] += 1
        return True

    # What happens

    def began(self, unit: Unit, action: Action, now: datetime) -> None:
        """An action begins."""
        tenant = self.tenant(unit.model)
        if not isinstance(action, Load | Unload):
            return
        others = [other for other in self.tenants.values() if other.loading is not None]
        busy = any(h.state is HoldingState.UNLOADING for h in self.accounts.ledger.holdings)
        tenant.alone = not others and not busy
        for other in others:
            other.alone = False
        if isinstance(action, Load) and (request := tenant.request) is not None and request.granted:
            self.accounts.ledger = self.accounts.ledger.loading(request.slot, now)
            tenant.loading, tenant.request = request.slot, None
        if isinstance(action, Unload):
            name = candidate_name(unit.model) if action.candidate else unit.model
            for holding in self.accounts.ledger.of_model(name):
                self.accounts.ledger = self.accounts.ledger.unloading(holding.slot, now)

    def ended(
        self,
        wish: Wish | None,
        unit: Unit,
        outcome: Outcome,
        reading: Reading | None,
        differences: Mapping[str, int],
        step: int,
        now: datetime,
    ) -> list[Measurement]:
        """An action ended.

        Args:
            wish: What is wanted of the model.
            unit: The model on this server.
            outcome: How it went.
            reading: What was measured right after it.
            differences: By how much the use of each device has grown meanwhile.
            step: The loop's step at which it ended.
            now: The time.

        Returns:
            What was measured.
        """
        if reading is not None:
            self.accounts.take(reading, step - 1, now)
        measured = self._ended(wish, unit, outcome, differences, step, now)
        if reading is not None:
            self.accounts.take(reading, step, now)  # and what that says of the memory which the action set free
        return measured

    def _ended(
        self, wish: Wish | None, unit: Unit, outcome: Outcome, differences: Mapping[str, int], step: int, now: datetime
    ) -> list[Measurement]:
        tenant, action = self.tenant(unit.model), outcome.action
        for stage in ("fetch", "stage", "load", "prove"):
            self.counters[f"{stage}_milliseconds"] += int(outcome.seconds.get(stage, 0.0) * 1000)
        match action:
            case Stage() if outcome.error is None:
                tenant.stage_seconds = sum(outcome.seconds.values())
            case Load():
                self._load_ended(tenant, unit, action, outcome, differences, step, now)
            case Prove():
                tenant.ours += outcome.requests
                if outcome.mark is Mark.PASSED and not action.candidate:
                    return self._proved(tenant, wish, action, outcome, now)
            case Unload() if outcome.error is None:
                name = candidate_name(unit.model) if action.candidate else unit.model
                for holding in self.accounts.ledger.of_model(name):
                    self.accounts.left(holding.slot, step, now)
                if not action.candidate:
                    tenant.loaded_at = None
        return []

    def _load_ended(
        self,
        tenant: Tenant,
        unit: Unit,
        action: Load,
        outcome: Outcome,
        differences: Mapping[str, int],
        step: int,
        now: datetime,
    ) -> None:
        slot, tenant.loading = tenant.loading, None
        if outcome.error is not None:
            if slot is not None and isinstance(outcome.error, LoadRefusedError):
                self.accounts.left(slot, step, now)
            return  # after anything else nobody knows: the next look says what is there
        name = candidate_name(unit.model) if action.candidate else unit.model
        for key in [key for key in tenant.counts if key[0] == name]:
            del tenant.counts[key]  # they start again at zero
        if slot is None:
            return
        ledger = self.accounts.ledger
        reserved = {holding.device: holding.bytes for holding in ledger.of(slot)}
        real = Slot(name, slot.version)
        if real != slot:
            self.accounts.left(slot, step, now)  # the old ones leave after the new ones came
        size = self.accounts.resident_bytes(real)
        measured = dict(reserved) if real != slot else {}
        if size is not None:
            measured[HOST] = size
        found = {device: differences.get(device, 0) for device in reserved if device != HOST or size is None}
        if tenant.alone and found and all(size > 0 for size in found.values()):
            measured.update(found)
            self._differences[unit.model] = found
        self.accounts.ledger = self.accounts.ledger.resident(real, measured, now)
        tenant.load_seconds = tenant.stage_seconds + outcome.seconds.get("load", 0.0)
        tenant.stage_seconds = 0.0
        if not action.candidate:
            tenant.loaded_at, tenant.measured = now, False
            tenant.loads += 1
            self.counters["loads"] += 1
            self.counters["cold_starts"] += tenant.demanded_at is not None

    def _proved(
        self, tenant: Tenant, wish: Wish | None, action: Prove, outcome: Outcome, now: datetime
    ) -> list[Measurement]:
        tenant.second_round = False
        tenant.refused = ""
        if tenant.demanded_at is not None:
            tenant.demanded_at = None
            tenant.usage = used(tenant.usage, now)
        prepared = wish.prepared.get(action.target) if wish else None
        if prepared is None or tenant.measured:
            return []
        tenant.measured = True
        key = self.size(prepared, tenant.model).key
        self._corrected.pop(key, None)
        self._forced.pop(key, None)
        tenant.load_seconds = (tenant.load_seconds or 0.0) + outcome.seconds.get("prove", 0.0)
        measured = self._measure(tenant, prepared)
        if measured is None:
            return []
        size = size_of(prepared, tenant.model, self.accounts.devices, self._footprints)
        error = measured.bytes - size.estimate.bytes
        self.counters["measured"] += 1
        self.counters["estimate_error_bytes"] += abs(error)
        self.largest_error = max(self.largest_error, error)
        return [Measurement(size.key, measured)]

    def _measure(self, tenant: Tenant, prepared: Prepared) -> MeasuredFootprint | None:
        size = self.size(prepared, tenant.model)
        instance = self.accounts.instances.get((tenant.model, prepared.target.version))
        if instance is not None and size.key.kind == "cpu":
            resident, peak, by = instance.resident_bytes, instance.peak_bytes, "processes"
        elif found := self._differences.pop(tenant.model, None):
            resident = peak = max(found.values())
            by = "device"
        else:
            return None
        self._keys[tenant.model, prepared.target.version] = size.key
        return MeasuredFootprint(resident, peak, tenant.load_seconds or 0.0, size.estimate.bytes, by)

    def out_of_memory(self, wish: Wish | None, unit: Unit, outcome: Outcome) -> bool:
        """Whether Triton had no memory for a load, and it is worth another round with a larger footprint."""
        action, tenant = outcome.action, self.tenant(unit.model)
        if not isinstance(action, Load) or not isinstance(outcome.error, LoadRefusedError):
            return False
        if not _OUT_OF_MEMORY.search(str(outcome.error)):
            return False
        prepared = wish.prepared.get(action.target) if wish else None
        if prepared is None:
            return False
        size = self.size(prepared, unit.model)
        self._corrected[size.key] = int(size.footprint.reserve_bytes * _CORRECTION)
        self.counters["out_of_memory"] += 1
        if tenant.second_round:
            tenant.second_round = False
            self._forced.pop(size.key, None)
            return False
        tenant.second_round = True
        self._forced[size.key] = max((self._more_than_free(unit.model, device) for device in size.devices), default=0)
        return True

    def _more_than_free(self, model: str, device: str) -> int:
        """What is free by the ledger was not there: ask for more, so that somebody goes, if there is anybody."""
        ledger = self.accounts.ledger
        budget = ledger.budgets[device].bytes - ledger.unaccounted(device)
        fixed = own = 0
        for holding in ledger.holdings:
            if holding.device == device:
                name = holding.slot.triton_name.removesuffix(candidate_name(""))
                known = self.models.get(name)
                own += holding.bytes if name == model else 0
                fixed += holding.bytes if known is not None and known.mode is Mode.PINNED and name != model else 0
        return min(ledger.free(device) + own + 1, int((budget - fixed) * _ALL))

    def failed(self, model: str, why: str) -> None:
        """It cannot be loaded, and is not tried again soon: nobody waits for it any more."""
        tenant = self.tenant(model)
        if tenant.demanded_at is not None:
            tenant.demanded_at, tenant.refused = None, why

    def see(self, model: str, facts: Facts, step: int, now: datetime) -> None:
        """Bring the ledger to what a look showed of a model that nothing is being done to."""
        tenant = self.tenant(model)
        there = {Slot(model, version) for version in facts.loaded}
        if facts.candidate is not None:
            there.add(Slot(candidate_name(model), facts.candidate))
        ledger = self.accounts.ledger
        names = (model, candidate_name(model), f"{model} (renewed)")
        held = {holding.slot: holding.state for name in names for holding in ledger.of_model(name)}
        for slot in there:
            if held.get(slot) is HoldingState.RESIDENT:
                continue
            if slot in held and tenant.leaving is not None:
                continue
            self.accounts.back(slot)
            size = self.accounts.resident_bytes(slot)
            expected = self._expected(model)
            measured = {HOST: size} if size is not None else expected
            self.accounts.ledger = self.accounts.ledger.resident(slot, measured, now)
        if facts.loaded and tenant.loaded_at is None:
            tenant.loaded_at = now
        elif not facts.loaded and tenant.loaded_at is not None:
            # Not our doing: somebody unloaded it, or a server that we do not supervise was restarted.
            tenant.restore, tenant.loaded_at = tenant.leaving is None, None
        leaving = {Slot(model, version) for version in facts.leaving}
        for slot, state in held.items():
            if slot not in there and not (facts.loading and state is HoldingState.LOADING):
                if tenant.request is not None and tenant.request.slot == slot:
                    continue
                if slot in leaving and self.accounts.reading.instances is None:
                    self.accounts.ledger = self.accounts.ledger.unloading(slot, now)
                else:
                    self.accounts.left(slot, step, now)

    def _expected(self, model: str) -> dict[str, int]:
        known = self.models.get(model)
        if known is None:
            return {}
        return {device: footprint.bytes for device, footprint in known.footprint.items()}

    def lost(self, *, restarted: bool) -> None:
        """The server was not there, or started anew."""
        for tenant in self.tenants.values():
            tenant.loading = None
            tenant.counts.clear()
            tenant.usage = replace(tenant.usage, pending=0)
            if tenant.request is not None and not restarted:
                self.withdraw(tenant.model)
            tenant.request = None
            if restarted:
                tenant.restore = tenant.restore or (tenant.loaded_at is not None and tenant.leaving is None)
                tenant.loaded_at, tenant.leaving, tenant.gap = None, None, ""
        if restarted:
            self.accounts.restarted()

    def take(self, reading: Reading, busy: Iterable[str], step: int, now: datetime) -> list[Measurement]:
        """Take in a reading that began at the loop's ``step``.

        Args:
            reading: The reading.
            busy: Models that we are asking ourselves at this moment: their counters wait for the next reading.
            step: The loop's step.
            now: The time.

        Returns:
            Versions that have grown beyond what is recorded of them.
        """
        self.accounts.take(reading, step, now)
        if reading.counters is not None:
            self._count(reading, frozenset(busy), now)
        return self._grown()

    def unaccounted(self) -> list[tuple[str, int]]:
        """Devices whose unaccounted memory rose above the bound since it was last reported."""
        found = []
        for device in self.accounts.ledger.budgets if self.accounts.limited else ():
            size = self.accounts.ledger.unaccounted(device)
            before = self._reported.get(device, 0)
            if size <= self.settings.unaccounted_report_bytes:
                self._reported[device] = 0
            elif size > before * _GREW:
                self._reported[device] = size
                found.append((device, size))
        return found

    def _count(self, reading: Reading, busy: frozenset[str], now: datetime) -> None:
        assert reading.counters is not None
        by_model: dict[str, list[VersionKey]] = {}
        for key in reading.counters:
            by_model.setdefault(key[0], []).append(key)
        for model, tenant in self.tenants.items():
            keys = by_model.get(model, [])
            if reading.pending is not None:
                pending = sum(reading.pending.get(key, 0) for key in keys)
                if model not in busy and pending != tenant.usage.pending:
                    tenant.usage = replace(tenant.usage, pending=pending)
            if model in busy:
                continue
            asked = 0
            newest = None
            for key in keys:
                counters = reading.counters[key]
                before = tenant.counts.get(key)
                tenant.counts[key] = counters.requests
                if before is None and tenant.loads == 0:
                    # It was loaded before this process knew it: when it was asked last still says something.
                    if counters.last_at is not None and tenant.usage.last_used_at is None:
                        tenant.usage = used(tenant.usage, min(counters.last_at, now))
                    continue
                before = before or 0
                asked += counters.requests - before if counters.requests >= before else counters.requests
                if counters.last_at is not None:
                    newest = max(newest or counters.last_at, counters.last_at)
            ours = min(tenant.ours, asked)
            tenant.ours -= ours
            if asked > ours:
                tenant.usage = used(tenant.usage, min(newest or now, now), asked - ours)
                self.counters["requests"] += asked - ours

    def _grown(self) -> list[Measurement]:
        found = []
        for model, tenant in self.tenants.items():
            known = self.models.get(model)
            if known is None or not tenant.measured:
                continue
            instance = self.accounts.instances.get((model, known.version))
            key = self._keys.get((model, known.version))
            recorded = self._footprints.peek(key) if key else None
            if instance is None or key is None or recorded is None or recorded.by != "processes":
                continue
            if instance.resident_bytes > recorded.bytes * _GREW:
                found.append(
                    Measurement(
                        key,
                        replace(
                            recorded,
                            bytes=instance.resident_bytes,
                            peak_bytes=max(instance.peak_bytes, recorded.peak_bytes),
                        ),
                    )
                )
        return found


def _sum(one: Footprint, other: Footprint) -> Footprint:
    return Footprint(
        one.bytes + other.bytes, one.error_bytes + other.error_bytes, one.source, one.peak_bytes + other.peak_bytes
    )


def _promise(promised: Counter[str], request: LoadRequest) -> None:
    for device, need in request.footprint.items():
        promised[device] += need.reserve_bytes
