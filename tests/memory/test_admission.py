"""Admission of a load: each numbered rule, then whole queues until they are empty."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.memory.policy.admission import (
    Admit,
    Decision,
    Evict,
    LoadRequest,
    Queue,
    Refuse,
    decide,
    decide_all,
    in_order,
)
from controlplane.memory.policy.eviction import EvictionRules, LruPolicy
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.types import HOST, Budget, Footprint, Mode, ModelMemory, Slot, Usage

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
Make = Callable[..., ModelMemory]


def desired_deployment(model: ModelMemory, waits: float | None = None) -> LoadRequest:
    since = None if waits is None else NOW - timedelta(seconds=waits)
    return LoadRequest(replace(model, loaded=False, demanded_at=NOW), Slot(model.model, 1), model.footprint, since)


class Server:
    """A ledger with loaded models."""

    def __init__(self, budget: int, *models: ModelMemory) -> None:
        self.ledger = Ledger({HOST: Budget(HOST, budget, budget)})
        self.models = {model.model: model for model in models}
        for model in models:
            sizes = {device: need.bytes for device, need in model.footprint.items()}
            self.ledger = self.ledger.resident(Slot(model.model, 1), sizes, NOW)

    def decide(self, request: LoadRequest, *, in_flight: int = 0) -> Decision:
        return decide(
            request, self.ledger, self.models, policy=LruPolicy(), loads_in_flight=in_flight, max_loads=2, now=NOW
        )

    def decide_all(self, *requests: LoadRequest, max_loads: int = 4) -> dict[str, Decision]:
        answers = decide_all(
            requests, self.ledger, self.models, policy=LruPolicy(), loads_in_flight=0, max_loads=max_loads, now=NOW
        )
        return {request.model.model: decision for request, decision in answers}


def test_a_reserved_load_is_admitted_below_the_limit_of_loads(model: Make) -> None:
    server, request = Server(100), desired_deployment(model("a", 100))
    server.ledger = server.ledger.reserve(request.slot, request.footprint, NOW)
    assert isinstance(server.decide(request), Admit)
    assert isinstance(server.decide(request, in_flight=2), Queue)


def test_a_load_that_can_never_fit_is_refused_with_sizes(model: Make) -> None:
    server = Server(1000, model("pin", 600, mode=Mode.PINNED), model("b", 300))
    answer = server.decide(desired_deployment(model("a", 500)))
    assert isinstance(answer, Refuse)
    assert "a:1 needs 500 B on host" in answer.why
    assert "300 B could be freed" in answer.why
    assert "pin 600 B" in answer.why
    figures = answer.figures[HOST]
    assert (figures.needed_bytes, figures.free_bytes, figures.could_be_freed_bytes) == (500, 100, 300)
    assert figures.held_bytes == {"pin": 600}
    assert isinstance(server.decide(desired_deployment(model("a", 400))), Evict)


def test_no_model_is_evicted_before_the_load_could_start(model: Make) -> None:
    server = Server(100, model("old", 100))
    answer = server.decide(desired_deployment(model("a", 100)), in_flight=2)
    assert isinstance(answer, Queue)
    assert "2 loads are in flight, which is the limit" in answer.why


def test_a_load_that_fits_is_admitted(model: Make) -> None:
    assert isinstance(Server(200, model("old", 100)).decide(desired_deployment(model("a", 100))), Admit)


def test_a_load_waits_for_memory_that_is_being_freed(model: Make) -> None:
    server = Server(200, model("old", 100), model("other", 100))
    server.ledger = server.ledger.unloading(Slot("old", 1), NOW)
    server.models["old"] = replace(server.models["old"], busy=True)
    answer = server.decide(desired_deployment(model("a", 100)))
    assert isinstance(answer, Queue)
    assert "being freed" in answer.why
    more = server.decide(desired_deployment(model("a", 150)))
    assert isinstance(more, Evict)
    assert [victim.model for victim in more.victims] == ["other"]


def test_an_eviction_names_the_load_and_the_reason(model: Make) -> None:
    answer = Server(200, model("b", 100, used=60), model("c", 100, used=5)).decide(desired_deployment(model("a", 100)))
    assert isinstance(answer, Evict)
    assert [victim.model for victim in answer.victims] == ["b"]
    assert answer.why == "a:1 lacks 100 B on host; evicting b"
    assert answer.reasons == {"b": "last used 60 s ago"}


def test_mere_residency_evicts_no_model(model: Make) -> None:
    server = Server(100, model("old", 100))
    idle = replace(desired_deployment(model("a", 100)), model=model("a", 100, mode=Mode.RESIDENT, loaded=False))
    assert isinstance(server.decide(idle), Queue)
    asked = replace(idle, model=replace(idle.model, demanded_at=NOW))
    assert isinstance(server.decide(asked), Evict)


def test_a_load_waits_for_models_in_use_and_names_them(model: Make) -> None:
    server = Server(200, model("busy", 100, pending=3), model("leased", 100, held_until=NOW + timedelta(hours=1)))
    answer = server.decide(desired_deployment(model("a", 100)))
    assert isinstance(answer, Queue)
    assert "busy (3 requests pending)" in answer.why
    assert "leased (held by a client until 13:00:00)" in answer.why
    assert answer.figures[HOST].could_be_freed_bytes == 0


def test_unaccounted_memory_is_named(model: Make) -> None:
    server = Server(200, model("b", 50))
    server.ledger = server.ledger.observed(HOST, 150)
    answer = server.decide(desired_deployment(model("a", 120)))
    assert isinstance(answer, Queue)
    assert "unaccounted: 100 B on host" in answer.why


def test_the_queue_is_by_priority_and_fair_within_it(model: Make) -> None:
    requests = [
        desired_deployment(model("new"), 1),
        desired_deployment(model("vip", priority=1), 0),
        desired_deployment(model("old"), 9),
        desired_deployment(model("now")),
    ]
    assert [request.model.model for request in in_order(requests)] == ["vip", "old", "new", "now"]


def test_a_small_load_does_not_starve_an_earlier_large_one(model: Make) -> None:
    server = Server(300, model("busy", 200, pending=1))
    answers = server.decide_all(desired_deployment(model("large", 250), 10), desired_deployment(model("small", 60), 1))
    assert isinstance(answers["large"], Queue)
    assert isinstance(answers["small"], Queue)


def test_a_small_load_may_use_memory_that_an_earlier_large_one_does_not_need(model: Make) -> None:
    server = Server(300, model("old", 100))
    server.ledger = server.ledger.unloading(Slot("old", 1), NOW)
    answers = server.decide_all(desired_deployment(model("large", 240), 10), desired_deployment(model("small", 60), 1))
    assert isinstance(answers["large"], Queue)
    assert isinstance(answers["small"], Admit)


def test_victims_are_chosen_once(model: Make) -> None:
    server = Server(200, model("x", 100, used=50), model("y", 100, used=5))
    answers = server.decide_all(desired_deployment(model("a", 100), 10), desired_deployment(model("b", 100), 1))
    victims = [answer.victims[0].model for answer in answers.values() if isinstance(answer, Evict)]
    assert victims == ["x", "y"]


def test_loads_in_flight_are_bounded_over_the_whole_queue(model: Make) -> None:
    answers = Server(1000).decide_all(*(desired_deployment(model(name, 10)) for name in "abcd"), max_loads=2)
    assert [type(answers[name]) for name in "abcd"] == [Admit, Admit, Queue, Queue]


# Whole queues. The driver applies each decision and decides again after every change, as the control plane does.


SIZE = st.integers(1, 100)


def fleet(sizes: list[int], modes: list[Mode], prefix: str) -> dict[str, ModelMemory]:
    return {
        f"{prefix}{number}": ModelMemory(f"{prefix}{number}", mode, 1, {HOST: Footprint(size)}, usage=Usage())
        for number, (size, mode) in enumerate(zip(sizes, modes, strict=False))
    }


@settings(max_examples=150, deadline=None)
@given(
    budget=st.integers(50, 300),
    present=st.lists(st.tuples(SIZE, st.sampled_from([Mode.ON_DEMAND, Mode.RESIDENT, Mode.PINNED])), max_size=8),
    asked=st.lists(st.tuples(SIZE, st.integers(0, 2)), min_size=1, max_size=6),
    max_loads=st.integers(1, 3),
)
def test_every_load_of_a_queue_ends(
    budget: int, present: list[tuple[int, Mode]], asked: list[tuple[int, int]], max_loads: int
) -> None:
    """Every load either ends or, if it can never fit, is refused with sizes that explain it."""
    ledger = Ledger({HOST: Budget(HOST, budget, budget)})
    models = {}
    for number, (size, mode) in enumerate(present):
        if ledger.free(HOST) >= size:
            found = ModelMemory(f"p{number}", mode, 1, {HOST: Footprint(size)}, loaded=True, loaded_at=NOW)
            models[found.model] = found
            ledger = ledger.resident(Slot(found.model, 1), {HOST: size}, NOW)
    pinned = sum(model.footprint[HOST].bytes for model in models.values() if model.mode is Mode.PINNED)
    desired_state = {}
    for number, (size, priority) in enumerate(asked):
        new = ModelMemory(f"a{number}", Mode.ON_DEMAND, 1, {HOST: Footprint(size)}, priority=priority, demanded_at=NOW)
        desired_state[new.model] = LoadRequest(new, Slot(new.model, 1), new.footprint, NOW + timedelta(seconds=number))
    refused: dict[str, Refuse] = {}
    done: set[str] = set()
    now, rules = NOW + timedelta(seconds=1), EvictionRules(minimum_residence_seconds=5)
    for _ in range(200):
        if not desired_state:
            break
        now += timedelta(seconds=3)
        in_flight = 0
        answers = decide_all(
            list(desired_state.values()), ledger, models, policy=LruPolicy(), loads_in_flight=0, max_loads=max_loads,
            now=now, rules=rules,
        )  # fmt: skip
        for request, decision in answers:
            name = request.model.model
            if isinstance(decision, Admit):
                in_flight += 1
                ledger = ledger.reserve(request.slot, request.footprint, now).loading(request.slot, now)
            elif isinstance(decision, Evict):
                for victim in decision.victims:
                    assert victim.mode is not Mode.PINNED
                    ledger = ledger.unloading(Slot(victim.model, 1), now)
                    models[victim.model] = replace(victim, busy=True)
            elif isinstance(decision, Refuse):
                refused[name] = decision
                del desired_state[name]
        assert ledger.held(HOST) <= budget
        assert in_flight <= max_loads
        for holding in ledger.holdings:  # everything that was begun ends
            name = holding.slot.triton_name
            if holding.state == "loading":
                ledger = ledger.resident(holding.slot, {}, now)
                models[name] = replace(desired_state.pop(name).model, loaded=True, loaded_at=now, demanded_at=None)
                done.add(name)
            elif holding.state == "unloading":
                ledger = ledger.released(holding.slot)
                del models[name]
    assert not desired_state, "a load waits indefinitely"
    for number, (size, _) in enumerate(asked):
        name = f"a{number}"
        assert (name in done) == (size <= budget - pinned)
        if name in refused:
            figures = refused[name].figures[HOST]
            assert figures.needed_bytes == size
            assert figures.needed_bytes > figures.budget_bytes - pinned
