"""The sums of the ledger under any sequence of events."""

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controlplane.errors import InsufficientMemoryError
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import HOST, Budget, Footprint, HoldingState, Slot

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
A, B, C = Slot("a", 1), Slot("b", 1), Slot("c", 1)
GPU = "gpu:0"


def ledger(host: int = 1000, gpu: int | None = None, **figures: int) -> Ledger:
    budgets = {HOST: Budget(HOST, host, host * 2, **figures)}
    if gpu is not None:
        budgets[GPU] = Budget(GPU, gpu, gpu * 2)
    return Ledger(budgets)


def need(host: int | None = None, gpu: int | None = None) -> dict[str, Footprint]:
    return {device: Footprint(size) for device, size in ((HOST, host), (GPU, gpu)) if size is not None}


def test_a_reservation_includes_the_error_and_the_peak() -> None:
    assert ledger().reserve(A, {HOST: Footprint(400, error_bytes=100)}, NOW).free(HOST) == 500
    assert ledger().reserve(A, {HOST: Footprint(400, error_bytes=100, peak_bytes=700)}, NOW).free(HOST) == 300


def test_a_measurement_releases_the_excess_of_the_reservation() -> None:
    loaded = ledger().reserve(A, {HOST: Footprint(400, error_bytes=200)}, NOW).loading(A, NOW)
    assert loaded.held(HOST, HoldingState.LOADING) == 600
    assert loaded.resident(A, {HOST: 450}, NOW).free(HOST) == 550


def test_a_reservation_that_does_not_fit_is_refused_with_sizes() -> None:
    held = ledger().reserve(A, need(700), NOW).resident(A, {HOST: 650}, NOW)
    with pytest.raises(InsufficientMemoryError, match="b:1 needs 400 B on host: 350 B of the budget") as caught:
        held.reserve(B, need(400), NOW)
    assert caught.value.details["held_bytes"] == {"a:1": 650}
    assert caught.value.details["needed_bytes"] == 400
    assert caught.value.details["free_bytes"] == 350


def test_a_missing_device_is_named() -> None:
    with pytest.raises(InsufficientMemoryError, match="gpu:0, which this server does not have"):
        ledger().reserve(A, need(gpu=1), NOW)


def test_a_reservation_is_atomic_over_devices() -> None:
    both = ledger(1000, gpu=100)
    with pytest.raises(InsufficientMemoryError, match="gpu:0"):
        both.reserve(A, need(host=10, gpu=200), NOW)
    assert both.reserve(A, need(host=10, gpu=100), NOW).free(GPU) == 0


def test_memory_counts_until_it_is_freed() -> None:
    leaving = ledger().reserve(A, need(1000), NOW).resident(A, {}, NOW).unloading(A, NOW)
    with pytest.raises(InsufficientMemoryError):
        leaving.reserve(B, need(1), NOW)
    assert leaving.released(A).reserve(B, need(1000), NOW).free(HOST) == 0


def test_reserving_again_replaces_a_reservation_but_not_a_load() -> None:
    reserved = ledger().reserve(A, need(800), NOW)
    assert reserved.reserve(A, need(900), NOW).held(HOST) == 900
    loading = reserved.loading(A, NOW)
    assert loading.reserve(A, need(10), NOW) == loading


def test_a_measurement_above_the_budget_counts_as_unaccounted() -> None:
    full = ledger().reserve(A, need(600), NOW).reserve(B, need(300), NOW)
    over = full.resident(A, {HOST: 900}, NOW)
    assert over.held(HOST) == 1000
    assert over.unaccounted(HOST) == 200
    assert over.free(HOST) == 0
    assert over.released(B).free(HOST) == 100  # all 900 of A count: 700 as held, 200 as unaccounted


def test_unaccounted_memory_counts_against_the_budget() -> None:
    held = ledger(used_bytes=0).reserve(A, need(300), NOW).resident(A, {}, NOW).observed(HOST, 500)
    assert held.unaccounted(HOST) == 200
    assert held.free(HOST) == 500


