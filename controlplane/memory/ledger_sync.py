"""Keeps one server's ledger in step with what is seen: budgets, baselines, and holdings whose memory came free.

What a device says is in use contains what the models have, what the server itself has, and what belongs to others.
The *baseline* is what it says beyond the ledger at the first quiet look after the server started: the server itself
and whoever was there before. What is used beyond ledger and baseline later is unaccounted, and counts against the
budget. So does what the device cannot give any more because others took it, baseline or not.

For an embedded server the host's own figure is not the machine's, which the rest of the machine moves up and down, but
the resident memory of the server's processes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from controlplane.domain.names import CANDIDATE_SUFFIX
from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import Budget, HoldingState, Slot
from controlplane.memory.process_memory import ProcessMemory
from controlplane.servers.readings import ServerReading
from controlplane.triton.embedded.processes import InstanceMemory
from controlplane.triton.instance_groups import Gpus
from controlplane.triton.statistics import VersionKey

_STARTING_SECONDS = timedelta(seconds=10)
"""For its first two seconds Triton tells zeros of its host. Who tells them for longer than this cannot read it."""
_BELIEVED = timedelta(hours=1)
"""So long a GPU that Triton refused is left out on a server whose restart, which alone changes that, may go unseen."""
_REPLACED = " (superseded)"
_PLENTY = 1 << 60
"""Budget of a server whose devices nobody tells about: everything fits, and Triton says where it does not."""


def reloading_slot(model: str) -> str:
    """Under which name the memory is reserved for loading a model again that stays loaded until that is done."""
    return f"{model} (reloading)"


def superseded_slot(slot: Slot) -> Slot:
    """Under which name the memory of a version's old instances counts after it was loaded again."""
    return Slot(slot.triton_name + _REPLACED, slot.version)


