"""The ledger: how much memory each version holds on each device. Immutable; each change returns a new ledger.

Invariant: the sum of a device's holdings never exceeds its budget, whatever the order of events. A reservation that
does not fit is refused. A measurement above its reservation is counted up to the free budget; the rest is kept in
`Holding.over_bytes` and counts as unaccounted, so that no further load is admitted on top of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

from controlplane.domain.units import size_text
from controlplane.errors import InsufficientMemoryError
from controlplane.memory.policy.types import Budget, Footprint, Holding, HoldingState, Slot

_MOVING = (HoldingState.LOADING, HoldingState.UNLOADING)
_NAMED_HOLDERS = 5


@dataclass(frozen=True, slots=True)
class Ledger:
    """Holdings on the devices of one server.

    Attributes:
        budgets: By device.
        holdings: At most one for each slot and device.
        noted: Unaccounted bytes by device, as of the last time without loads or unloads on it. During a load the
            device's own reading is ambiguous (an unknown part of the reservation is in use), so this value is the lower
            bound.
    """

    budgets: Mapping[str, Budget] = field(default_factory=dict)
    holdings: tuple[Holding, ...] = ()
    noted: Mapping[str, int] = field(default_factory=dict)

    def held(self, device: str, state: HoldingState | None = None) -> int:
        """Return the bytes held on a device, in one state or in all states."""
        return sum(
            holding.bytes
            for holding in self.holdings
            if holding.device == device and (state is None or holding.state is state)
        )

    def of(self, slot: Slot) -> tuple[Holding, ...]:
        """Return the holdings of a slot, one for each device."""
        return tuple(holding for holding in self.holdings if holding.slot == slot)

    def of_model(self, triton_name: str) -> tuple[Holding, ...]:
        """Return the holdings of all versions under a Triton name."""
        return tuple(holding for holding in self.holdings if holding.slot.triton_name == triton_name)

    def unaccounted(self, device: str) -> int:
        """Return the bytes in use on a device beyond its holdings; without a reading, only the overruns."""
        over = moving = accounted = 0
        for holding in self.holdings:
            if holding.device == device:
                over += holding.over_bytes
                moving += holding.state in _MOVING
                accounted += 0 if holding.state is HoldingState.RESERVED else holding.bytes
        budget = self.budgets.get(device)
        if budget is None or budget.used_bytes is None:
            return over
        seen = budget.used_bytes - budget.baseline_bytes - accounted
        return max(seen, over, self.noted.get(device, 0) if moving else 0)

    def free(self, device: str) -> int:
        """Return the bytes that can be reserved: budget minus holdings and unaccounted; 0 for an unknown device."""
        budget = self.budgets.get(device)
        return 0 if budget is None else max(budget.bytes - self.held(device) - self.unaccounted(device), 0)

    def shortage(self, footprints: Mapping[str, Footprint]) -> dict[str, int]:
        """Return the bytes missing for a reservation, by device; empty if it fits."""
        missing = {device: need.reserve_bytes - self.free(device) for device, need in footprints.items()}
        return {device: size for device, size in missing.items() if size > 0}

    def with_budget(self, budget: Budget) -> Self:
        """Store a device's newest readings; the budget may now be smaller than the sum of its holdings."""
        fresh = replace(self, budgets={**self.budgets, budget.device: budget})
        if budget.used_bytes is None or any(
            holding.device == budget.device and holding.state in _MOVING for holding in self.holdings
        ):
            return fresh
        return replace(fresh, noted={**self.noted, budget.device: fresh.unaccounted(budget.device)})

    def observed(self, device: str, used_bytes: int | None) -> Self:
        """Store the reading of the memory in use on a device."""
        return self.with_budget(replace(self.budgets[device], used_bytes=used_bytes))

    def reserve(self, slot: Slot, footprints: Mapping[str, Footprint], now: datetime) -> Self:
        """Reserve memory for a load on all its devices, or on none.

        A new reservation replaces the slot's existing one; a slot whose load has begun keeps what it has.

        Raises:
            InsufficientMemoryError: A device does not have enough free memory, or has no budget.
        """
        held = self.of(slot)
        if any(holding.state is not HoldingState.RESERVED for holding in held):
            return self
        without = self.released(slot) if held else self
        if missing := without.shortage(footprints):
            raise insufficient(without, slot, footprints, missing)
        made = tuple(
            Holding(slot, device, need.reserve_bytes, HoldingState.RESERVED, now) for device, need in footprints.items()
        )
        return replace(without, holdings=without.holdings + made)

    def loading(self, slot: Slot, now: datetime) -> Self:
        """Mark the load as started: from now on the device's reading contains part of it."""
        return self._to(slot, HoldingState.LOADING, now)

    def unloading(self, slot: Slot, now: datetime) -> Self:
        """Mark the unload as started. The memory counts until `released`."""
        return self._to(slot, HoldingState.UNLOADING, now)

    def resident(self, slot: Slot, measured: Mapping[str, int], now: datetime) -> Self:
        """Mark the slot as loaded, by us or found loaded, with its measured sizes.

        Devices without a measurement keep their reserved size. If the slot has no holdings (it was found loaded at
        startup, or loaded by another client), they are created as far as the budget allows.
        """
        before = {holding.device: holding for holding in self.of(slot)}
        others = self.released(slot)
        made = []
        for device in dict.fromkeys((*before, *measured)):
            size = measured.get(device, before[device].bytes if device in before else 0)
            room = max(others.budgets[device].bytes - others.held(device), 0) if device in others.budgets else 0
            # A slot keeps the size it was granted, even if the budget was reduced since.
            counted = min(size, max(room, min(before[device].bytes, size) if device in before else 0))
            made.append(Holding(slot, device, counted, HoldingState.RESIDENT, now, over_bytes=size - counted))
        return replace(others, holdings=others.holdings + tuple(made))

    def mark_superseded(self, slot: Slot, name: Slot, now: datetime) -> Self:
        """Move a slot's holdings to another name in state unloading, until that name is `released`.

        Used when a version is reloaded: the old instances leave after the new ones are loaded, on the same or on other
        devices. Existing holdings of that name remain and are added.
        """
        there = {holding.device: holding for holding in self.of(name)}
        for holding in self.of(slot):
            before = there.get(holding.device, replace(holding, bytes=0, over_bytes=0))
            there[holding.device] = Holding(
                name,
                holding.device,
                before.bytes + holding.bytes,
                HoldingState.UNLOADING,
                now,
                before.over_bytes + holding.over_bytes,
            )
        others = self.released(slot).released(name)
        return replace(others, holdings=(*others.holdings, *there.values()))

    def divided(self, slot: Slot, shares: Mapping[Slot, Mapping[str, int]]) -> Self:
        """Split one slot's reservation among several versions that are loaded together.

        Args:
            slot: The slot that holds the memory now.
            shares: Bytes by device for each version, limited to what is reserved. What remains becomes free.
        """
        left = {holding.device: holding for holding in self.of(slot)}
        made = {(holding.slot, holding.device): holding for holding in self.released(slot).holdings}
        for one, sizes in shares.items():
            for device, size in sizes.items():
                if device in left:
                    share = min(size, left[device].bytes)
                    left[device] = replace(left[device], bytes=left[device].bytes - share)
                    before = made.get((one, device), replace(left[device], slot=one, bytes=0))
                    made[one, device] = replace(before, bytes=before.bytes + share)
        return replace(self, holdings=tuple(made.values()))

    def released(self, slot: Slot) -> Self:
        """Remove the slot's holdings: its memory is free, or its reservation was given up."""
        return replace(self, holdings=tuple(holding for holding in self.holdings if holding.slot != slot))

    def holders(self, device: str) -> dict[Slot, int]:
        """Return the bytes that each slot holds on a device, the largest first."""
        found = {holding.slot: holding.bytes for holding in self.holdings if holding.device == device}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def _to(self, slot: Slot, state: HoldingState, now: datetime) -> Self:
        return replace(
            self,
            holdings=tuple(
                replace(holding, state=state, since=now) if holding.slot == slot and holding.state is not state
                else holding
                for holding in self.holdings
            ),
        )  # fmt: skip


