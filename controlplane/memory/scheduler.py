"""Memory scheduler of one server: which models are to be loaded, which loads may begin, which models are evicted.

Mutable; owned by the control loop. The scheduler makes no decisions of its own: the policies in `controlplane.memory`
do, from frozen values. It keeps their inputs (the ledger, usage, demands, holds) and passes their decisions to the
loop, which acts:

1. `judge` decides for every model whether it is to be loaded; the planner then works towards that.
2. A load that needs memory begins only with a grant. Without one it waits in the `queue`, which is processed whenever
   something changed: grants, evictions, refusals.
3. `began`, `ended`, `see` and `take` follow what happens: `LedgerPostings` records it in the ledger,
   `FootprintRecorder` keeps measured footprints, `LoadRefusals` evaluates the loads that Triton refused.

No I/O, and nothing here waits.
"""

import heapq
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from datetime import UTC, datetime

from controlplane.domain.deployment import Mode
from controlplane.domain.names import candidate_name
from controlplane.errors import LoadRefusedError
from controlplane.gpu.budgets import BudgetRules
from controlplane.lifecycle.actions import Action, Load, Prove, Stage, Unload
from controlplane.lifecycle.desired import DesiredDeployment, PreparedVersion
from controlplane.lifecycle.executor import Outcome
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import ProofStatus
from controlplane.memory.footprint_recorder import GREW, FootprintRecorder, FootprintSample
from controlplane.memory.ledger_postings import LedgerPostings, triton_name
from controlplane.memory.ledger_sync import LedgerSync, own_name
from controlplane.memory.load_queue import LoadQueue
from controlplane.memory.load_refusals import LoadRefusals
from controlplane.memory.model_state import ModelMemoryState
from controlplane.memory.policy.admission import LoadRequest, Refuse
from controlplane.memory.policy.eviction import EvictionPolicy, EvictionRules, policy_named
from controlplane.memory.policy.residency import ResidencyDecision, free_for, if_room, next_turn, without_room
from controlplane.memory.policy.types import Footprint, FootprintSource, Holding, HoldingState, ModelMemory, Slot
from controlplane.memory.policy.units import total
from controlplane.memory.request_counts import count_requests
from controlplane.memory.retained_memory import RetainedMemory
from controlplane.memory.sizing import FootprintResolver, Size, device_kind
from controlplane.registry.footprints import Footprints, MeasuredFootprint
from controlplane.servers.readings import ServerReading
from controlplane.servers.server import ManagedServer
from controlplane.settings import MemorySettings

logger = logging.getLogger(__name__)

_NEVER = datetime.max.replace(tzinfo=UTC)