def own_name(triton_name: str) -> str:
    """Return the model whose memory counts under a name of the ledger."""
    return triton_name.removesuffix(reloading_slot("")).removesuffix(_REPLACED).removesuffix(CANDIDATE_SUFFIX)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Memory that is on its way out.

    Attributes:
        since: The loop's step from which on a reading may tell that it is free.
        processes: Those that have it, of a version whose new processes go by the same name.
    """

    since: int
    processes: frozenset[int] = frozenset()


class LedgerSync:
    """The ledger of one server with what it takes to keep it true.

    Args:
        rules: The budgets.
        told: Whether there is somebody who tells about its devices.

    Attributes:
        ledger: The ledger.
        reading: The newest reading.
        unusable: GPUs that Triton refused to use, although the driver has them, and until when that is believed.
    """

    def __init__(self, rules: BudgetRules, *, told: bool) -> None:
        self._rules = rules
        self._told = told
        self.ledger = Ledger()
        self.reading = ServerReading()
        self.unusable: dict[str, datetime] = {}
        self._baselines: dict[str, int] = {}
        self._own = ProcessMemory()
        self._leaving: dict[Slot, _Leaving] = {}
        self._promised: dict[Slot, dict[str, int]] = {}
        self._taken = -1
        self._zeros_since: datetime | None = None
        if not told:
            self.ledger = self.ledger.with_budget(Budget(HOST, _PLENTY, _PLENTY))

    @property
    def known(self) -> bool:
        """Whether the devices were read, so that there is something to decide by."""
        return not self._told or self.reading.devices is not None

    @property
    def limited(self) -> bool:
        """Whether there is a budget at all."""
        return self._told

    def tells_of(self, device: str) -> bool:
        """Whether a budget can be kept there: a GPU of a server that tells of no GPU is Triton's own business."""
        return device in self.ledger.budgets or any(one.kind is not DeviceKind.HOST for one in self.devices)

    @property
    def devices(self) -> tuple[DeviceReading, ...]:
        """The devices as last read."""
        return self.reading.devices or ()

    @property
    def present_gpus(self) -> tuple[DeviceReading, ...]:
        """The GPUs and MIG instances that the driver can give to models."""
        return tuple(
            device
            for device in self.devices
            if device.kind is not DeviceKind.HOST and device.allocatable and not device.lost
        )

    @property
    def gpus(self) -> tuple[DeviceReading, ...]:
        """The GPUs and MIG instances that models can be loaded on: those that Triton uses."""
        return tuple(device for device in self.present_gpus if device.name not in self.unusable)

    def refuse(self, gpus: Iterable[str], now: datetime) -> None:
        """Triton does not use these GPUs."""
        self.unusable |= dict.fromkeys(gpus, now + _BELIEVED)

    def perhaps_restarted(self) -> None:
        """Something that was loaded is not: a server whose start nobody counts may be another one, with other GPUs."""
        if self.reading.instances is None:
            self.unusable.clear()

    @property
    def topology(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What of the devices decides where a model is loaded."""
        return tuple(device.name for device in self.devices), tuple(device.name for device in self.gpus)

    def numbers(self, devices: Iterable[str]) -> Gpus | None:
        """Return Triton's numbers of a place's GPUs: none for the host of a server with GPUs, None where not known."""
        known = {device.name: device.device_id for device in self.devices if device.kind is not DeviceKind.HOST}
        found = [known.get(name) for name in devices if name != HOST]
        if not found:
            return () if known else None
        return None if None in found else tuple(sorted(number for number in found if number is not None))

    def names(self, gpus: Gpus) -> tuple[str, ...]:
        """Return the devices of Triton's numbers; none means the host."""
        named = {device.device_id: device.name for device in self.devices if device.device_id is not None}
        return tuple(named.get(number, f"gpu:{number}") for number in gpus) or (HOST,)

    @property
    def instances(self) -> Mapping[VersionKey, InstanceMemory]:
        """Memory of the models' processes as last read; none where they cannot be seen."""
        return self.reading.instances or {}

    def restarted(self) -> None:
        """The server started anew: nothing is loaded."""
        for slot in {holding.slot for holding in self.ledger.holdings}:
            self.ledger = self.ledger.released(slot)
        self._baselines.clear()
        self._own = ProcessMemory()
        self._leaving.clear()
        self._promised.clear()
        self.reading = ServerReading()
        self._taken = -1

    def take(self, reading: ServerReading, step: int, now: datetime) -> None:
        """Take in a reading that began at the loop's ``step``; one that is older than what was taken in says nothing.

        A poll measures memory first and then waits for counters, so that an action's own reading may overtake it.
        """
        if step < self._taken:
            return
        if self._starting(reading, now):
            if not self.known:
                return
            reading = replace(reading, devices=None)
        self._taken = step
        if reading.devices is None:
            # Not now: what was told before stands. Never yet: nothing is known that could forbid a load.
            reading = replace(reading, devices=self.reading.devices or ())
        self.reading = reading
        if reading.instances is None:
            self.unusable = {gpu: until for gpu, until in self.unusable.items() if now < until}
        for slot, leaving in list(self._leaving.items()):
            if self._gone(slot, leaving, step):
                del self._leaving[slot]
                self.ledger = self.ledger.released(slot)
        self._follow_instances(now)
        for device in self.devices if self._told else ():
            self._budget(device)
        held = {holding.slot for holding in self.ledger.holdings}
        self._promised = {slot: size for slot, size in self._promised.items() if slot in held}
        self._own.take(reading, self.ledger, settled=not self._promised)
        if self._told and HOST not in {device.name for device in self.devices}:
            self.ledger = self.ledger.with_budget(Budget(HOST, _PLENTY, _PLENTY))

    def _starting(self, reading: ServerReading, now: datetime) -> bool:
        """Whether the server has just started, and does not know itself yet what its host has."""
        host = next((one for one in reading.devices or () if one.kind is DeviceKind.HOST), None)
        if host is None or host.total_bytes or not host.error:
            self._zeros_since = None
            return False
        self._zeros_since = self._zeros_since or now
        return now - self._zeros_since < _STARTING_SECONDS

    def left(self, slot: Slot, step: int, now: datetime) -> None:
        """A slot is not loaded any more: it counts until a reading that began later shows its memory gone."""
        if self.ledger.of(slot):
            self.ledger = self.ledger.unloading(slot, now)
            self._leaving.setdefault(slot, _Leaving(step))

    def mark_superseded(self, slot: Slot, processes: frozenset[int], step: int, now: datetime) -> None:
        """A version was loaded again: what its old instances have counts until it is seen to be gone.

        Triton ends them after the load, so that the reading which came with its end says nothing of them.

        Args:
            slot: The version, under its Triton name.
            processes: The old instances' processes; none where they cannot be seen.
            step: The loop's step.
            now: The time.
        """
        if self.ledger.of(slot):
            name, before = superseded_slot(slot), self._leaving.pop(superseded_slot(slot), _Leaving(0))
            self.ledger = self.ledger.mark_superseded(slot, name, now)
            self._leaving[name] = _Leaving(step + 1, before.processes | processes)
            self._leaving.pop(slot, None)

    def back(self, slot: Slot) -> None:
        """A slot that was on its way out is loaded after all."""
        self._leaving.pop(slot, None)

    def promise(self, slot: Slot, sizes: Mapping[str, int]) -> None:
        """Count a slot for at least this much, by device, until `proved`: its processes grow on after the load."""
        self._promised[slot] = dict(sizes)

    def proved(self, slot: Slot, now: datetime) -> None:
        """A slot has answered: from now on what its processes have counts."""
        if self._promised.pop(slot, None) is not None:
            self._follow_instances(now)

    def seen_bytes(self, slot: Slot, device: str = HOST) -> int | None:
        """Memory of a slot's processes on a device, or what it was promised; None where they cannot be seen.

        Old instances that it replaced are told by the same name, and count for themselves.
        """
        seen = self.process_bytes((slot.triton_name, slot.version), device)
        if seen is None:
            return None
        old = sum(one.bytes + one.over_bytes for one in self.ledger.of(superseded_slot(slot)) if one.device == device)
        return max(seen - old, self._promised.get(slot, {}).get(device, 0), 0)

    def process_bytes(self, version: VersionKey, device: str) -> int | None:
        """Memory of a version's own processes on a device; None where they cannot be seen, or are none of its own.

        On a GPU it is what the driver says of them. It says nothing where it may not, or knows them by other process
        ids than we do (containers).
        """
        instance = self.instances.get(version)
        if instance is None:
            return None
        if device == HOST:
            return instance.resident_bytes
        told = next((one.processes for one in self.devices if one.name == device and not one.error), None)
        found = [told[pid] for pid in instance.pids if pid in told] if told else []
        return sum(found) if found else None

    def own_bytes(self, version: VersionKey, devices: Iterable[str]) -> tuple[int, int] | None:
        """Memory of a version's own processes now and at most, on the one of its devices where that is the most.

        On GPUs the host's share does not count, and the driver tells no peak: what is there now is the most that is
        known. None where not all of it can be seen.
        """
        instance = self.instances.get(version)
        gpus = [device for device in devices if device != HOST]
        if instance is None or not gpus:
            return (instance.resident_bytes, instance.peak_bytes) if instance else None
        found = [self.process_bytes(version, device) for device in gpus]
        known = [size for size in found if size is not None]
        return (max(known), max(known)) if len(known) == len(found) else None

    def excess(self, *, supervised: bool) -> dict[str, int]:
        """Bytes beyond the ledger by device: what a restart of the server would give back.

        Of a server of ours, what its own processes have; of others, whatever nobody accounts for.
        """
        if supervised:
            return self._own.excess(self.ledger)
        return {device: self.ledger.unaccounted(device) for device in self.ledger.budgets} if self._told else {}

    def quiet(self) -> dict[str, int]:
        """What the server's own processes had beyond the ledger, by device, when nothing moved there last."""
        return self._own.quiet

    def quiet_now(self) -> frozenset[str]:
        """The devices of which that is the newest figure."""
        return self._own.fresh

    def strangers(self) -> tuple[str, ...]:
        """What is loaded on a server of ours and is in nobody's ledger, by Triton name."""
        held = {holding.slot.triton_name for holding in self.ledger.holdings}
        return tuple(sorted({name for name, _ in self.instances} - held))

    def settled(self) -> Ledger:
        """Return the ledger for questions of the kind "what if this left": what is unaccounted now stays so.

        The ledger itself would take what a holding leaves behind for unaccounted, because the device's figure is not
        one of afterwards.
        """
        ledger = self.ledger
        budgets = {
            name: Budget(name, max(budget.bytes - ledger.unaccounted(name), 0), budget.total_bytes)
            for name, budget in ledger.budgets.items()
        }
        holdings = tuple(replace(holding, over_bytes=0) for holding in ledger.holdings)
        return Ledger(budgets, holdings)

    def _gone(self, slot: Slot, leaving: _Leaving, step: int) -> bool:
        """Whether the present reading, of this step, shows that something has left."""
        if leaving.processes and self.reading.instances is not None:
            present = {process for one in self.instances.values() for process in one.pids}
            return not leaving.processes & present
        return leaving.since <= step and (slot.triton_name, slot.version) not in self.instances

    def _follow_instances(self, now: datetime) -> None:
        # What is being loaded again has its new processes under the same name, and they are reserved for already.
        again = {one.slot.triton_name for one in self.ledger.holdings if one.state is HoldingState.LOADING}
        for holding in self.ledger.holdings:
            if holding.state is HoldingState.RESIDENT and reloading_slot(holding.slot.triton_name) not in again:
                size = self.seen_bytes(holding.slot, holding.device)
                if size is not None and size != holding.bytes + holding.over_bytes:
                    self.ledger = self.ledger.resident(holding.slot, {holding.device: size}, now)

    def _budget(self, device: DeviceReading) -> None:
        budget = self._rules.budget_bytes(device)
        if device.error or device.used_bytes is None:
            self.ledger = self.ledger.with_budget(Budget(device.name, budget, device.total_bytes))
            return
        own = device.used_bytes
        if device.kind is DeviceKind.HOST and self.reading.instances is not None:
            own = self.reading.server_bytes + sum(one.resident_bytes for one in self.instances.values())
        here = [holding for holding in self.ledger.holdings if holding.device == device.name]
        accounted = sum(holding.bytes for holding in here if holding.state is not HoldingState.RESERVED)
        loading = sum(holding.bytes for holding in here if holding.state is HoldingState.LOADING)
        quiet = not any(holding.state in {HoldingState.LOADING, HoldingState.UNLOADING} for holding in here)
        if device.name not in self._baselines and quiet:
            self._baselines[device.name] = max(own - accounted, 0)
        baseline = self._baselines.get(device.name, 0)
        if device.name not in self._baselines:
            own = min(own, accounted)  # nothing can be said yet
        squeezed = (budget - accounted) - max(device.total_bytes - device.used_bytes - loading, 0)
        used = max(own, baseline + accounted + max(squeezed, 0))
        self.ledger = self.ledger.with_budget(Budget(device.name, budget, device.total_bytes, used, baseline))
