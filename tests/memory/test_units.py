"""Pipelines in the memory policies: evicted with their members, admitted whole."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from controlplane.memory.policy.admission import Admit, Evict, LoadRequest, Queue, Refuse, decide_all
from controlplane.memory.policy.eviction import LruPolicy, choose
from controlplane.memory.policy.ledger import Ledger
from controlplane.memory.policy.residency import decide_residency
from controlplane.memory.policy.types import Budget, Footprint, Mode, ModelMemory, Slot, Usage

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)


def loaded(name: str, size: int, *needed_by: str, used: int = 0) -> ModelMemory:
    """A model that was loaded an hour ago and used ``used`` seconds ago."""
    return ModelMemory(
        name,
        Mode.ON_DEMAND,
        1,
        {"host": Footprint(size)},
        loaded=True,
        loaded_at=LONG_AGO,
        usage=Usage(last_used_at=NOW - timedelta(seconds=used)),
        needed_by=needed_by,
    )


def names(found: tuple[ModelMemory, ...] | None) -> list[str] | None:
    return None if found is None else [model.model for model in found]


def evicted(models: list[ModelMemory], need: int) -> list[str] | None:
    return names(choose(models, {"host": need}, LruPolicy(), NOW))


def test_pipeline_goes_with_the_members_that_it_alone_needs() -> None:
    models = [loaded("p", 0, used=9), loaded("a", 10, "p"), loaded("shared", 50, "p", "q"), loaded("q", 0)]
    assert evicted(models, 10) == ["p", "a"]


def test_pipelines_that_share_members_go_together_if_that_is_the_only_way() -> None:
    models = [loaded("p", 0, used=9), loaded("a", 10, "p"), loaded("shared", 50, "p", "q"), loaded("q", 0)]
    assert evicted(models, 60) == ["p", "q", "a", "shared"]
    assert evicted(models, 61) is None


def test_member_is_protected_while_its_pipeline_is() -> None:
    busy = replace(loaded("p", 0), usage=Usage(pending=1))
    assert evicted([busy, loaded("a", 10, "p")], 5) is None
    assert evicted([loaded("p", 0), replace(loaded("a", 10, "p"), held_until=NOW + timedelta(hours=1))], 5) is None
    assert evicted([loaded("a", 10, "p")], 5) is None, "the pipeline is being loaded"


def test_needed_member_stays_and_resident_pipeline_needs_room_for_its_members() -> None:
    ledger = Ledger({"host": Budget("host", 100, 100)})
    member = replace(loaded("a", 10, "p"), keep_alive_seconds=1.0, usage=Usage(last_used_at=LONG_AGO))
    pipeline = ModelMemory("p", Mode.RESIDENT, 1, {"host": Footprint(0)}, unit={"host": Footprint(101)})
    found = decide_residency({"a": member, "p": pipeline}, ledger, LruPolicy(), NOW)
    assert (found["a"].loaded, found["a"].why) == (True, "needed by p")
    assert (found["p"].loaded, found["p"].why) == (False, "resident: no room, lacks 1 B on host")


def request(name: str, size: int, unit: str, others: dict[str, int], since: int) -> LoadRequest:
    """A member that is wanted for a pipeline with others of the given sizes."""
    memory = ModelMemory(name, Mode.ON_DEMAND, 1, {"host": Footprint(size)}, needed_by=(unit,), needed_now=True)
    return LoadRequest(
        memory,
        Slot(name, 1),
        memory.footprint,
        NOW + timedelta(seconds=since),
        frozenset((unit,)),
        {Slot(other, 1): {"host": Footprint(of)} for other, of in others.items()},
        frozenset({unit, *others}),
    )


def decisions(
    requests: list[LoadRequest],
    budget: int,
    models: dict[str, ModelMemory] | None = None,
    held: dict[str, int] | None = None,
) -> list[str]:
    ledger = Ledger({"host": Budget("host", budget, budget)})
    for name, size in (held or {}).items():
        ledger = ledger.reserve(Slot(name, 1), {"host": Footprint(size)}, NOW)
    found = decide_all(requests, ledger, models or {}, policy=LruPolicy(), loads_in_flight=0, max_loads=8, now=NOW)
    return [f"{one.model.model} {type(decision).__name__}" for one, decision in found]


def test_first_member_is_admitted_only_if_the_whole_pipeline_fits() -> None:
    first, second = request("a", 40, "p", {"b": 40}, 0), request("b", 40, "p", {"a": 40}, 1)
    assert decisions([first, second], 80) == [f"a {Admit.__name__}", f"b {Admit.__name__}"]
    assert decisions([first, second], 79) == [f"a {Refuse.__name__}", f"b {Refuse.__name__}"]


def test_two_pipelines_never_hold_half_of_their_memory_each() -> None:
    a, b = request("a", 40, "p", {"b": 40}, 0), request("c", 40, "q", {"d": 40}, 1)
    assert decisions([a, b], 120) == [f"a {Admit.__name__}", f"c {Queue.__name__}"]


def test_members_of_one_pipeline_evict_only_what_they_need_together() -> None:
    models = {name: loaded(name, 40) for name in ("x", "y", "z")}
    held = {"x": 40, "y": 40, "z": 40}
    asked = [request("a", 40, "p", {"b": 40}, 0), request("b", 40, "p", {"a": 40}, 1)]
    assert decisions(asked, 120, models, held) == [f"a {Evict.__name__}", f"b {Queue.__name__}"]
