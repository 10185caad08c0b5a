"""A new version of a loaded model: beside the old one, without a gap, or after it, with one. From the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from controlplane.domain.units import size_text
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import Footprint, Slot

UNLOAD_SECONDS = 1.2
"""How long Triton takes to give an idle model's memory back: about 1.1 s in state UNLOADING, measured."""


class UpdateStrategy(StrEnum):
    """How a new version takes over."""

    ROLLING = "rolling"
    RECREATE = "recreate"


@dataclass(frozen=True, slots=True)
class Rolling:
    """Load the new version while the old one answers.

    Attributes:
        why: With the figures.
        evict_bytes: What others must give up for it, by device; empty when it is free.
    """

    why: str
    evict_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Recreate:
    """Unload the old version, wait for its memory, load the new one; nobody answers in between.

    Attributes:
        why: With the figures.
        gap_seconds: How long nobody answers, as expected.
        evict_bytes: What others must give up even so, by device.
    """

    why: str
    gap_seconds: float
    evict_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Impossible:
    """Neither way is there enough memory; the old version stays."""

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
    """Choose how a new version takes over.

    No gap is worth an eviction of others: beside, if old + new *peak* fit, also when others must make room.

    Args:
        old: What answers now.
        new: What the new version needs, by device.
        ledger: Of the server.
        load_seconds: What loading and proving the new version should take.
        unload_seconds: What getting the old one's memory back should take.
        evictable: What other models could give up, by device.
        forced: What the caller insists on. Beside, where it does not fit, is then refused rather than turned round.
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
            f"not even without the old version: {_needs(new)} needed, {_free(new, ledger.released(old))} then", after
        )
    why = (
        "as asked"
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
    return "; others give up " + ", ".join(f"{size_text(size)} on {device}" for device, size in missing.items())