def test_the_baseline_belongs_to_no_model_and_is_outside_the_budget() -> None:
    held = ledger(used_bytes=0, baseline_bytes=150).reserve(A, need(300), NOW).resident(A, {}, NOW)
    assert held.observed(HOST, 450).unaccounted(HOST) == 0


def test_a_leak_does_not_hide_behind_a_load_in_progress() -> None:
    leaked = ledger(used_bytes=0).observed(HOST, 200)
    assert leaked.free(HOST) == 800
    loading = leaked.reserve(A, need(500), NOW).loading(A, NOW).observed(HOST, 250)
    assert loading.unaccounted(HOST) == 200
    assert loading.free(HOST) == 300
    assert loading.resident(A, {HOST: 500}, NOW).observed(HOST, 500).free(HOST) == 500


def test_a_reduced_budget_admits_no_load() -> None:
    cut = ledger().reserve(A, need(800), NOW).resident(A, {}, NOW).with_budget(Budget(HOST, 500, 2000))
    assert cut.free(HOST) == 0
    assert cut.held(HOST) == 800
    with pytest.raises(InsufficientMemoryError):
        cut.reserve(B, need(1), NOW)


def test_models_that_are_found_loaded_are_counted() -> None:
    found = ledger().resident(A, {HOST: 300}, NOW)
    assert [(h.slot, h.bytes, h.state) for h in found.holdings] == [(A, 300, HoldingState.RESIDENT)]


def test_a_model_reloaded_on_another_device_counts_on_both_until_the_old_one_is_gone() -> None:
    renewed, old = Slot("a (reloading)", 1), Slot("a (superseded)", 1)
    loaded = ledger(gpu=1000).reserve(A, need(600), NOW).resident(A, {}, NOW)
    moving = loaded.reserve(renewed, need(gpu=700), NOW).loading(renewed, NOW).mark_superseded(A, old, NOW)
    there = moving.divided(renewed, {A: {GPU: 700}}).resident(A, {GPU: 650}, NOW)
    assert [(h.device, h.bytes, h.state) for h in there.of(A)] == [(GPU, 650, HoldingState.RESIDENT)]
    assert [(h.device, h.bytes, h.state) for h in there.of(old)] == [(HOST, 600, HoldingState.UNLOADING)]
    assert there.released(old).free(HOST) == 1000


def test_superseded_holdings_add_up() -> None:
    old = Slot("a (superseded)", 1)
    once = ledger().reserve(A, need(200), NOW).resident(A, {}, NOW).mark_superseded(A, old, NOW)
    twice = once.reserve(A, need(300), NOW).resident(A, {}, NOW).mark_superseded(A, old, NOW)
    assert [(h.bytes, h.state) for h in twice.of(old)] == [(500, HoldingState.UNLOADING)]
    assert twice.of(A) == ()


def test_a_reservation_of_several_versions_is_divided_exactly() -> None:
    both = ledger().reserve(A, need(900), NOW).loading(A, NOW)
    other = Slot("a", 2)
    divided = both.divided(A, {A: {HOST: 500}, other: {HOST: 300, GPU: 50}})
    assert {(h.slot, h.device, h.bytes, h.state) for h in divided.holdings} == {
        (A, HOST, 500, HoldingState.LOADING),
        (other, HOST, 300, HoldingState.LOADING),
    }
    short = both.divided(A, {A: {HOST: 500}, other: {HOST: 700}})
    assert [h.bytes for h in short.holdings] == [500, 400]


def test_holders_are_listed_largest_first() -> None:
    held = ledger().reserve(A, need(100), NOW).reserve(B, need(300), NOW).reserve(C, need(200), NOW)
    assert list(held.holders(HOST).items()) == [(B, 300), (C, 200), (A, 100)]