def insufficient(
    ledger: Ledger,
    slot: Slot,
    footprints: Mapping[str, Footprint],
    missing: Mapping[str, int],
    *,
    could_be_freed: Mapping[str, int] | None = None,
) -> InsufficientMemoryError:
    """Return the error that states the size needed, the free and the freeable memory, and the holders of the rest."""
    device = max(missing, key=lambda name: missing[name])
    budget = ledger.budgets.get(device)
    needed, holders = footprints[device].reserve_bytes, ledger.holders(device)
    freeable = (could_be_freed or {}).get(device, 0)
    if budget is None:
        message = (
            f"{slot.triton_name}:{slot.version} needs {size_text(needed)} on {device}, which this server does not have"
        )
    else:
        named = [f"{holder.triton_name} {size_text(size)}" for holder, size in list(holders.items())[:_NAMED_HOLDERS]]
        if len(holders) > _NAMED_HOLDERS:
            named.append(f"{len(holders) - _NAMED_HOLDERS} more")
        if stray := ledger.unaccounted(device):
            named.append(f"unaccounted {size_text(stray)}")
        message = (
            f"{slot.triton_name}:{slot.version} needs {size_text(needed)} on {device}: "
            f"{size_text(ledger.free(device))} of the budget of {size_text(budget.bytes)} are free and "
            f"{size_text(freeable)} could be freed; held by {', '.join(named) or 'no model'}"
        )
    return InsufficientMemoryError(
        message,
        device=device,
        needed_bytes=needed,
        free_bytes=ledger.free(device),
        could_be_freed_bytes=freeable,
        budget_bytes=budget.bytes if budget else 0,
        unaccounted_bytes=ledger.unaccounted(device),
        held_bytes={f"{holder.triton_name}:{holder.version}": size for holder, size in holders.items()},
    )
