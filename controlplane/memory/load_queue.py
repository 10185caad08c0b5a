"""The queue of loads that wait for memory on one server. Mutable; owned by the control loop.

The queue makes no decisions of its own: `controlplane.memory.policy.admission` does. It applies the decisions to the
ledger and returns them to the loop.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from controlplane.domain.deployment import Mode, Switch
from controlplane.domain.names import candidate_name
from controlplane.errors import InsufficientMemoryError
from controlplane.lifecycle.actions import Load
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.replica import Replica
from controlplane.memory.ledger_sync import LedgerSync, reloading_slot
from controlplane.memory.model_state import MemoryRequirement, ModelMemoryState, PendingLoad
from controlplane.memory.policy.admission import (
    Admit,
    Decision,
    Evict,
    LoadRequest,
    Queue,
    Refuse,
    decide,
    decide_all,
    figures_of,
    has_memory,
    promise,
    with_claims,
)
from controlplane.memory.policy.eviction import EvictionPolicy, EvictionRules
from controlplane.memory.policy.types import Footprint, HoldingState, ModelMemory, Slot
from controlplane.memory.policy.units import total
from controlplane.memory.policy.update_strategy import Recreate, UpdateStrategy, choose_update_strategy
from controlplane.memory.sizing import FootprintResolver
from controlplane.memory.views import EvictionRecord
from controlplane.settings import MemorySettings

_EVICTIONS_KEPT = 200
_FIRST = datetime.min.replace(tzinfo=UTC)


@dataclass
class QueueDecisions:
    """What the loop must do now.

    Attributes:
        go: Models whose load may begin, or that need to be planned again.
        evicted: Evictions that were decided; these models are to be unloaded.
        refused: Loads that are given up, with the reason.
        waiting: Models whose load continues to wait.
        untried: Loads of a rollout's candidate that are given up, with the reason.
    """

    go: list[str] = field(default_factory=list)
    evicted: list[EvictionRecord] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    untried: list[tuple[str, str]] = field(default_factory=list)


class LoadQueue:
    """The queue of one server. Shares the ledger and the model state with the scheduler.

    Args:
        server: The server name.
        settings: Limits.
        policy: Determines the order of eviction.
        rules: What protects models from eviction.
        accounts: The ledger.
        sizes: What versions need.
        model_states: The memory state of each model.
        models: The same models as the policies see them.
        contenders: Those of `models` that decisions about other models may depend on.
        unjudged: Receives the models whose residency must be decided again.
        counters: Event counts.

    Attributes:
        evictions: Recent evictions, newest last.
        members: The pinned version of each member, by pipeline that is not loaded.
        units: Those of the pipelines that are to be loaded.
    """

    def __init__(
        self,
        server: str,
        settings: MemorySettings,
        *,
        policy: EvictionPolicy,
        rules: EvictionRules,
        accounts: LedgerSync,
        sizes: FootprintResolver,
        model_states: dict[str, ModelMemoryState],
        models: dict[str, ModelMemory],
        contenders: dict[str, ModelMemory],
        unjudged: set[str],
        counters: Counter[str],
    ) -> None:
        self._server = server
        self._settings = settings
        self.policy = policy
        self._rules = rules
        self._accounts = accounts
        self._sizes = sizes
        self._model_states = model_states
        self._models = models
        self._contenders = contenders
        self._unjudged = unjudged
        self._asking: set[str] = set()
        self._in_flight: set[str] = set()
        self.members: dict[str, dict[str, int]] = {}
        self.units: set[str] = set()
        self._begun: set[str] = set()
        self._counters = counters
        self.evictions: deque[EvictionRecord] = deque(maxlen=_EVICTIONS_KEPT)

    def decide(self, request: LoadRequest, now: datetime) -> Decision:
        """Return the decision that a load would get. Changes nothing."""
        return decide(
            request,
            self._accounts.ledger,
            self._contenders,
            policy=self.policy,
            loads_in_flight=0,
            max_loads=self._settings.max_concurrent_loads,
            now=now,
            rules=self._rules,
        )

    def record(self, model: ModelMemory, for_model: str, why: str, now: datetime) -> EvictionRecord:
        """Record that a model is unloaded, and for which other model."""
        freed = {device: footprint.bytes for device, footprint in model.footprint.items()}
        record = EvictionRecord(
            at=now, server=self._server, victim=model.model, for_model=for_model, bytes=freed, why=why
        )
        self.evictions.append(record)
        return record

    def needs(self, desired_deployment: DesiredDeployment, unit: Replica, load: Load) -> MemoryRequirement | None:
        """Return the memory that a load needs; None if all of its versions are already loaded."""
        assert unit.facts is not None
        facts, model = unit.facts, unit.model
        if load.candidate:
            need = self._need(
                Slot(candidate_name(model), load.target.version), [load.target.version], desired_deployment, load
            )
            return replace(need, trial=load.target == desired_deployment.trial) if need else None
        again = load.reload or bool(facts.loaded and (facts.digest != load.target.digest or facts.externally_modified))
        new = [version for version in load.versions if again or version not in facts.loaded]
        if not new:
            return None
        # Triton keeps the old instances beside the reloaded ones for a while; the old ones hold the slot of that name.
        name = reloading_slot(model) if again and facts.loaded else model
        return self._need(Slot(name, max(new)), new, desired_deployment, load)

    def _need(
        self, slot: Slot, versions: list[int], desired_deployment: DesiredDeployment, load: Load
    ) -> MemoryRequirement | None:
        by_version = {target.version: prepared for target, prepared in desired_deployment.prepared.items()}
        needed: dict[int, dict[str, Footprint]] = {}
        for version in versions:
            prepared = (
                desired_deployment.prepared.get(load.target)
                if version == load.target.version
                else by_version.get(version)
            )
            if prepared is None:
                continue  # left loaded as it is by an earlier revision
            needed[version] = self._sizes.of(prepared, desired_deployment.model, self._accounts).by_device
        return (
            MemoryRequirement(slot, needed, update_strategy=desired_deployment.revision.spec.settings.update_strategy)
            if any(needed.values())
            else None
        )

    def ask(self, model: str, need: MemoryRequirement, now: datetime) -> PendingLoad:
        """Add a load to the queue, or return it if it is already queued."""
        model_state = self._model_state(model)
        request = model_state.ticket.request
        if request is None or request.slot != need.slot or request.need.versions != need.versions:
            if request is not None:
                self.withdraw(model)
            deadline = now + timedelta(seconds=self._settings.load_queue_timeout_seconds)
            request = PendingLoad(need, now, deadline)
            model_state.ticket.wait(request)
            self._asking.add(model)
        return request

    def granted(self, model: str, need: MemoryRequirement) -> bool:
        """Return whether this load's memory is reserved."""
        request = self._model_state(model).ticket.request
        return request is not None and request.granted and request.slot == need.slot

    def withdraw(self, model: str) -> bool:
        """Remove a load that is no longer needed, and release its reservation; return whether there was one."""
        model_state = self._model_state(model)
        request = model_state.ticket.request
        if request is None:
            return False
        if request.granted:
            self._accounts.ledger = self._accounts.ledger.released(request.slot)
        model_state.ticket.withdraw()
        return True

    def _waits(self) -> dict[str, PendingLoad]:
        """Return the loads without a reservation."""
        found: dict[str, PendingLoad] = {}
        for model in sorted(self._asking):
            request = self._model_state(model).ticket.request
            if request is None or request.granted:
                self._asking.discard(model)
            elif model in self._models:
                found[model] = request
        return found

    def _loads_in_flight(self) -> int:
        """Count the loads that have a reservation and have not ended."""
        for model in list(self._in_flight):
            model_state = self._model_state(model)
            if model_state.ticket.loading is None and (
                model_state.ticket.request is None or not model_state.ticket.request.granted
            ):
                self._in_flight.discard(model)
        return len(self._in_flight)

    def schedule(self, units: Mapping[str, Replica], now: datetime) -> QueueDecisions:
        """Process the queue."""
        moves = QueueDecisions()
        waiting = self._waits()
        if not waiting or not self._accounts.known:
            return moves
        in_flight = self._loads_in_flight()
        requests = [self._load_request(model, request, now) for model, request in waiting.items()]
        entitled = [request for request in requests if self.may_preempt(request.model, now)]
        promised: Counter[str] = Counter()
        self._begun &= self.units
        claims: dict[str, Mapping[str, Footprint]] = {
            pipeline: total(self._missing(pipeline).values()) for pipeline in self._begun
        }
        for request, decision in decide_all(
            entitled,
            self._accounts.ledger,
            self._contenders,
            policy=self.policy,
            loads_in_flight=in_flight,
            max_loads=self._settings.max_concurrent_loads,
            now=now,
            rules=self._rules,
            claims=claims,
        ):
            model = request.model.model
            waits = waiting[model]
            asked = waits.need.update_strategy is Switch.RECREATE
            in_place = asked or (
                isinstance(decision, Queue | Refuse | Evict) and waits.need.update_strategy is not Switch.ROLLING
            )
            if in_place and not waits.need.trial and self._unload_first(request, units[model], now, asked=asked):
                moves.go.append(model)
                continue
            if (
                isinstance(decision, Queue)
                and waits.need.update_strategy is Switch.ROLLING
                and self.no_room_alongside(request)
            ):
                self._refuse(model, f"out of memory: with the active version loaded, {decision.why}", moves)
                continue
            match decision:
                case Admit():
                    in_flight += self._grant(model, waits, now, moves)
                    self._begun |= request.units
                    claims |= dict.fromkeys(request.units, request.together(self._accounts.ledger))
                case Evict(victims=victims, why=why, reasons=reasons):
                    waits.why = why
                    for victim in victims:
                        moves.evicted.append(self._evict(victim, model, reasons.get(victim.model, ""), now))
                    promise(promised, claims, request, self._accounts.ledger)
                case Queue(why=why):
                    waits.why = why
                    promise(promised, claims, request, self._accounts.ledger)
                    if now >= waits.deadline:
                        seconds = self._settings.load_queue_timeout_seconds
                        self._refuse(model, f"no room after {seconds:g} s of waiting: {why}", moves)
                case Refuse(why=why):
                    self._refuse(model, f"out of memory: {why}", moves)
        for request in requests:
            model = request.model.model
            if (
                not self.may_preempt(request.model, now)
                and (left := self._model_state(model).ticket.request) is not None
            ):
                left_over = with_claims(promised, claims, request)
                granted = self._admit_opportunistic(request, left, left_over, in_flight, now, moves)
                in_flight += granted
                if granted:
                    self._begun |= request.units
                    claims |= dict.fromkeys(request.units, request.together(self._accounts.ledger))
        moves.waiting.extend(
            model
            for model in waiting
            if (still := self._model_state(model).ticket.request) is not None and not still.granted
        )
        return moves

    def _admit_opportunistic(
        self,
        request: LoadRequest,
        waits: PendingLoad,
        promised: Mapping[str, int],
        in_flight: int,
        now: datetime,
        moves: QueueDecisions,
    ) -> int:
        """Decide about a model that is loaded only because there is room; it causes no evictions and no waiting."""
        decision = decide(
            request,
            self._accounts.ledger,
            self._contenders,
            policy=self.policy,
            loads_in_flight=in_flight,
            max_loads=self._settings.max_concurrent_loads,
            now=now,
            rules=self._rules,
            promised=promised,
        )
        if isinstance(decision, Admit):
            return self._grant(request.model.model, waits, now, moves)
        waits.why = decision.why
        if isinstance(decision, Refuse):
            self._refuse(request.model.model, f"out of memory: {decision.why}", moves)
        return 0

    def _load_request(self, model: str, request: PendingLoad, now: datetime) -> LoadRequest:
        memory = self._models[model]
        since = request.since
        if memory.mode is Mode.PINNED and not memory.loaded:
            since = _FIRST  # these come first after a server restart
        elif not self.may_preempt(memory, now) and memory.usage.last_used_at is not None:
            since = now + max(now - memory.usage.last_used_at, timedelta())  # the most recently used model first
        units = self._units_of(memory)
        others = {
            slot: footprint
            for pipeline in units
            for slot, footprint in self._missing(pipeline).items()
            if slot.triton_name != model
        }
        kept = frozenset(name for pipeline in units for name in (pipeline, *self.members[pipeline])) - {model}
        return LoadRequest(memory, request.slot, request.footprint, since, units, others, kept)

    def _units_of(self, model: ModelMemory) -> frozenset[str]:
        """Return the pipelines for which alone a model is loaded, and which are not loaded yet."""
        if model.mode is Mode.PINNED or model.held_until or (model.demanded_at and model.needed_by):
            return frozenset()
        return frozenset(name for name in (*model.needed_by, model.model) if name in self.units)

    def _missing(self, pipeline: str) -> dict[Slot, Mapping[str, Footprint]]:
        """Return what the models of a pipeline need that have no memory yet, by slot."""
        versions = dict(self.members[pipeline])
        if (own := self._models.get(pipeline)) is not None:
            versions[pipeline] = own.version
        found: dict[Slot, Mapping[str, Footprint]] = {}
        for name, version in versions.items():
            slot, memory = Slot(name, version), self._models.get(name)
            if memory is not None and not has_memory(self._accounts.ledger, slot):
                found[slot] = memory.footprint
        return found

    def missing_members(self, pipeline: str) -> dict[str, Footprint]:
        """Return what the members of a pipeline need that have no memory yet, by device."""
        if pipeline not in self.members:
            return {}
        return total(footprint for slot, footprint in self._missing(pipeline).items() if slot.triton_name != pipeline)

    def may_preempt(self, model: ModelMemory, now: datetime) -> bool:
        """Return whether a load may evict others: the model is pinned, held, demanded, or loaded and changed."""
        leased = model.held_until is not None and model.held_until > now
        urgent = model.mode is Mode.PINNED or leased or model.demanded_at is not None
        return urgent or model.loaded or model.needed_now

    def _grant(self, model: str, request: PendingLoad, now: datetime, moves: QueueDecisions) -> int:
        try:
            self._accounts.ledger = self._accounts.ledger.reserve(request.slot, request.footprint, now)
        except InsufficientMemoryError as error:
            request.why = error.message
            return 0
        request.granted = True
        self._in_flight.add(model)
        self._counters["load_wait_milliseconds"] += int((now - request.since).total_seconds() * 1000)
        moves.go.append(model)
        return 1

    def _evict(self, victim: ModelMemory, for_model: str, reason: str, now: datetime) -> EvictionRecord:
        model_state = self._model_state(victim.model)
        why = f"it makes room for {for_model}" + (f": {reason}" if reason else "")
        record = self.record(victim, for_model, why, now)
        model_state.residency.evict(record, why)
        model_state.stats.evicted(now)
        self._counters["evictions"] += 1
        for name in (victim.model, candidate_name(victim.model)):
            for holding in self._accounts.ledger.of_model(name):
                self._accounts.ledger = self._accounts.ledger.unloading(holding.slot, now)
        self._models.pop(victim.model, None)
        self._contenders.pop(victim.model, None)
        self._unjudged.add(victim.model)
        return record

    def _refuse(self, model: str, why: str, moves: QueueDecisions) -> None:
        model_state = self._model_state(model)
        self._counters["refusals"] += 1
        known = self._models.get(model)
        if known is not None and (pipelines := self._units_of(known) - {model}):
            model_state.ticket.withdraw()
            for pipeline in sorted(pipelines):
                self._refuse(pipeline, f"{why}, for its member {model}", moves)
            return
        if model_state.ticket.request is not None and model_state.ticket.request.need.trial:
            model_state.ticket.withdraw()
            moves.untried.append((model, why))
            return
        model_state.ticket.refuse(why)
        model_state.demand.end()
        self._unjudged.add(model)
        moves.refused.append((model, why))

    def _unload_first(self, request: LoadRequest, unit: Replica, now: datetime, *, asked: bool) -> bool:
        """Unload the old version first if requested, or if both can never fit together; return whether it does."""
        facts, model = unit.facts, request.model.model
        if facts is None or not facts.loaded:
            return False
        evictable = {
            device: figures.could_be_freed_bytes
            for device, figures in figures_of(
                request, self._accounts.ledger, self._contenders, now=now, rules=self._rules
            ).items()
        }
        ledger = self._accounts.settled()
        slots = sorted({holding.slot for name in (model, candidate_name(model)) for holding in ledger.of_model(name)})
        if not slots:
            return False
        for slot in slots[1:]:
            ledger = ledger.released(slot)
        # If models may be evicted later, wait for that rather than cause a gap: only what can never fit causes one.
        if not asked and not self._never_alongside(request, slots):
            return False
        choice = choose_update_strategy(
            slots[0],
            request.footprint,
            ledger,
            load_seconds=request.model.load_seconds,
            evictable=evictable,
            forced=UpdateStrategy.RECREATE if asked else None,
        )
        if not isinstance(choice, Recreate):
            return False
        model_state = self._model_state(model)
        model_state.residency.unload_first(f"unloaded before version {request.slot.version} is loaded: {choice.why}")
        model_state.ticket.withdraw()
        self._unjudged.add(model)
        self._counters["gaps"] += 1
        return True

    def no_room_alongside(self, request: LoadRequest) -> bool:
        """Return whether a version can never fit beside the loaded version of its model, whatever is evicted."""
        held = self._accounts.ledger.of_model(request.model.model)
        slots = {holding.slot for holding in held if holding.state is HoldingState.RESIDENT}
        return bool(slots - {request.slot}) and self._never_alongside(request, sorted(slots - {request.slot}))

    def _never_alongside(self, request: LoadRequest, slots: Sequence[Slot]) -> bool:
        ledger = self._accounts.ledger
        kept = {
            holding
            for name, model in self._contenders.items()
            if name != request.model.model and model.mode is Mode.PINNED
            for holding in ledger.of_model(name)
        }
        kept |= {holding for slot in slots for holding in ledger.of(slot)}
        kept = {holding for holding in kept if holding.state is not HoldingState.UNLOADING}  # being freed
        for device, need in request.footprint.items():
            budget = ledger.budgets.get(device)
            fixed = sum(holding.bytes for holding in kept if holding.device == device) + ledger.unaccounted(device)
            if need.reserve_bytes > (budget.bytes if budget else 0) - fixed:
                return True
        return False

    def _model_state(self, model: str) -> ModelMemoryState:
        return self._model_states[model]
