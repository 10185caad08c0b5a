"""Choice of the update strategy: the old size plus the new peak against the budget."""

from datetime import datetime

from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import HOST, Budget, Footprint, Slot
from controlplane.memory.policy.update_strategy import (
    Impossible,
    Recreate,
    Rolling,
    UpdateStrategy,
    choose_update_strategy,
)

OLD, OTHER = Slot("m", 1), Slot("other", 1)


def held(now: datetime, budget: int, old: int, other: int = 0) -> Ledger:
    ledger = Ledger({HOST: Budget(HOST, budget, budget)}).resident(OLD, {HOST: old}, now)
    return ledger.resident(OTHER, {HOST: other}, now) if other else ledger


def test_rolling_if_both_versions_fit(now: datetime) -> None:
    answer = choose_update_strategy(OLD, {HOST: Footprint(400)}, held(now, 1000, 400))
    assert isinstance(answer, Rolling)
    assert answer.evict_bytes == {}


def test_the_peak_decides_not_the_resident_size(now: datetime) -> None:
    answer = choose_update_strategy(
        OLD, {HOST: Footprint(400, peak_bytes=700)}, held(now, 1000, 400), load_seconds=3, unload_seconds=1
    )
    assert isinstance(answer, Recreate)
    assert answer.gap_seconds == 4
    assert "700 B on host needed, 600 B free" in answer.why


def test_avoiding_a_gap_is_worth_an_eviction(now: datetime) -> None:
    ledger = held(now, 1000, 400, other=300)
    assert isinstance(choose_update_strategy(OLD, {HOST: Footprint(400)}, ledger), Recreate)
    beside = choose_update_strategy(OLD, {HOST: Footprint(400)}, ledger, evictable={HOST: 300})
    assert isinstance(beside, Rolling)
    assert beside.evict_bytes == {HOST: 100}


def test_either_strategy_can_be_forced(now: datetime) -> None:
    fits_alongside, tight = held(now, 1000, 400), held(now, 700, 400)
    new = {HOST: Footprint(400)}
    assert isinstance(choose_update_strategy(OLD, new, fits_alongside, forced=UpdateStrategy.RECREATE), Recreate)
    refused = choose_update_strategy(OLD, new, tight, forced=UpdateStrategy.ROLLING)
    assert isinstance(refused, Impossible)
    assert refused.missing_bytes == {HOST: 100}


def test_the_old_version_stays_when_the_new_fits_nowhere(now: datetime) -> None:
    answer = choose_update_strategy(OLD, {HOST: Footprint(900)}, held(now, 1000, 400, other=300), evictable={HOST: 100})
    assert isinstance(answer, Impossible)
    assert answer.missing_bytes == {HOST: 200}
