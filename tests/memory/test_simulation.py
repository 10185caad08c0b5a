"""The parts of the eviction benchmark: the bound against exact solutions, the engine against manual calculations."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.bound import lower_bound
from benchmarks.simulation.engine import UNLOAD_SECONDS, Engine
from benchmarks.simulation.foresight import ForesightPolicy
from benchmarks.simulation.information import expected_requests, informed_bound
from benchmarks.simulation.traces import KINDS, Trace, bursts_of, make
from controlplane.memory.policy.eviction import LruPolicy, policy_named


def trace(models: list[int], sizes: list[int], seconds: list[float], *, gap: float = 100.0) -> Trace:
    return Trace(
        "hand",
        gap * np.arange(len(models), dtype=np.float64),
        np.array(models),
        np.array(sizes),
        np.array(seconds),
        skewed=True,
    )


def cheapest(models: list[int], sizes: list[int], costs: list[float], budget: int) -> float:
    """Return the exact offline optimum by trying every possible set of loaded models after each request."""
    states: dict[frozenset[int], float] = {frozenset(): 0.0}
    for model in models:
        following: dict[frozenset[int], float] = {}
        for loaded, paid in states.items():
            cost = paid + (0 if model in loaded else costs[model])
            others = sorted(loaded - {model})
            for keep in product((False, True), repeat=len(others)):
                kept = frozenset({model} | {other for other, stays in zip(others, keep, strict=True) if stays})
                if sum(sizes[name] for name in kept) <= budget:
                    following[kept] = min(following.get(kept, np.inf), cost)
        states = following
    return min(states.values())


@settings(max_examples=40, deadline=None)
@given(
    models=st.lists(st.integers(0, 3), min_size=2, max_size=12),
    sizes=st.lists(st.integers(1, 6), min_size=4, max_size=4),
    costs=st.lists(st.floats(1, 20), min_size=4, max_size=4),
    budget=st.integers(6, 12),
)
def test_the_bound_is_never_above_the_exact_optimum(
    models: list[int], sizes: list[int], costs: list[float], budget: int
) -> None:
    bound = lower_bound(trace(models, sizes, costs), budget, iterations=50)
    assert bound.load_seconds <= cheapest(models, sizes, costs, budget) + 1e-6
    assert bound.cold_starts <= cheapest(models, sizes, [1.0] * 4, budget) + 1e-6
    assert bound.bytes_moved <= cheapest(models, sizes, [float(size) for size in sizes], budget) + 1e-6
    assert bound.load_seconds >= sum(costs[model] for model in set(models)) - 1e-6


def test_the_bound_is_tight_in_simple_cases() -> None:
    # Three models in turn with room for two: at best one load in three requests can be saved.
    models = [0, 1, 2] * 40
    bound = lower_bound(trace(models, [1, 1, 1], [1.0, 1.0, 1.0]), 2)
    exact = cheapest(models, [1, 1, 1], [1.0, 1.0, 1.0], 2)
    assert 0.95 * exact <= bound.load_seconds <= exact


def test_models_that_fit_are_loaded_once() -> None:
    outcome = Engine(trace([0, 1, 0, 1, 0], [1, 1], [3.0, 4.0]), 2, LruPolicy()).run()
    assert (outcome.cold_starts, outcome.load_seconds, outcome.evictions) == (2, 7.0, 0)


def test_a_cold_start_waits_for_the_unload_and_the_load() -> None:
    outcome = Engine(trace([0, 1], [1, 1], [3.0, 4.0]), 1, LruPolicy()).run()
    assert outcome.mean_wait_seconds == pytest.approx((3.0 + UNLOAD_SECONDS + 4.0) / 2)


def test_requests_for_one_model_share_its_load() -> None:
    outcome = Engine(trace([0, 0, 0], [1], [3.0], gap=1.0), 1, LruPolicy()).run()
    assert outcome.cold_starts == 1
    assert outcome.mean_wait_seconds == pytest.approx((3 + 2 + 1) / 3)


def test_lru_on_a_loop_that_does_not_fit_always_misses() -> None:
    models = [0, 1, 2] * 10
    outcome = Engine(trace(models, [1, 1, 1], [1.0] * 3), 2, LruPolicy()).run()
    assert outcome.cold_starts == 30


@pytest.mark.parametrize("name", KINDS)
def test_every_trace_is_determined_by_its_seed(name: str) -> None:
    one, two = (make(name, models=50, requests=2000, rate=1.0, seed=3) for _ in range(2))
    assert np.array_equal(one.models, two.models)
    assert np.all(np.diff(one.times) >= 0)
    assert len(one.times) == 2000
    assert one.models.min() >= 0
    assert one.models.max() < 50
    assert not np.array_equal(one.models, make(name, models=50, requests=2000, rate=1.0, seed=4).models)


@pytest.mark.parametrize("name", ["zipf", "bursts", "recency"])
def test_no_policy_beats_the_bound_and_cost_is_no_worse_than_lru(name: str) -> None:
    made = make(name, models=60, requests=1500, rate=0.2, seed=5)
    budget = int(made.sizes.sum() * 0.25)
    policies = [*map(policy_named, ("lru", "lfu", "cost")), ForesightPolicy(made)]
    paid = {policy.name: Engine(made, budget, policy).run().load_seconds for policy in policies}
    assert lower_bound(made, budget).load_seconds <= min(paid.values()) + 1e-6
    # These traces are too short for the policy to adapt; over whole traces the benchmark shows less than 2 %.
    assert paid["cost"] <= 1.05 * paid["lru"]


def test_what_is_expected_of_a_burst_is_what_bursts_do() -> None:
    # At a random time in the half hour after its first request, the expected requests per second of a burst are on
    # average those that bursts really have in this half hour.
    random = np.random.default_rng(7)
    expected, had = [], []
    for _ in range(2000):
        span = np.exp(random.uniform(np.log(60), np.log(1800)))
        times = np.sort(random.uniform(0, span, random.geometric(1 / 30)))
        at = times[0] + random.uniform(0, 1800)
        seen = times[times <= at]
        expected.append((len(seen), seen[-1] - seen[0], at - seen[-1]))
        had.append(len(times) - 1)
    count, spread, idle = (np.array(column) for column in zip(*expected, strict=True))
    assert expected_requests(count, spread, idle).mean() * 1800 == pytest.approx(np.mean(had), rel=0.1)


def test_bursts_are_the_requests_of_their_trace() -> None:
    made = make("bursts", models=50, requests=2000, rate=1.0, seed=3)
    known = bursts_of(models=50, requests=2000, rate=1.0, seed=3)
    assert np.array_equal(known.models, made.models)
    assert np.array_equal(known.times, made.times)
    assert all(len(set(known.models[known.burst == burst])) == 1 for burst in set(known.burst))
    assert known.rates.sum() == pytest.approx((2000 // 30 + 1) / 2000)


def test_the_informed_bound_spares_no_first_load_and_nothing_else_where_everything_fits() -> None:
    made = make("bursts", models=20, requests=600, rate=1.0, seed=1)
    known = bursts_of(models=20, requests=600, rate=1.0, seed=1)
    first = made.load_seconds[np.unique(made.models)].sum()
    total = int(made.sizes.sum())
    assert informed_bound(made, known, total).load_seconds == pytest.approx(first)
    assert informed_bound(made, known, int(made.sizes.max()), chances_known=True).load_seconds > first
