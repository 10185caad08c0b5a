"""Decisions which models are to be loaded, with their reasons."""

from collections.abc import Callable
from datetime import datetime, timedelta

from controlplane.memory.policy.eviction import CostPolicy
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.residency import ResidencyDecision, decide_residency, expires_at
from controlplane.memory.policy.types import HOST, Budget, Mode, ModelMemory, Slot

Make = Callable[..., ModelMemory]


def ask(now: datetime, *models: ModelMemory, budget: int = 1000) -> dict[str, ResidencyDecision]:
    ledger = Ledger({HOST: Budget(HOST, budget, budget)})
    for model in models:
        if model.loaded:
            sizes = {device: need.bytes for device, need in model.footprint.items()}
            ledger = ledger.resident(Slot(model.model, model.version), sizes, now)
    return decide_residency({model.model: model for model in models}, ledger, CostPolicy(), now)


def test_pinned_models_are_to_be_loaded_even_without_room(model: Make, now: datetime) -> None:
    answers = ask(now, model("a", 5000, mode=Mode.PINNED, loaded=False))
    assert answers["a"] == ResidencyDecision(loaded=True, why="pinned")


def test_on_demand_models_are_loaded_only_on_request(model: Make, now: datetime) -> None:
    answers = ask(
        now,
        model("idle", loaded=False),
        model("asked", loaded=False, demanded_at=now),
        model("leased", loaded=False, held_until=now + timedelta(seconds=1)),
    )
    assert [(name, answer.loaded) for name, answer in answers.items()] == [
        ("idle", False), ("asked", True), ("leased", True)
    ]  # fmt: skip


def test_on_demand_models_are_unloaded_after_their_keep_alive(model: Make, now: datetime) -> None:
    answers = ask(
        now,
        model("fresh", used=299),
        model("stale", used=301),
        model("busy", used=301, pending=1),
        model("ever", used=1e6, keep_alive_seconds=None),
        budget=100_000,
    )
    assert {name: answer.loaded for name, answer in answers.items()} == {
        "fresh": True, "stale": False, "busy": True, "ever": True
    }  # fmt: skip
    assert answers["stale"].why == "on demand: not used for 300 s"


def test_with_a_keep_alive_of_0_the_requester_still_finds_it_loaded(model: Make, now: datetime) -> None:
    loaded = {"keep_alive_seconds": 0.0, "loaded_at": now - timedelta(seconds=9)}
    assert ask(now, model("a", **loaded))["a"].loaded
    assert ask(now, model("a", used=60, **loaded))["a"].loaded  # used before this load, not since
    assert ask(now, model("a", used=9, **loaded))["a"].loaded  # the demand that had it loaded
    assert not ask(now, model("a", used=1, **loaded))["a"].loaded
    assert not ask(now, model("a", keep_alive_seconds=0.0, loaded_at=now - timedelta(seconds=11)))["a"].loaded


def test_only_models_that_expire_have_an_expiry(model: Make, now: datetime) -> None:
    assert expires_at(model("a", used=100)) == now + timedelta(seconds=200)
    assert expires_at(model("a", mode=Mode.RESIDENT, used=100)) is None
    assert expires_at(model("a", keep_alive_seconds=None, used=100)) is None
    until = now + timedelta(hours=1)
    assert expires_at(model("a", used=100, held_until=until)) == until


def test_resident_models_stay_and_are_loaded_again_if_there_is_room(model: Make, now: datetime) -> None:
    answers = ask(
        now,
        model("here", 600, mode=Mode.RESIDENT),
        model("wanted", 300, mode=Mode.RESIDENT, loaded=False, used=60, rate=5.0),
        model("unused", 300, mode=Mode.RESIDENT, loaded=False),
    )
    assert answers["here"].loaded
    assert answers["wanted"] == ResidencyDecision(loaded=True, why="resident: there is room")
    assert answers["unused"] == ResidencyDecision(loaded=False, why="resident: no room, lacks 200 B on host")


def test_residency_does_not_compete_with_requested_models(model: Make, now: datetime) -> None:
    answers = ask(
        now,
        model("asked", 800, loaded=False, demanded_at=now),
        model("resident", 300, mode=Mode.RESIDENT, loaded=False),
    )
    assert answers["asked"].loaded
    assert not answers["resident"].loaded


def test_higher_priorities_are_loaded_again_first(model: Make, now: datetime) -> None:
    resident = {"mode": Mode.RESIDENT, "loaded": False}
    answers = ask(now, model("low", 900, used=1, rate=9.0, **resident), model("high", 900, priority=1, **resident))
    assert (answers["low"].loaded, answers["high"].loaded) == (False, True)
