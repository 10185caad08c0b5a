"""Keeps one server's ledger in step with readings: budgets, baselines, and holdings whose memory was freed.

A device's memory in use includes the models, the server itself, and other processes. The *baseline* is the part beyond
the ledger at the first reading without loads or unloads after the server started: the server itself and processes that
were there before. Later use beyond ledger and baseline is unaccounted, and counts against the budget. Memory that the
device cannot provide because other processes use it counts too, baseline or not.

For an embedded server, the host reading is the resident memory of the server's processes, as the reading of the whole
machine varies with everything else that runs on it.
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
"""Zero host memory is ignored this long; Triton reports zeros for about two seconds after it starts.

Zeros that persist longer mean that the value is unavailable.
"""
_BELIEVED = timedelta(hours=1)
"""How long a refused GPU is not used on a server whose restart, which alone changes that, may go unnoticed."""
_REPLACED = " (superseded)"
_PLENTY = 1 << 60
"""Budget of a server without device readings: everything fits, and Triton reports where it does not."""


def reloading_slot(model: str) -> str:
    """Return the name that holds the reservation for reloading a model that stays loaded meanwhile."""
    return f"{model} (reloading)"


def superseded_slot(slot: Slot) -> Slot:
    """Return the slot that holds the memory of a version's old instances after a reload."""
    return Slot(slot.triton_name + _REPLACED, slot.version)


