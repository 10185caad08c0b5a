"""The default policy: its value, and how it selects its predictor."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controlplane.memory.policy.cost_policy import CostPolicy, GhostCache, Predictor, ValuePolicy
from controlplane.memory.policy.types import HOST, Footprint, Mode, ModelMemory, Usage
from controlplane.memory.policy.usage import used

Make = Callable[..., ModelMemory]


def test_the_value_is_reload_seconds_by_time_and_bytes(model: Make, now: datetime) -> None:
    found = model("a", 2**29, used=3600, rate=2.0, load_seconds=10.0)
    # 10 s, once a second (2 decayed by one half-life), for half a GiB.
    assert ValuePolicy(Predictor.RATE).score(found, now) == pytest.approx(20.0)
    assert ValuePolicy(Predictor.RECENCY).score(found, now) == pytest.approx(20 / 3601)
    visited = replace(found, usage=replace(found.usage, visits_per_second=0.001))
    decayed = 0.001 * 0.5 ** (1 / 24)  # an hour of a half-life of a day
    assert ValuePolicy(Predictor.VISITS).score(visited, now) == pytest.approx(20 * (decayed + 10 / 3601**2))


@pytest.mark.parametrize("outlook", Predictor)
def test_the_value_is_the_product_of_its_parts(model: Make, now: datetime, outlook: Predictor) -> None:
    policy = ValuePolicy(outlook)
    both = {HOST: Footprint(2**29), "gpu:0": Footprint(2**30)}
    cases = [
        model("idle", 2**20, used=300, rate=0.2),
        model("now", 2**20, used=0, rate=0.2),
        model("later than now", 2**20, used=-5, rate=0.2),
        model("never used", 2**20, used=None),
        model("loaded since", 2**20, used=300, loaded_at=now - timedelta(seconds=20)),
        model("never", 2**20, used=None, loaded_at=None),
        model("everywhere", footprint=both, used=7, rate=3.0),
        model("nothing", 0, used=7),
    ]
    for case in cases:
        one = replace(case, usage=replace(case.usage, visits_per_second=case.usage.rate_per_second / 1000))
        size = sum(footprint.bytes for footprint in one.footprint.values()) or 1
        assert policy.score(one, now) == pytest.approx(one.load_seconds * policy.uses(one, now) * 2**30 / size)


def test_the_recency_predictor_ranks_equal_models_like_lru(model: Make, now: datetime) -> None:
    ages = [3, 1, 7, 2000, 50]
    models = [model(f"m{age}", used=age, rate=age) for age in ages]
    policy = ValuePolicy(Predictor.RECENCY)
    assert sorted(ages, key=lambda age: policy.score(models[ages.index(age)], now)) == sorted(ages, reverse=True)


def play(policy: CostPolicy, names: Iterable[str], now: datetime, model: Make, budget: int) -> CostPolicy:
    """Use the models one after the other, a minute apart."""
    models: dict[str, ModelMemory] = {}
    usages: dict[str, Usage] = {}
    for minute, name in enumerate(names):
        at = now + timedelta(minutes=minute)
        usages[name] = used(usages.get(name, Usage()), at)
        models[name] = model(name, 100, loaded_at=None, load_seconds=5.0, **{})
        models[name] = ModelMemory(name, Mode.ON_DEMAND, 1, models[name].footprint, load_seconds=5.0,
                                   usage=usages[name])  # fmt: skip
        policy = policy.learned(models[name], models, {HOST: budget}, at)
    return policy


def test_bursts_select_the_recency_predictor(model: Make, now: datetime) -> None:
    # Each model is used forty times, alternating with another one, and never again.
    names = [f"m{day + use % 2}" for day in range(0, 40, 2) for use in range(40)]
    policy = play(CostPolicy(), names, now, model, budget=200)
    assert policy.chosen.outlook is Predictor.RECENCY


def test_steady_popularity_selects_the_rate_predictor(model: Make, now: datetime) -> None:
    # Two models are used repeatedly; in between, others are used once.
    names = [f"s{turn}" if turn % 4 in (1, 2, 3) else f"favourite{turn // 4 % 2}" for turn in range(600)]
    recent = CostPolicy(chosen=ValuePolicy(Predictor.RECENCY))
    policy = play(recent, names, now, model, budget=300)
    assert policy.chosen.outlook is Predictor.RATE


def test_bursts_that_come_back_make_visits_decide(model: Make, now: datetime) -> None:
    # Forty uses in a row are one burst. Every other burst is of one of two favorites; the others have one burst each.
    bursts = [f"s{turn}" if turn % 2 else f"favorite{turn // 2 % 2}" for turn in range(60)]
    policy = play(CostPolicy(), [name for name in bursts for _ in range(40)], now, model, budget=300)
    assert policy.chosen.outlook is Predictor.VISITS


def test_a_model_with_many_visits_outlives_a_later_one_with_many_requests(model: Make, now: datetime) -> None:
    often = busy = Usage()
    for hour in range(12):
        often = used(often, now + timedelta(hours=hour))
    for second in range(300):
        busy = used(busy, now + timedelta(hours=11, seconds=second))
    later = now + timedelta(hours=12)
    models = [model("often", usage=often), model("busy", usage=busy)]
    lowest = {
        outlook: min(models, key=lambda one: ValuePolicy(outlook).score(one, later)).model for outlook in Predictor
    }
    assert lowest == {Predictor.RATE: "often", Predictor.RECENCY: "often", Predictor.VISITS: "busy"}


def test_the_reason_names_the_visits(model: Make, now: datetime) -> None:
    found = model("a", 2**20, used=0, load_seconds=3.0)
    found = replace(found, usage=replace(found.usage, visits_per_second=2 / 86_400))
    reason = ValuePolicy(Predictor.VISITS).explain(found, now)
    assert reason == "a reload costs 3 s, last used 0 s ago, 2 visits a day are expected, it frees 1 MiB"


def test_a_hit_in_every_ghost_cache_changes_nothing(model: Make, now: datetime) -> None:
    first = model("a", 100)
    policy = CostPolicy().learned(first, {"a": first}, {HOST: 300}, now)
    assert policy.learned(first, {"a": first}, {HOST: 300}, now) is policy


def test_ghost_caches_stay_within_the_budget_without_pinned_models(model: Make, now: datetime) -> None:
    models = {f"m{number}": model(f"m{number}", 100, used=number) for number in range(9)}
    models["pinned"] = model("pinned", 250, mode=Mode.PINNED)
    policy = CostPolicy()
    for found in models.values():
        policy = policy.learned(found, models, {HOST: 600}, now)
    assert [len(shadow.loaded) for shadow in policy.shadows] == [3, 3, 3]
    assert all("pinned" not in shadow.loaded for shadow in policy.shadows)


def test_a_deleted_model_is_removed_from_the_ghost_cache(model: Make, now: datetime) -> None:
    gone = GhostCache(ValuePolicy(), frozenset({"gone"}))
    here = model("here", 100)
    assert gone.loads(here, {"here": here}, {HOST: 100}, now).loaded >= {"here"}
