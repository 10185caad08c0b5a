"""Update strategy for a loaded model: `rolling` (no downtime) or `recreate` (with a gap), chosen from the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from controlplane.domain.units import size_text
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import Footprint, Slot

UNLOAD_SECONDS = 1.2
"""Time that Triton takes to free an idle model's memory: about 1.1 s in state UNLOADING, measured."""


class UpdateStrategy(StrEnum):
    """How a new version replaces the old one."""

    ROLLING = "rolling"
    RECREATE = "recreate"


@dataclass(frozen=True, slots=True)
class Rolling:
    """Load the new version while the old one stays active.

    Attributes:
        why: The reason, with sizes.
        evict_bytes: What other models must free for it, by device; empty if the memory is free.
    """

    why: str
    evict_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Recreate:
    """Unload the old version, wait for its memory, then load the new one; no version is active in between.

    Attributes:
        why: The reason, with sizes.
        gap_seconds: The expected time without an active version.
        evict_bytes: What other models must free nevertheless, by device.
    """

    why: str
    gap_seconds: float
    evict_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Impossible:
    """Neither strategy has enough memory; the old version stays."""

    why: str
    missing_bytes: Mapping[str, int]


def choose_update_strategy(
    old: Slot,
    new: Mapping[str, Footprint],
    ledger: Ledger,
    *,
    load_seconds: float = 1.0,
    unload_seconds: float = UNLOAD_SECONDS,
    evictable: Mapping[str, int] | None = None,
    forced: UpdateStrategy | None = None,
) -> Rolling | Recreate | Impossible:
    """Choose how a new version replaces the old one.

    Rolling is chosen if old + new *peak* fit, even if other models must be evicted: avoiding a gap is worth it.

    Args:
        old: The active version.
        new: What the new version needs, by device.
        ledger: The ledger of the server.
        load_seconds: Expected time to load and prove the new version.
        unload_seconds: Expected time until the old version's memory is free.
        evictable: What other models could free, by device.
        forced: The strategy that the caller requires. If rolling is forced and does not fit, the update is impossible;
            there is no fallback to recreate.
    """
    spare = evictable or {}
    beside = ledger.shortage(new)
    fits_alongside_others = all(size <= spare.get(device, 0) for device, size in beside.items())
    if forced is not UpdateStrategy.RECREATE and fits_alongside_others:
        return Rolling(f"old and new fit together: {_needs(new)} needed, {_free(new, ledger)}{_lent(beside)}", beside)
    if forced is UpdateStrategy.ROLLING:
        return Impossible(f"old and new do not fit together: {_needs(new)} needed, {_free(new, ledger)}", beside)
    after = ledger.released(old).shortage(new)
    if any(size > spare.get(device, 0) for device, size in after.items()):
        return Impossible(
            f"does not fit even without the old version: {_needs(new)} needed, {_free(new, ledger.released(old))}",
            after,
        )
    why = (
        "as requested"
        if fits_alongside_others
        else f"old and new do not fit together: {_needs(new)} needed, {_free(new, ledger)}"
    )
    return Recreate(why + _lent(after), unload_seconds + load_seconds, after)


def _needs(new: Mapping[str, Footprint]) -> str:
    return ", ".join(f"{size_text(need.reserve_bytes)} on {device}" for device, need in new.items())


def _free(new: Mapping[str, Footprint], ledger: Ledger) -> str:
    return ", ".join(f"{size_text(ledger.free(device))} free on {device}" for device in new)


def _lent(missing: Mapping[str, int]) -> str:
    if not missing:
        return ""
    return "; other models free " + ", ".join(f"{size_text(size)} on {device}" for device, size in missing.items())