def own_name(triton_name: str) -> str:
    """Return the model whose memory counts under a name of the ledger."""
    return triton_name.removesuffix(reloading_slot("")).removesuffix(_REPLACED).removesuffix(CANDIDATE_SUFFIX)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Memory that is being freed.

    Attributes:
        since: The first step of the loop whose reading can show that it is free.
        processes: The processes that hold it, if the version's new processes have the same name.
    """

    since: int
    processes: frozenset[int] = frozenset()


class LedgerSync:
    """The ledger of one server with the state needed to keep it up to date.

    Args:
        rules: The budgets.
        told: Whether the server has a source of device readings.

    Attributes:
        ledger: The ledger.
        reading: The newest reading.
        unusable: GPUs that Triton refused to use although the driver reports them, and until when they are left out.
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
        """Whether the devices were read, so that decisions are possible."""
        return not self._told or self.reading.devices is not None

    @property
    def limited(self) -> bool:
        """Whether there is any budget."""
        return self._told

    def tells_of(self, device: str) -> bool:
        """Return whether a budget applies to a device; if a server reports no GPU, Triton alone manages its GPUs."""
        return device in self.ledger.budgets or any(one.kind is not DeviceKind.HOST for one in self.devices)

    @property
    def devices(self) -> tuple[DeviceReading, ...]:
        """The devices as last read."""
        return self.reading.devices or ()

    @property
    def present_gpus(self) -> tuple[DeviceReading, ...]:
        """The GPUs and MIG instances that the driver can allocate to models."""
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
        """Mark GPUs that Triton does not use."""
        self.unusable |= dict.fromkeys(gpus, now + _BELIEVED)

    def perhaps_restarted(self) -> None:
        """Forget refused GPUs after an unexpected unload: a server without start detection may have restarted."""
        if self.reading.instances is None:
            self.unusable.clear()

    @property
    def topology(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The part of the devices that determines where a model is loaded."""
        return tuple(device.name for device in self.devices), tuple(device.name for device in self.gpus)

    def numbers(self, devices: Iterable[str]) -> Gpus | None:
        """Return Triton's GPU numbers of devices: none for the host of a server with GPUs, None if unknown."""
        known = {device.name: device.device_id for device in self.devices if device.kind is not DeviceKind.HOST}
        found = [known.get(name) for name in devices if name != HOST]
        if not found:
            return () if known else None
        return None if None in found else tuple(sorted(number for number in found if number is not None))

    def names(self, gpus: Gpus) -> tuple[str, ...]:
        """Return the devices with these Triton GPU numbers; none means the host."""
        named = {device.device_id: device.name for device in self.devices if device.device_id is not None}
        return tuple(named.get(number, f"gpu:{number}") for number in gpus) or (HOST,)

    @property
    def instances(self) -> Mapping[VersionKey, InstanceMemory]:
        """Memory of the models' processes as last read; empty if they cannot be read."""
        return self.reading.instances or {}

    def restarted(self) -> None:
        """Reset the ledger after a restart of the server: nothing is loaded."""
        for slot in {holding.slot for holding in self.ledger.holdings}:
            self.ledger = self.ledger.released(slot)
        self._baselines.clear()
        self._own = ProcessMemory()
        self._leaving.clear()
        self._promised.clear()
        self.reading = ServerReading()
        self._taken = -1

    def ingest(self, reading: ServerReading, step: int, now: datetime) -> None:
        """Process a reading that began at the loop's ``step``, unless a newer one was processed.

        A poll measures memory first and then waits for counters, so an action's own reading may overtake it.
        """
        if step < self._taken:
            return
        if self._starting(reading, now):
            if not self.known:
                return
            reading = replace(reading, devices=None)
        self._taken = step
        if reading.devices is None:
            # Without a new device reading the last one stands. Without any, nothing is known that could forbid a load.
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
        """Return whether the server has just started and does not report its host memory yet."""
        host = next((one for one in reading.devices or () if one.kind is DeviceKind.HOST), None)
        if host is None or host.total_bytes or not host.error:
            self._zeros_since = None
            return False
        self._zeros_since = self._zeros_since or now
        return now - self._zeros_since < _STARTING_SECONDS

    def mark_unloading(self, slot: Slot, step: int, now: datetime) -> None:
        """Mark a slot as no longer loaded; it counts until a reading that began later shows its memory free."""
        if self.ledger.of(slot):
            self.ledger = self.ledger.unloading(slot, now)
            self._leaving.setdefault(slot, _Leaving(step))

    def mark_superseded(self, slot: Slot, processes: frozenset[int], step: int, now: datetime) -> None:
        """Mark a version as reloaded: its old instances' memory counts until a reading shows that it is free.

        Triton ends the old instances after the load, so the reading taken at the end of the load does not show it.

        Args:
            slot: The version, under its Triton name.
            processes: The old instances' processes; empty if they cannot be read.
            step: The loop's step.
            now: The time.
        """
        if self.ledger.of(slot):
            name, before = superseded_slot(slot), self._leaving.pop(superseded_slot(slot), _Leaving(0))
            self.ledger = self.ledger.mark_superseded(slot, name, now)
            self._leaving[name] = _Leaving(step + 1, before.processes | processes)
            self._leaving.pop(slot, None)

    def mark_resident(self, slot: Slot) -> None:
        """Keep a slot that was being freed but is loaded after all."""
        self._leaving.pop(slot, None)

    def promise(self, slot: Slot, sizes: Mapping[str, int]) -> None:
        """Count at least these sizes, by device, until `proved`: the slot's processes keep growing after the load."""
        self._promised[slot] = dict(sizes)

    def proved(self, slot: Slot, now: datetime) -> None:
        """Count a proved slot with the actual memory of its processes from now on."""
        if self._promised.pop(slot, None) is not None:
            self._follow_instances(now)

    def seen_bytes(self, slot: Slot, device: str = HOST) -> int | None:
        """Return the memory of a slot's processes on a device, at least its promised size; None if unreadable.

        Old instances that the slot replaced are reported under the same name, and are subtracted.
        """
        seen = self.process_bytes((slot.triton_name, slot.version), device)
        if seen is None:
            return None
        old = sum(one.bytes + one.over_bytes for one in self.ledger.of(superseded_slot(slot)) if one.device == device)
        return max(seen - old, self._promised.get(slot, {}).get(device, 0), 0)

    def process_bytes(self, version: VersionKey, device: str) -> int | None:
        """Return the memory of a version's own processes on a device; None if unreadable or without own processes.

        On a GPU it is what the driver reports for them. The driver reports nothing if it lacks the permission, or if it
        knows the processes by other ids (containers).
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
        """Return the current and peak memory of a version's processes, on the device where it is largest.

        On GPUs the host's share does not count, and the driver reports no peak, so the current value stands for it. The
        result is None if not all of it can be read.
        """
        instance = self.instances.get(version)
        gpus = [device for device in devices if device != HOST]
        if instance is None or not gpus:
            return (instance.resident_bytes, instance.peak_bytes) if instance else None
        found = [self.process_bytes(version, device) for device in gpus]
        known = [size for size in found if size is not None]
        return (max(known), max(known)) if len(known) == len(found) else None

    def excess(self, *, supervised: bool) -> dict[str, int]:
        """Return the bytes beyond the ledger by device: what a restart of the server would free.

        For a supervised server, the memory of its own processes; for others, all unaccounted memory.
        """
        if supervised:
            return self._own.excess(self.ledger)
        return {device: self.ledger.unaccounted(device) for device in self.ledger.budgets} if self._told else {}

    def idle_excess(self) -> dict[str, int]:
        """Return the memory of the server's processes beyond the ledger, by device; see `ProcessMemory.quiet`."""
        return self._own.quiet

    def quiet_now(self) -> frozenset[str]:
        """Return the devices for which `quiet` comes from the newest reading."""
        return self._own.fresh

    def strangers(self) -> tuple[str, ...]:
        """Return the Triton names that are loaded on a supervised server without a ledger entry."""
        held = {holding.slot.triton_name for holding in self.ledger.holdings}
        return tuple(sorted({name for name, _ in self.instances} - held))

    def settled(self) -> Ledger:
        """Return a ledger for questions such as "what if this is unloaded": unaccounted memory stays constant.

        The ledger itself would count the memory of a removed holding as unaccounted, because the device reading still
        includes it.
        """
        ledger = self.ledger
        budgets = {
            name: Budget(name, max(budget.bytes - ledger.unaccounted(name), 0), budget.total_bytes)
            for name, budget in ledger.budgets.items()
        }
        holdings = tuple(replace(holding, over_bytes=0) for holding in ledger.holdings)
        return Ledger(budgets, holdings)

    def _gone(self, slot: Slot, leaving: _Leaving, step: int) -> bool:
        """Return whether the current reading, of this step, shows that a slot's memory was freed."""
        if leaving.processes and self.reading.instances is not None:
            present = {process for one in self.instances.values() for process in one.pids}
            return not leaving.processes & present
        return leaving.since <= step and (slot.triton_name, slot.version) not in self.instances

    def _follow_instances(self, now: datetime) -> None:
        # A model that is being reloaded has new processes under the same name, which are already reserved for.
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
            own = min(own, accounted)  # nothing can be attributed yet
        squeezed = (budget - accounted) - max(device.total_bytes - device.used_bytes - loading, 0)
        used = max(own, baseline + accounted + max(squeezed, 0))
        self.ledger = self.ledger.with_budget(Budget(device.name, budget, device.total_bytes, used, baseline))