class MemoryScheduler:
    """Schedules the memory of one server.

    Args:
        server: Its name.
        rules: The budgets of its devices.
        settings: Policy and limits.
        footprints: Measurements; only those in memory are used.
        told: Whether the server has a source of device readings.
    """

    def __init__(
        self, server: str, rules: BudgetRules, settings: MemorySettings, footprints: Footprints, *, told: bool
    ) -> None:
        self.server = server
        self.settings = settings
        self.rules = EvictionRules(minimum_residence_seconds=settings.minimum_residence_seconds)
        self.accounts = LedgerSync(rules, told=told)
        self.model_states: dict[str, ModelMemoryState] = {}
        self.models: dict[str, ModelMemory] = {}
        self.contenders: dict[str, ModelMemory] = {}
        """Models that hold memory, are in transition, or are pinned: decisions about a load depend on no others."""
        self.unjudged: set[str] = set()
        """Models whose residency depends on something that changed."""
        self.reworded: set[str] = set()
        """Models whose residency has a new reason."""
        self.pending: set[str] = set()
        """Models with requests in Triton's queue or in execution."""
        self._waiting: set[str] = set()
        self._roomless: set[str] = set()
        """Waiting models for which room is sought with the last marked models."""
        self._taking: set[str] = set()
        self._turns: list[tuple[datetime, str]] = []
        self._next_turn: dict[str, datetime] = {}
        self._rooms_for: object = None
        self._judged_holdings: tuple[Holding, ...] = ()
        self.counters: Counter[str] = Counter()
        self.draining = False
        self._footprints = footprints
        self._sizes = FootprintResolver(footprints)
        self.queue = LoadQueue(
            server,
            settings,
            policy=policy_named(settings.eviction_policy),
            rules=self.rules,
            accounts=self.accounts,
            sizes=self._sizes,
            model_states=self.model_states,
            models=self.models,
            contenders=self.contenders,
            unjudged=self.unjudged,
            counters=self.counters,
        )
        self._retained_memory = RetainedMemory(self.accounts)
        self._booking = LedgerPostings(self.accounts, self.model_states, self.models)
        self._refusals = LoadRefusals(self.accounts, self._sizes, self.models, self.counters)
        self._meter = FootprintRecorder(
            self.accounts,
            footprints,
            self._sizes,
            model_states=self.model_states,
            models=self.contenders,
            retained_memory=self._retained_memory,
            counters=self.counters,
        )
        self._reported: dict[str, int] = {}
        self._held_models: set[str] = set()
        self._needed: dict[str, tuple[str, ...]] = {}

    @classmethod
    def of(cls, server: ManagedServer, settings: MemorySettings, footprints: Footprints) -> "MemoryScheduler":
        """Return the scheduler of a server."""
        return cls(server.name, server.budgets, settings, footprints, told=server.devices is not None)

    @property
    def policy(self) -> EvictionPolicy:
        """The eviction policy with what it has learned."""
        return self.queue.policy

    @property
    def largest_error(self) -> int:
        """The largest excess of a measurement over its estimate, in bytes."""
        return self._meter.largest_error

    # State

    def model_state(self, model: str) -> ModelMemoryState:
        """Return the memory state of a model."""
        if model not in self.model_states:
            self.model_states[model] = ModelMemoryState(model)
        return self.model_states[model]

    def size(self, prepared: PreparedVersion, model: str, place: tuple[str, ...] | None = None) -> Size:
        """Return what a version needs on the devices that its model is placed on, or on the given devices."""
        return self._sizes.of(prepared, model, self.accounts, place)

    def device_kind(self, prepared: PreparedVersion, model: str) -> str:
        """Return the kind of the devices on which a version is loaded: ``cpu`` or GPU products; empty if unknown."""
        return device_kind(self.size(prepared, model).devices, prepared, self.accounts)

    def assignment(self, model: str, devices: tuple[str, ...]) -> None:
        """Set the devices of the server that a model is placed on; empty if unspecified."""
        self._sizes.places[model] = devices
        self.unjudged.add(model)

    def measured(self, prepared: PreparedVersion, model: str) -> MeasuredFootprint | None:
        """Return the recorded measurement of a version; None without one."""
        return self._footprints.peek(self.size(prepared, model).key)

    def desired(self, model: str) -> ResidencyDecision | None:
        """Return the last decision whether a model is to be loaded; None if memory does not decide."""
        model_state = self.model_states.get(model)
        return model_state.residency.verdict if model_state else None

    def fits_alongside(self, desired_deployment: DesiredDeployment) -> bool:
        """Return whether a further replica of the desired version has its memory, or would get it without evictions."""
        prepared = desired_deployment.prepared.get(desired_deployment.wanted)
        if prepared is None or not self.accounts.known:
            return False
        request = self.model_state(desired_deployment.model).ticket.request
        if request is not None and request.granted:
            return request.slot.triton_name != candidate_name(desired_deployment.model)
        needs = self.size(prepared, desired_deployment.model).by_device
        return bool(needs) and not self.accounts.ledger.shortage(needs)

    def adopt(self, model: str) -> None:
        """Drop known refusals after the desired state changed: they may no longer hold."""
        model_state = self.model_state(model)
        model_state.ticket.forget_refusals()
        self.unjudged.add(model)

    def demand(self, model: str, now: datetime) -> None:
        """Record that a client wants to use the model now."""
        model_state = self.model_state(model)
        model_state.ticket.set_refused("")
        self.unjudged.add(model)
        known = self.models.get(model)
        if known is not None and known.loaded and not known.busy and not self.draining:
            model_state.demand.use(now)
            return
        if model_state.demand.since is None:
            model_state.demand.begin(now)
            model_state.stats.wanted_again(now, self.rules)

    def hold(self, holds: Mapping[str, datetime], now: datetime) -> None:
        """Replace the ends of the holds, by model."""
        for model in sorted(holds.keys() | self._held_models):
            model_state = self.model_state(model)
            until = holds.get(model)
            if until != model_state.demand.held_until:
                self.unjudged.add(model)
            if until is not None and model_state.demand.held_until is None:
                model_state.ticket.set_refused("")
                known = self.models.get(model)
                if known is not None and not known.loaded:
                    model_state.stats.wanted_again(now, self.rules)
            elif until is None and model_state.demand.held_until is not None:
                model_state.demand.use(now)  # a hold counts as use until it ends
            model_state.demand.hold(until)
        self._held_models = set(holds)

    def set_needed(self, model: str, pipelines: tuple[str, ...]) -> None:
        """Record which pipelines need a model here."""
        if pipelines:
            self._needed[model] = pipelines
        else:
            self._needed.pop(model, None)

    def set_unit(self, pipeline: str, members: dict[str, int], *, wanted: bool) -> None:
        """Record which versions of its members a pipeline needs that is not loaded, and whether it is to be loaded."""
        if members:
            self.queue.members[pipeline] = members
        else:
            self.queue.members.pop(pipeline, None)
        (self.queue.units.add if members and wanted else self.queue.units.discard)(pipeline)

    def resume(self, now: datetime) -> None:
        """Cancel a restart: demands for models that are still loaded are fulfilled."""
        for model, model_state in self.model_states.items():
            known = self.models.get(model)
            if model_state.demand.since is not None and known is not None and known.loaded and not known.busy:
                model_state.demand.satisfy(now)
                self.unjudged.add(model)

    # Residency

    def due(self, now: datetime) -> set[str]:
        """Return the models whose residency may change now: their time has come, or their holdings changed."""
        found = set()
        while self._turns and self._turns[0][0] <= now:
            at, model = heapq.heappop(self._turns)
            if self._next_turn.get(model) == at:
                del self._next_turn[model]
                found.add(model)
        holdings = self.accounts.ledger.holdings
        if holdings is not self._judged_holdings:
            before, after = set(map(id, self._judged_holdings)), set(map(id, holdings))
            changed = [one for one in self._judged_holdings if id(one) not in after]
            changed += [one for one in holdings if id(one) not in before]
            found |= {own_name(one.slot.triton_name) for one in changed} & self.models.keys()
            self._judged_holdings = holdings
        return found

    def overlooked(self, desired_deployment: DesiredDeployment, unit: Replica, now: datetime) -> bool:
        """Return whether the stored state of a model differs from its current state."""
        if self._turns and self._turns[0][0] <= now:
            return False  # the time of some models has come since the last cycle, perhaps of this one
        known, model_state = self.models.get(desired_deployment.model), self.model_state(desired_deployment.model)
        spec = desired_deployment.revision.spec
        loose = (
            spec.deleted
            or not spec.loaded
            or desired_deployment.wanted not in desired_deployment.prepared
            or not self.accounts.known
        )
        if known is None or loose:
            return (known is None) is not loose
        answer = without_room(known, now, self.rules)
        residency = model_state.residency
        turned = answer is not None and not (residency.engaged or residency.verdict == answer)
        return turned or known != self._memory_of(desired_deployment, unit, model_state, now)

    def update_residency(
        self,
        occupants: Iterable[tuple[DesiredDeployment, Replica]],
        now: datetime,
        *,
        gone: Iterable[str] = (),
        last: bool = True,
    ) -> set[str]:
        """Decide again whether models are to be loaded.

        Args:
            occupants: The models with changes.
            now: The time.
            gone: Models that are no longer placed here.
            last: Whether these are all models with changes. Otherwise models that wait for room keep their decision
                until the last call, because it depends on the others.

        Returns:
            The models whose decision changed; `reworded` also gets those with a new reason.
        """
        names = set(gone)
        for model in names:
            self._forget(model)
        for desired_deployment, unit in occupants:
            names.add(desired_deployment.model)
            model_state = self.model_state(desired_deployment.model)
            spec = desired_deployment.revision.spec
            if (
                spec.deleted
                or not spec.loaded
                or desired_deployment.wanted not in desired_deployment.prepared
                or not self.accounts.known
            ):
                self._forget(desired_deployment.model)
                request = model_state.ticket.request
                if request is not None and not request.granted:
                    model_state.ticket.withdraw()
                if spec.deleted or not spec.loaded:
                    model_state.demand.end()
                    model_state.residency.stay()
                    model_state.ticket.set_refused("")
                continue
            self._settle_model(model_state, unit, now)
            self._keep(self._memory_of(desired_deployment, unit, model_state, now), now)
        answers: dict[str, ResidencyDecision] = {}
        for model in names & self.models.keys():
            memory = self.models[model]
            answer = without_room(memory, now, self.rules)
            if answer is not None:
                answers[model] = answer
            self._sort(memory, answer, now)
        self._roomless |= names & self._waiting
        names -= self._roomless
        if last:
            names |= self._roomless
            answers |= self._rooms(now, names)
            self._roomless.clear()
        changed = set()
        for model in sorted(names | answers.keys()):
            if self._answer(self.model_state(model), answers.get(model), now):
                changed.add(model)
        return changed

    def _answer(self, model_state: ModelMemoryState, verdict: ResidencyDecision | None, now: datetime) -> bool:
        """Store the decision for a model; return whether it differs from the previous one."""
        model = model_state.model
        if verdict is not None:
            if model_state.residency.leaving is not None:
                verdict = ResidencyDecision(loaded=False, why=model_state.residency.leaving.why)
            elif model_state.residency.downtime_reason:
                verdict = ResidencyDecision(loaded=False, why=model_state.residency.downtime_reason)
            elif not verdict.loaded and self.models[model].mode is Mode.RESIDENT:
                verdict = self._or_never(self.models[model], verdict, now)
        before = model_state.residency.verdict
        model_state.residency.decide(verdict)
        if before != verdict:
            self.reworded.add(model)
        if (before is None or before.loaded) == (verdict is None or verdict.loaded):
            return False
        if (
            verdict is not None
            and not verdict.loaded
            and self.models[model].loaded
            and model_state.residency.leaving is None
        ):
            self._expired(self.models[model], verdict, now)
        return True

    def _keep(self, memory: ModelMemory, now: datetime) -> None:
        """Store the policy view of a model, and let the policy learn from its most recent use."""
        model, before = memory.model, self.models.get(memory.model)
        self.models[model] = memory
        if memory.loaded or memory.busy or memory.mode is Mode.PINNED:
            self.contenders[model] = memory
        else:
            self.contenders.pop(model, None)
        if memory.usage.last_used_at is not None and (
            before is None or before.usage.last_used_at != memory.usage.last_used_at
        ):
            budgets = {device: budget.bytes for device, budget in self.accounts.ledger.budgets.items()}
            self.queue.policy = self.policy.learned(memory, self.models, budgets, now)

    def _forget(self, model: str) -> None:
        """Remove a model that memory does not decide about."""
        self.models.pop(model, None)
        self.contenders.pop(model, None)
        self._waiting.discard(model)
        self._taking.discard(model)

    def _sort(self, memory: ModelMemory, answer: ResidencyDecision | None, now: datetime) -> None:
        """Track which models wait for room, which are about to take some, and when a decision may change."""
        model = memory.model
        (self._waiting.add if answer is None else self._waiting.discard)(model)
        takes = answer is not None and answer.loaded and not memory.loaded
        (self._taking.add if takes else self._taking.discard)(model)
        turn = next_turn(memory, now, self.rules)
        # An earlier turn is enough: it is followed by the next one. So uses do not fill the heap.
        if turn is not None and turn < self._next_turn.get(model, _NEVER):
            self._next_turn[model] = turn
            heapq.heappush(self._turns, (turn, model))

    def _rooms(self, now: datetime, names: Set[str]) -> dict[str, ResidencyDecision]:
        """Decide which resident models that are not loaded have room, if that may have changed."""
        if not self._waiting:
            self._rooms_for = None
            return {}
        ledger = self.accounts.ledger
        takes = [self.models[model] for model in sorted(self._taking)]
        free = free_for(ledger, takes)
        key = (free, {device: budget.bytes for device, budget in ledger.budgets.items()}, frozenset(self._waiting))
        if key == self._rooms_for and not names & self._waiting:
            return {}
        self._rooms_for = key
        return if_room([self.models[model] for model in self._waiting], free, self.policy, now)

    def _or_never(self, model: ModelMemory, verdict: ResidencyDecision, now: datetime) -> ResidencyDecision:
        """Distinguish a resident model that can never fit from one that waits for room."""
        model_state, budgets = self.model_state(model.model), self.accounts.ledger.budgets
        model_state.ticket.set_refused("")
        whole = total((model.footprint, model.unit))
        if all(device in budgets and need.reserve_bytes <= budgets[device].bytes
               for device, need in whole.items()):  # fmt: skip
            return verdict
        request = LoadRequest(model, Slot(model.model, model.version), whole)
        decision = self.queue.decide(request, now)
        if isinstance(decision, Refuse):
            model_state.ticket.set_refused(f"out of memory: {decision.why}")
            return ResidencyDecision(loaded=False, why=model_state.ticket.refused)
        return verdict

    def _settle_model(self, model_state: ModelMemoryState, unit: Replica, now: datetime) -> None:
        facts = unit.facts
        if facts is None or unit.task is not None:
            return
        gone = not facts.loaded and facts.candidate is None and not facts.leaving and not facts.candidate_leaving
        if gone and model_state.residency.gone():
            model_state.demand.begin(now)  # the new version replaces the old one at once, whatever its mode
        if facts.loaded:
            model_state.residency.restored()

    def _memory_of(
        self, desired_deployment: DesiredDeployment, unit: Replica, model_state: ModelMemoryState, now: datetime
    ) -> ModelMemory:
        settings = desired_deployment.revision.spec.settings
        size = self.size(desired_deployment.prepared[desired_deployment.wanted], desired_deployment.model)
        facts = unit.facts
        loaded = facts is not None and bool(facts.loaded)
        held = self._held(desired_deployment.model)
        mode = settings.mode
        if model_state.residency.restore and not loaded and mode is Mode.ON_DEMAND:
            mode = Mode.RESIDENT
        pipelines = self._needed.get(desired_deployment.model, ())
        needing = [self.models[name] for name in pipelines if name in self.models]
        return ModelMemory(
            model=desired_deployment.model,
            mode=mode,
            version=desired_deployment.wanted.version,
            footprint=held if loaded and held else size.by_device,
            priority=max((settings.priority, *(one.priority for one in needing))),
            keep_alive_seconds=settings.keep_alive_seconds,
            load_seconds=model_state.stats.load_seconds or size.load_seconds or 1.0,
            loaded=loaded,
            # A model that is already being unloaded is no candidate for another eviction.
            busy=unit.engaged or model_state.residency.engaged,
            loaded_at=model_state.residency.loaded_at,
            usage=model_state.demand.usage,
            held_until=model_state.demand.held_until,
            demanded_at=model_state.demand.since,
            evictions=model_state.stats.early_evictions,
            needed_by=pipelines,
            needed_now=any(self.queue.may_preempt(one, now) for one in needing),
            unit={} if loaded else self.queue.missing_members(desired_deployment.model),
        )

    def _held(self, model: str) -> dict[str, Footprint]:
        held: dict[str, int] = {}
        for name in (model, candidate_name(model)):
            for holding in self.accounts.ledger.of_model(name):
                if holding.state is not HoldingState.RESERVED:
                    held[holding.device] = held.get(holding.device, 0) + holding.bytes
        return {device: Footprint(size, 0, FootprintSource.MEASURED, size) for device, size in held.items()}

    def _expired(self, model: ModelMemory, verdict: ResidencyDecision, now: datetime) -> None:
        self.counters["expirations"] += 1
        self.queue.record(model, "", verdict.why, now)

    # Actions and readings

    def began(self, unit: Replica, action: Action, now: datetime) -> None:
        """Record the start of an action."""
        model_state = self.model_state(unit.model)
        if not isinstance(action, Load | Unload):
            return
        if isinstance(action, Unload):
            self._retained_memory.unload_began(unit.model, own=not action.candidate)
        elif model_state.ticket.request is not None:
            first = not action.candidate and not (unit.facts and unit.facts.loaded)
            self._retained_memory.load_began(unit.model, first=first)
        self._booking.began(model_state, action, now)

    def ended(
        self,
        desired_deployment: DesiredDeployment | None,
        unit: Replica,
        outcome: Outcome,
        reading: ServerReading | None,
        differences: Mapping[str, int],
        step: int,
        now: datetime,
    ) -> list[FootprintSample]:
        """Record the end of an action.

        Args:
            desired_deployment: The desired state of the model.
            unit: The model on this server.
            outcome: The result.
            reading: The reading taken right after the action.
            differences: Growth of the memory in use on each device during the action.
            step: The loop's step at which it ended.
            now: The time.

        Returns:
            The measurements.
        """
        if reading is not None:
            self.accounts.ingest(reading, step - 1, now)
        measured = self._ended(desired_deployment, unit, outcome, differences, step, now)
        if reading is not None:
            self.accounts.ingest(reading, step, now)  # the same reading also shows the memory that the action freed
        return measured + self._meter.left()

    def _ended(
        self,
        desired_deployment: DesiredDeployment | None,
        unit: Replica,
        outcome: Outcome,
        differences: Mapping[str, int],
        step: int,
        now: datetime,
    ) -> list[FootprintSample]:
        model_state, action = self.model_state(unit.model), outcome.action
        self.unjudged.add(unit.model)
        proved = unit.record.marks.get(action.target.version) if isinstance(action, Prove) else None
        for stage in ("fetch", "stage", "load", "prove") if proved is not ProofStatus.PASSED else ():
            self.counters[f"{stage}_milliseconds"] += int(outcome.seconds.get(stage, 0.0) * 1000)
        match action:
            case Stage() if outcome.error is None:
                model_state.ticket.staged(sum(outcome.seconds.values()))
            case Load():
                self._load_ended(model_state, action, outcome, differences, step, now)
            case Prove():
                # The counters belong to the model's own name; a candidate has its own.
                model_state.demand.probed(outcome.peer_requests + (0 if action.candidate else outcome.requests))
                if outcome.mark is ProofStatus.PASSED:
                    name = candidate_name(unit.model) if action.candidate else unit.model
                    self.accounts.proved(Slot(name, action.target.version), now)
                if outcome.mark is ProofStatus.PASSED and not action.candidate:
                    return self._proved(model_state, desired_deployment, action, outcome, now)
            case Unload() if outcome.error is None:
                self._booking.unloaded(model_state, action, step, now)
        return []

    def _load_ended(
        self,
        model_state: ModelMemoryState,
        action: Load,
        outcome: Outcome,
        differences: Mapping[str, int],
        step: int,
        now: datetime,
    ) -> None:
        need = model_state.ticket.end()
        model_state.residency.new_load()
        if outcome.error is not None:
            if need is not None and isinstance(outcome.error, LoadRefusedError):
                self.accounts.mark_unloading(need.slot, step, now)
            return  # after any other error the state is unknown: the next observation shows it
        name = triton_name(model_state.model, action)
        model_state.demand.reset_counts(name)
        if need is None:
            return
        self._booking.loaded(model_state, action, need, differences, step, now)
        model_state.stats.took(model_state.ticket.take_stage_seconds() + outcome.seconds.get("load", 0.0))
        if not action.candidate:
            model_state.residency.loaded(now)
            model_state.stats.loaded()
            self.counters["loads"] += 1
            self.counters["cold_starts"] += model_state.demand.since is not None

    def _proved(
        self,
        model_state: ModelMemoryState,
        desired_deployment: DesiredDeployment | None,
        action: Prove,
        outcome: Outcome,
        now: datetime,
    ) -> list[FootprintSample]:
        model_state.ticket.forget_refusals()
        if model_state.demand.since is not None:
            # The waiting request has not been sent yet, so the keep-alive starts now.
            model_state.demand.satisfy(now)
            model_state.residency.set_loaded_at(now)
        prepared = desired_deployment.prepared.get(action.target) if desired_deployment else None
        return [] if prepared is None else self._meter.proved(model_state, prepared, outcome.seconds.get("prove", 0.0))

    def gpus_refused(self, unit: Replica, outcome: Outcome, now: datetime) -> str | None:
        """Learn from a refused load which GPUs Triton does not use; see `LoadRefusals.gpus`."""
        return self._refusals.gpus(self.model_state(unit.model), outcome, now)

    def out_of_memory(self, desired_deployment: DesiredDeployment | None, unit: Replica, outcome: Outcome) -> bool:
        """Return whether Triton ran out of memory for a load that is worth a retry with a larger footprint."""
        return self._refusals.out_of_memory(self.model_state(unit.model), desired_deployment, outcome)

    def failed(self, model: str, why: str) -> None:
        """Record that a model cannot be loaded and is not retried soon: its demand ends."""
        model_state = self.model_state(model)
        if model_state.demand.since is not None:
            model_state.demand.end()
            model_state.ticket.set_refused(why)
            self.unjudged.add(model)

    def see(self, model: str, facts: ReplicaObservation, step: int, now: datetime) -> None:
        """Update the ledger to an observation of a model without an action in flight."""
        self._booking.see(self.model_state(model), facts, step, now)
        self.unjudged.add(model)

    def lost(self, *, restarted: bool) -> None:
        """Reset the state after the server was unreachable or restarted."""
        self.accounts.unusable.clear()
        self.unjudged.update(self.model_states)
        self.pending.clear()
        for model_state in self.model_states.values():
            model_state.demand.reset_counts()
            model_state.demand.set_pending(0)
            if model_state.ticket.request is not None and not restarted:
                self.queue.withdraw(model_state.model)
            model_state.ticket.lost()
            if restarted:
                model_state.residency.lost()
        if restarted:
            self.accounts.restarted()
            self._retained_memory.restarted()

    def take(self, reading: ServerReading, busy: Iterable[str], step: int, now: datetime) -> list[FootprintSample]:
        """Process a reading that began at the loop's ``step``.

        Args:
            reading: The reading.
            busy: Models that the control plane is sending requests to now; their counters wait for the next reading.
            step: The loop's step.
            now: The time.

        Returns:
            Samples of versions that grew beyond their recorded footprint or left memory behind.
        """
        self.accounts.ingest(reading, step, now)
        if reading.counters is not None:
            counted = count_requests(self.model_states, reading, frozenset(busy), now, pending=self.pending)
            self.counters["requests"] += counted.requests
            self.unjudged |= counted.changed
            self._retained_memory.used(counted.used)
        return self._meter.grown() + self._meter.left()

    def unaccounted(self) -> list[tuple[str, int]]:
        """Return devices whose unaccounted memory rose above the threshold since it was last reported."""
        found = []
        for device in self.accounts.ledger.budgets if self.accounts.limited else ():
            size = self.accounts.ledger.unaccounted(device)
            before = self._reported.get(device, 0)
            if size <= self.settings.leak_warning_threshold_bytes:
                self._reported[device] = 0
            elif size > before * GREW:
                self._reported[device] = size
                found.append((device, size))
        return found
