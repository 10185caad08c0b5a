"""Defragmentation: moves only if the gain exceeds the cost, and never beyond a budget."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings

from controlplane.placement.defragment import WORTH_BYTES_PER_SECOND, defragment
from controlplane.placement.planner import plan
from controlplane.placement.types import NO_PLAN, Hints, Plan, Server, Workload
from tests.placement.test_planner import assert_sound, cpu, fleets, host, model_states, named, wanted, where

GIB = 1 << 30


def placed(servers: dict[str, Server], *ones: tuple[Workload, str]) -> Plan:
    """Return a plan with models at given places."""
    cached = Hints(cached={one.model: frozenset({server}) for one, server in ones})
    made = plan(NO_PLAN, servers, wanted(*(one for one, _ in ones)), cached)
    assert where(made) == {one.model: [server] for one, server in ones}
    return made


def test_defragmentation_joins_small_gaps() -> None:
    servers = named(host("a", 10 * GIB), host("b", 10 * GIB))
    made = placed(servers, (cpu("x", 2 * GIB), "a"), (cpu("y", 3 * GIB), "b"))
    found = defragment(made)
    assert [(move.model, move.source.server, move.target.server) for move in found.moves] == [("x", "a", "b")]
    assert (found.largest_before, found.largest_after) == ({"cpu": 8 * GIB}, {"cpu": 10 * GIB})
    assert found.moves[0].why == "the largest gap grows by 2 GiB, to all 10 GiB of a host"
    assert where(made)["x"] == ["a"], "the given plan is not changed"
    assert defragment(found.plan).moves == (), "no further gain is possible"


def test_a_move_that_costs_more_than_it_gains_is_not_made() -> None:
    servers = named(host("a", 10 * GIB), host("b", 10 * GIB))
    seconds = 2 * GIB / WORTH_BYTES_PER_SECOND + 1
    slow = (cpu("x", 2 * GIB, load_seconds=seconds), "a"), (cpu("y", 3 * GIB, load_seconds=seconds), "b")
    assert defragment(placed(servers, *slow)).moves == ()


def test_a_used_model_moves_off_an_overcommitted_device() -> None:
    servers = named(host("a", 10))
    made = plan(NO_PLAN, servers, wanted(cpu("x", 8), cpu("y", 8)))
    made = plan(made, named(host("a", 10), host("b", 10)), made.workloads)
    assert where(made) == {"x": ["a"], "y": ["a"]}, "a plan moves no replica on its own"
    assert defragment(made).moves == (), "neither is used"
    found = defragment(made, Hints(rates={"y": 0.1}))
    assert [(move.model, move.target.server) for move in found.moves] == [("y", "b")]
    assert (found.shared_before, found.shared_after) == (6, 0)


def test_replicas_in_one_zone_are_separated() -> None:
    servers = named(host("a1", zone="a"), host("a2", zone="a"), host("b", zone="b", trouble="it is away"))
    made = plan(NO_PLAN, servers, wanted(cpu("m", 10, replicas=2, min_replicas=2)))
    assert where(made) == {"m": ["a1", "a2"]}
    made = plan(made, {**servers, "b": replace(servers["b"], trouble="")}, made.workloads)
    assert where(made) == {"m": ["a1", "a2"]}
    found = defragment(made)
    assert len(found.moves) == 1
    assert found.moves[0].target.server == "b"


@given(fleets, model_states)
@settings(max_examples=200, deadline=None)
def test_defragmentation_keeps_the_invariants_of_a_plan(
    servers: Sequence[Server], workloads: Sequence[Workload]
) -> None:
    made = plan(NO_PLAN, named(*servers), wanted(*workloads))
    found = defragment(made, Hints(rates={one.model: 1.0 for one in workloads}))
    assert_sound(found.plan)
    assert found.shared_after <= found.shared_before
    assert all(found.largest_after[kind] >= 0 or found.shared_before for kind in found.largest_after)
    assert len({move.model for move in found.moves}) == len(found.moves), "no model moves twice"
    for move in found.moves:
        assert move.target in found.plan.assignments[move.model]
        assert move.source.server != move.target.server
