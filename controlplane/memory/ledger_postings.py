"""Records loads, unloads and observations in the ledger. Mutable; owned by the scheduler.

The ledger follows actions without waiting for an observation. The next observation of a model without an action in
flight corrects it.
"""

from collections.abc import Mapping, Set
from datetime import datetime

from controlplane.domain.names import candidate_name
from controlplane.lifecycle.actions import Load, Unload
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.memory.ledger_sync import LedgerSync, reloading_slot, superseded_slot
from controlplane.memory.model_state import MemoryRequirement, ModelMemoryState
from controlplane.memory.policy.types import HOST, HoldingState, ModelMemory, Slot


class LedgerPostings:
    """Records the actions of one server.

    Args:
        accounts: Its ledger.
        model_states: The memory state of each model.
        models: The models as the policies see them.
    """

    def __init__(
        self, accounts: LedgerSync, model_states: Mapping[str, ModelMemoryState], models: Mapping[str, ModelMemory]
    ) -> None:
        self._accounts = accounts
        self._model_states = model_states
        self._models = models

    def began(self, model_state: ModelMemoryState, action: Load | Unload, now: datetime) -> None:
        """Record the start of a load or an unload: its memory is in transition."""
        accounts = self._accounts
        others = [other for other in self._model_states.values() if other.ticket.loading is not None]
        busy = any(h.state is HoldingState.UNLOADING for h in accounts.ledger.holdings)
        gpus = frozenset(gpu.name for gpu in accounts.gpus) if isinstance(action, Load) else None
        model_state.ticket.starting(gpus, exclusive=not others and not busy)
        for other in others:
            other.ticket.disturb()
        name = triton_name(model_state.model, action)
        if isinstance(action, Unload):
            for holding in accounts.ledger.of_model(name):
                accounts.ledger = accounts.ledger.unloading(holding.slot, now)
            return
        if (request := model_state.ticket.request) is not None and request.granted:
            accounts.ledger = accounts.ledger.loading(request.slot, now)
            processes = {
                version: frozenset(one.pids) for (own, version), one in accounts.instances.items() if own == name
            }
            model_state.ticket.begin(request, processes)

    def unloaded(self, model_state: ModelMemoryState, action: Unload, step: int, now: datetime) -> None:
        """Record the end of an unload: its memory counts until a reading shows that it is free."""
        for holding in self._accounts.ledger.of_model(triton_name(model_state.model, action)):
            self._accounts.mark_unloading(holding.slot, step, now)
        if not action.candidate:
            model_state.residency.set_loaded_at(None)

    def loaded(
        self,
        model_state: ModelMemoryState,
        action: Load,
        need: MemoryRequirement,
        grown: Mapping[str, int],
        step: int,
        now: datetime,
    ) -> None:
        """Record a successful load.

        Args:
            model_state: The model.
            action: The load.
            need: Its reservation.
            grown: Growth of the memory in use on each device during the load.
            step: The loop's step.
            now: The time.
        """
        name = triton_name(model_state.model, action)
        leaves = {
            holding.device
            for holding in self._accounts.ledger.of_model(name)
            if holding.slot != need.slot
            and (holding.slot.version in need.versions or holding.slot.version not in action.versions)
        }
        alone = model_state.ticket.exclusive and len(need.versions) == 1
        told = _book_load(self._accounts, model_state, name, need, grown if alone else {}, leaves, step, now)
        if not action.candidate:
            loaded = Slot(name, max(need.versions))
            own = self._accounts.own_bytes((name, loaded.version), need.versions[loaded.version])
            # If processes are being replaced, their peak is not the peak of this load.
            peak = own[1] if own and not self._accounts.ledger.of(superseded_slot(loaded)) else 0
            model_state.residency.grew(told, peak)

    def see(self, model_state: ModelMemoryState, facts: ReplicaObservation, step: int, now: datetime) -> None:
        """Update the ledger to an observation of a model without an action in flight."""
        model = model_state.model
        there = {Slot(model, version) for version in facts.loaded}
        if facts.candidate is not None:
            there.add(Slot(candidate_name(model), facts.candidate))
        ledger = self._accounts.ledger
        names = (model, candidate_name(model), reloading_slot(model))
        held = {holding.slot: holding.state for name in names for holding in ledger.of_model(name)}
        for slot in there:
            if held.get(slot) is HoldingState.RESIDENT:
                continue
            if slot in held and model_state.residency.leaving is not None:
                continue
            self._accounts.mark_resident(slot)
            measured = self._found(slot, facts)
            self._accounts.ledger = self._accounts.ledger.resident(slot, measured, now)
        if facts.loaded and model_state.residency.loaded_at is None:
            model_state.residency.set_loaded_at(now)
        elif not facts.loaded and model_state.residency.loaded_at is not None:
            # Caused from outside: another client unloaded it, or an unsupervised server was restarted.
            model_state.residency.taken_away()
            self._accounts.perhaps_restarted()
        leaving = {Slot(model, version) for version in facts.leaving}
        for slot, state in held.items():
            if slot not in there and not (facts.loading and state is HoldingState.LOADING):
                if model_state.ticket.request is not None and model_state.ticket.request.slot == slot:
                    continue
                if slot in leaving and self._accounts.reading.instances is None:
                    self._accounts.ledger = self._accounts.ledger.unloading(slot, now)
                else:
                    self._accounts.mark_unloading(slot, step, now)

    def _found(self, slot: Slot, facts: ReplicaObservation) -> dict[str, int]:
        """Return the sizes of a loaded version by device: as read, or as expected on the GPUs that it uses."""
        known = self._models.get(slot.triton_name.removesuffix(candidate_name("")))
        expected = {} if known is None else {device: one.bytes for device, one in known.footprint.items()}
        if facts.gpus and expected:
            expected = dict.fromkeys(self._accounts.names(facts.gpus), max(expected.values()))
        seen = {device: self._accounts.seen_bytes(slot, device) for device in (HOST, *expected)}
        if seen[HOST] is not None:
            expected.pop(HOST, None)
        return expected | {device: size for device, size in seen.items() if size is not None}


