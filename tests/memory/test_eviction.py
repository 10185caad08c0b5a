"""Eviction: order, protection, and the set of victims."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.memory.policy.eviction import (
    CostPolicy,
    EvictionPolicy,
    EvictionRules,
    LfuPolicy,
    LruPolicy,
    choose,
    early_evictions,
    freed,
    policy_named,
    protection,
)
from controlplane.memory.policy.types import HOST, Footprint, Mode, ModelMemory, Usage

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
Make = Callable[..., ModelMemory]


def names(victims: tuple[ModelMemory, ...] | None) -> list[str] | None:
    return None if victims is None else [victim.model for victim in victims]


def test_lru_evicts_the_least_recently_used_model(model: Make, now: datetime) -> None:
    models = [model("a", used=50), model("b", used=500), model("c", used=5)]
    assert names(choose(models, {HOST: 150}, LruPolicy(), now)) == ["b", "a"]


def test_lfu_evicts_the_least_frequently_used_model(model: Make, now: datetime) -> None:
    models = [model("a", used=5, rate=0.1), model("b", used=50, rate=3.0), model("c", used=5, rate=2.0)]
    assert names(choose(models, {HOST: 150}, LfuPolicy(), now)) == ["a", "c"]


def test_cost_weighs_reload_and_rate_against_bytes(model: Make, now: datetime) -> None:
    models = [
        model("dear", 100, used=10, rate=1.0, load_seconds=60.0),
        model("large", 500, used=10, rate=1.0, load_seconds=20.0),
        model("rare", 100, used=10, rate=0.1, load_seconds=20.0),
    ]
    # Seconds saved per byte: dear 0.6, large 0.04, rare 0.02.
    assert names(choose(models, {HOST: 100}, CostPolicy(), now)) == ["rare"]
    assert names(choose(models, {HOST: 600}, CostPolicy(), now)) == ["rare", "large"]


def test_a_superfluous_victim_is_spared(model: Make, now: datetime) -> None:
    models = [model("small", 10, used=500), model("large", 100, used=50)]
    assert names(choose(models, {HOST: 60}, LruPolicy(), now)) == ["large"]


def test_the_need_of_every_device_is_covered(model: Make, now: datetime) -> None:
    both = {HOST: Footprint(50), "gpu:0": Footprint(80)}
    models = [model("host", 100, used=500), model("gpu", 70, device="gpu:0", used=400), model("both", footprint=both)]
    assert names(choose(models, {HOST: 60, "gpu:0": 90}, LruPolicy(), now)) == ["both", "host", "gpu"]
    assert names(choose(models, {"gpu:0": 75}, LruPolicy(), now)) == ["both"]
    assert choose(models, {"gpu:1": 1}, LruPolicy(), now) is None


def test_an_empty_need_evicts_no_model(model: Make, now: datetime) -> None:
    assert choose([model("a")], {HOST: 0}, LruPolicy(), now) == ()
    assert choose([model("a")], {}, LruPolicy(), now) == ()


def test_lower_priorities_are_evicted_first_regardless_of_score(model: Make, now: datetime) -> None:
    models = [model("vip", used=9000, priority=5), model("busy", used=1, rate=50.0)]
    assert names(choose(models, {HOST: 100}, CostPolicy(), now)) == ["busy"]
    assert names(choose(models, {HOST: 200}, CostPolicy(), now)) == ["busy", "vip"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mode": Mode.PINNED}, "pinned"),
        ({"busy": True}, "being loaded"),
        ({"pending": 2}, "2 requests pending"),
        ({"held_until": NOW + timedelta(seconds=5)}, "held by a client"),
        ({"demanded_at": NOW}, "a client waits for it"),
        ({"loaded_at": NOW - timedelta(seconds=3)}, "too recently, stays for 7 s more"),
        ({"loaded": False}, "not loaded"),
    ],
)
def test_protected_models_and_the_reason(model: Make, now: datetime, changes: dict[str, object], why: str) -> None:
    kept = model("kept", used=9000, **changes)
    assert why in (protection(kept, now) or "")
    assert choose([kept], {HOST: 1}, LruPolicy(), now) is None


def test_an_expired_hold_protects_no_more(model: Make, now: datetime) -> None:
    assert protection(model("a", held_until=now - timedelta(seconds=1)), now) is None


def test_a_higher_priority_does_not_wait_for_the_residence_time(model: Make, now: datetime) -> None:
    fresh = model("fresh", loaded_at=now - timedelta(seconds=3))
    assert protection(fresh, now, priority=0) is not None
    assert protection(fresh, now, priority=1) is None


def test_a_model_that_thrashes_stays_longer(model: Make, now: datetime) -> None:
    rules = EvictionRules(minimum_residence_seconds=10, backoff_factor=2, maximum_residence_seconds=60)
    ages = [rules.residence_seconds(model("a", evictions=count)) for count in (0, 1, 2, 3, 10_000)]
    assert ages == [10, 20, 40, 60, 60]
    assert EvictionRules(minimum_residence_seconds=900).grown_seconds(3) == 900


def test_an_eviction_is_early_if_the_model_is_soon_requested_again(now: datetime) -> None:
    rules = EvictionRules(minimum_residence_seconds=10)
    assert early_evictions(0, now, now + timedelta(seconds=9), rules) == 1
    assert early_evictions(1, now, now + timedelta(seconds=19), rules) == 2
    assert early_evictions(2, now, now + timedelta(hours=1), rules) == 1
    assert early_evictions(0, now, now + timedelta(hours=1), rules) == 0
    assert early_evictions(2, None, now, rules) == 2


def test_policies_are_found_by_name() -> None:
    assert [policy_named(name).name for name in ("lru", "lfu", "cost")] == ["lru", "lfu", "cost"]
    with pytest.raises(ValueError, match=r"unknown eviction policy 'fifo'; expected one of lru, lfu, cost"):
        policy_named("fifo")


def test_reasons_name_cost_use_and_size(model: Make, now: datetime) -> None:
    idle = model("a", 3 * 2**30, used=7200, rate=1.0, load_seconds=12.0)
    assert LruPolicy().explain(idle, now) == "last used 7.2e+03 s ago"
    assert "12 s" in CostPolicy().explain(idle, now)
    assert "900 uses an hour" in CostPolicy().explain(idle, now)
    assert "3 GiB" in CostPolicy().explain(idle, now)


SECONDS = st.integers(0, 1000).map(lambda seconds: NOW - timedelta(seconds=seconds))
MODELS = st.lists(
    st.builds(
        ModelMemory,
        model=st.uuids().map(str),
        mode=st.sampled_from(Mode),
        version=st.just(1),
        footprint=st.dictionaries(
            st.sampled_from([HOST, "gpu:0", "gpu:1"]), st.integers(0, 100).map(Footprint), min_size=1
        ),
        priority=st.integers(-1, 1),
        load_seconds=st.floats(0.1, 100),
        loaded=st.booleans() | st.just(True),
        busy=st.sampled_from([False, False, False, True]),
        loaded_at=SECONDS,
        usage=st.builds(Usage, st.none() | SECONDS, st.floats(0, 10), st.sampled_from([0, 0, 0, 3])),
        held_until=st.sampled_from([None, None, NOW + timedelta(seconds=9), NOW - timedelta(seconds=9)]),
        demanded_at=st.sampled_from([None, None, None, NOW]),
        evictions=st.integers(0, 8),
    ),
    max_size=7,
    unique_by=lambda found: found.model,
)
NEEDS = st.dictionaries(st.sampled_from([HOST, "gpu:0", "gpu:1"]), st.integers(0, 250), min_size=1)
POLICIES = st.sampled_from([LruPolicy(), LfuPolicy(), CostPolicy()])


def covers(victims: tuple[ModelMemory, ...], need: dict[str, int]) -> bool:
    return all(sum(freed(victim, device) for victim in victims) >= size for device, size in need.items())


@settings(max_examples=200, deadline=None)
@given(models=MODELS, need=NEEDS, policy=POLICIES, priority=st.none() | st.integers(-2, 2))
def test_a_choice_covers_the_need_spares_protected_models_and_is_minimal(
    models: list[ModelMemory], need: dict[str, int], policy: EvictionPolicy, priority: int | None
) -> None:
    rules = EvictionRules(minimum_residence_seconds=100)
    victims = choose(models, need, policy, NOW, rules=rules, priority=priority)
    may_go = tuple(model for model in models if protection(model, NOW, rules, priority=priority) is None)
    if victims is None:
        assert not covers(may_go, need)
        return
    assert covers(victims, need)
    assert set(victims_names := [victim.model for victim in victims]) <= {model.model for model in may_go}
    assert len(victims_names) == len(set(victims_names))
    for fewer in combinations(victims, max(len(victims) - 1, 0)):
        assert not covers(fewer, need) or not victims


@settings(max_examples=100, deadline=None)
@given(models=MODELS, need=NEEDS, policy=POLICIES)
def test_a_choice_does_not_depend_on_the_order_of_the_candidates(
    models: list[ModelMemory], need: dict[str, int], policy: EvictionPolicy
) -> None:
    forwards, backwards = choose(models, need, policy, NOW), choose(models[::-1], need, policy, NOW)
    assert names(forwards) == names(backwards)