SLOTS = [Slot(name, version) for name in "abc" for version in (1, 2)]
SIZES = st.integers(0, 1200)


class Life(RuleBasedStateMachine):
    """Any events for any slot in any order, including invalid ones."""

    @initialize(host=st.integers(0, 1000), gpu=st.integers(0, 1000), used=st.none() | st.integers(0, 500))
    def start(self, host: int, gpu: int, used: int | None) -> None:
        self.budgets = {HOST: host, GPU: gpu}
        self.ledger = Ledger({name: Budget(name, size, 2000, used) for name, size in self.budgets.items()})

    @rule(slot=st.sampled_from(SLOTS), host=SIZES, gpu=st.none() | SIZES, error=st.integers(0, 300))
    def reserve(self, slot: Slot, host: int, gpu: int | None, error: int) -> None:
        wants = {HOST: Footprint(host, error_bytes=error)} | ({} if gpu is None else {GPU: Footprint(gpu)})
        before = self.ledger
        try:
            self.ledger = before.reserve(slot, wants, NOW)
        except InsufficientMemoryError:
            without = before.released(slot)
            assert any(f.reserve_bytes > without.free(d) for d, f in wants.items())
            assert self.ledger == before

    @rule(slot=st.sampled_from(SLOTS))
    def loading(self, slot: Slot) -> None:
        self.ledger = self.ledger.loading(slot, NOW)

    @rule(slot=st.sampled_from(SLOTS), measured=st.dictionaries(st.sampled_from([HOST, GPU]), SIZES))
    def resident(self, slot: Slot, measured: Mapping[str, int]) -> None:
        self.ledger = self.ledger.resident(slot, measured, NOW)
        counted = {h.device: h.bytes + h.over_bytes for h in self.ledger.of(slot)}
        assert all(counted[device] == size for device, size in measured.items())

    @rule(slot=st.sampled_from(SLOTS))
    def unloading(self, slot: Slot) -> None:
        self.ledger = self.ledger.unloading(slot, NOW)

    @rule(slots=st.permutations(SLOTS))
    def mark_superseded(self, slots: list[Slot]) -> None:
        slot, name = slots[:2]
        before = self.ledger
        self.ledger = before.mark_superseded(slot, name, NOW)
        assert self.ledger.of(slot) == ()
        for device in (HOST, GPU):
            assert self.ledger.held(device) == before.held(device)

    @rule(slots=st.permutations(SLOTS), shares=st.lists(st.fixed_dictionaries({HOST: SIZES, GPU: SIZES}), max_size=3))
    def divided(self, slots: list[Slot], shares: list[Mapping[str, int]]) -> None:
        before = self.ledger
        self.ledger = before.divided(slots[0], dict(zip(slots, shares, strict=False)))
        for device in (HOST, GPU):
            assert self.ledger.held(device) <= before.held(device)

    @rule(slot=st.sampled_from(SLOTS))
    def released(self, slot: Slot) -> None:
        self.ledger = self.ledger.released(slot)
        assert self.ledger.of(slot) == ()

    @rule(device=st.sampled_from([HOST, GPU]), used=st.integers(0, 2000))
    def observed(self, device: str, used: int) -> None:
        self.ledger = self.ledger.observed(device, used)

    @precondition(lambda self: hasattr(self, "ledger"))
    @invariant()
    def within_budget(self) -> None:
        for device, budget in self.budgets.items():
            held, stray = self.ledger.held(device), self.ledger.unaccounted(device)
            assert held <= budget
            assert stray >= 0
            assert self.ledger.free(device) == max(budget - held - stray, 0)
            assert held == sum(self.ledger.held(device, state) for state in HoldingState)

    @precondition(lambda self: hasattr(self, "ledger"))
    @invariant()
    def one_holding_each(self) -> None:
        places = [(holding.slot, holding.device) for holding in self.ledger.holdings]
        assert len(places) == len(set(places))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