def triton_name(model: str, action: Load | Unload) -> str:
    """Return the Triton name under which an action loads or unloads a model."""
    return candidate_name(model) if action.candidate else model


def _book_load(
    accounts: LedgerSync,
    model_state: ModelMemoryState,
    name: str,
    need: MemoryRequirement,
    grown: Mapping[str, int],
    leaves: Set[str],
    step: int,
    now: datetime,
) -> dict[str, int]:
    """Record a finished load in the ledger.

    The memory that its versions held before, under the same name, is marked as superseded. The new versions count with
    the memory of their processes; without such a reading, with the growth of the device's use if it can be attributed
    to them; otherwise with the reserved size.

    Args:
        accounts: The server's ledger, up to date with a reading from after the load.
        model_state: The model.
        name: The Triton name that was loaded.
        need: What was reserved.
        grown: Growth of the memory in use on each device caused by the one loaded version; empty if other models may
            have contributed.
        leaves: Devices on which the growth says nothing, since the replaced version is being freed there.
        step: The loop's step.
        now: The time.

    Returns:
        The part of `grown` that was used; empty if the version's own memory could be read, or if not all of its devices
        have a usable growth.
    """
    shares = {
        Slot(name, version): {device: one.reserve_bytes for device, one in by_device.items()}
        for version, by_device in need.versions.items()
    }
    for slot in shares.keys() - {need.slot}:
        accounts.mark_superseded(slot, model_state.ticket.processes.get(slot.version, frozenset()), step, now)
    accounts.ledger = accounts.ledger.divided(need.slot, shares)
    answers = Slot(name, max(need.versions))
    accounts.promise(answers, shares[answers])
    told: dict[str, int] = {}
    for slot, sizes in shares.items():
        seen = {device: accounts.seen_bytes(slot, device) for device in dict.fromkeys((HOST, *sizes))}
        measured = {device: size for device, size in seen.items() if size is not None}
        unseen = {device: grown.get(device, 0) for device in sizes if seen[device] is None}
        if not leaves & unseen.keys() and all(size > 0 for size in unseen.values()):
            told = unseen
        accounts.ledger = accounts.ledger.resident(slot, measured | told, now)
    return told
