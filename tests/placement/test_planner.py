"""Placement: examples, and properties over generated histories."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.placement.drain import drain_plan
from controlplane.placement.fit import Fitter
from controlplane.placement.planner import plan
from controlplane.placement.types import NO_PLAN, UNLIMITED, Assignment, Hints, Plan, Pool, Server, Vacate, Workload


def host(name: str, size: int = 100, **fields: object) -> Server:
    return Server(name, (Pool("host", size),), **fields)  # type: ignore[arg-type]


def gpus(name: str, *sizes: int, product: str = "NVIDIA H200", **fields: object) -> Server:
    pools = tuple(Pool(f"gpu:{number}", size, number, product) for number, size in enumerate(sizes))
    return Server(name, (Pool("host", 100), *pools), **fields)  # type: ignore[arg-type]


def cpu(model: str, size: int, **fields: object) -> Workload:
    return Workload(model, {"cpu": size}, **fields)  # type: ignore[arg-type]


def gpu(model: str, size: int, **fields: object) -> Workload:
    return Workload(model, {"gpu": size}, **{"gpu_count": 1, **fields})  # type: ignore[arg-type]


def named(*ones: Server) -> dict[str, Server]:
    return {one.name: one for one in ones}


def wanted(*ones: Workload) -> dict[str, Workload]:
    return {one.model: one for one in ones}


def where(made: Plan) -> dict[str, list[str]]:
    return {
        model: sorted(assignment.server for assignment in assignments)
        for model, assignments in made.assignments.items()
    }


def test_placement_preserves_large_gaps() -> None:
    made = plan(NO_PLAN, named(host("a"), host("b")), wanted(cpu("one", 30), cpu("two", 30), cpu("three", 30)))
    assert len({assignment.server for assignments in made.assignments.values() for assignment in assignments}) == 1
    assert "leaves 70 B" in made.assignments["one"][0].why


def test_replicas_are_spread_over_servers_and_zones() -> None:
    servers = named(host("a1", zone="a"), host("a2", zone="a"), host("b1", zone="b"))
    made = plan(NO_PLAN, servers, wanted(cpu("m", 10, replicas=2, min_replicas=2)))
    assert {servers[assignment.server].zone for assignment in made.assignments["m"]} == {"a", "b"}
    made = plan(made, servers, wanted(cpu("m", 10, replicas=3, min_replicas=3)))
    assert where(made)["m"] == ["a1", "a2", "b1"]
    made = plan(made, servers, wanted(cpu("m", 10, replicas=4, min_replicas=4)))
    assert where(made)["m"] == ["a1", "a2", "b1"]
    assert made.unplaced["m"] == "4 replicas need different servers, and only 3 can run it"


def test_servers_with_the_model_loaded_or_cached_are_preferred() -> None:
    servers = named(host("a"), host("b"), host("c"))
    hints = Hints(cached={"m": frozenset({"b"})})
    made = plan(NO_PLAN, servers, wanted(cpu("m", 10)), hints)
    assert where(made) == {"m": ["b"]}
    assert "its files are there" in made.assignments["m"][0].why
    hints = Hints(cached={"m": frozenset({"b"})}, loaded={"m": {"c": ("host",)}})
    assert where(plan(NO_PLAN, servers, wanted(cpu("m", 10)), hints)) == {"m": ["c"]}


def test_servers_that_cannot_load_a_model_are_avoided_and_named() -> None:
    servers = named(host("a"), host("b"))
    old = "its opset is 22, and ONNX Runtime 1.19.2 loads up to 21"
    made = plan(NO_PLAN, servers, wanted(cpu("m", 10)))
    assert where(made) == {"m": ["a"]}
    made = plan(made, servers, wanted(cpu("m", 10, cannot={"a": old})))
    assert where(made) == {"m": ["b"]}
    made = plan(made, servers, wanted(cpu("m", 10, cannot={"a": old, "b": old})), Hints(loaded={"m": {"a": ("host",)}}))
    assert where(made) == {}
    assert made.unplaced["m"] == f"no server can load it (a: {old}; b: {old})"
    either = plan(NO_PLAN, servers, wanted(gpu("m", 10, cannot={"a": old})))
    assert either.unplaced["m"] == f"no server can load it (a: {old}); the other 1 do not have 1 GPU"


def test_selectors_are_honoured() -> None:
    servers = named(
        host("cpu"),
        gpus("small", 40, 80, labels={"team": "ads"}, product="NVIDIA L4"),
        gpus("large", 80, 80, 80, labels={"team": "ads"}),
    )
    made = plan(
        NO_PLAN,
        servers,
        wanted(
            gpu("by-product", 10, gpu_product="h200"),
            gpu("by-size", 10, gpu_min_bytes=70, gpu_product="L4"),
            gpu("by-number", 10, gpus=(2,), gpu_count=None),
            gpu("all", 10, gpu_count=None, gpu_product="H200"),
            cpu("by-label", 10, selector=(("team", "ads"),)),
            gpu("nowhere", 10, selector=(("team", "search"),)),
            gpu("too-many", 10, gpu_count=4),
        ),
    )
    assert made.assignments["by-product"][0].server == "large"
    assert made.assignments["by-size"][0].devices == ("gpu:1",)
    assert (made.assignments["by-number"][0].server, made.assignments["by-number"][0].devices) == ("large", ("gpu:2",))
    assert made.assignments["all"][0].devices == ("gpu:0", "gpu:1", "gpu:2")
    assert made.assignments["by-label"][0].server in {"small", "large"}
    assert made.unplaced == {
        "nowhere": "no server has the labels team=search",
        "too-many": "none of the 3 servers has 4 GPUs",
    }


def test_a_model_for_either_device_kind_uses_a_gpu_if_there_is_one() -> None:
    either = Workload("m", {"cpu": 10, "gpu": 10}, gpu_count=1)
    made = plan(NO_PLAN, named(host("a"), gpus("b", 50)), wanted(either))
    assert (made.assignments["m"][0].server, made.assignments["m"][0].devices) == ("b", ("gpu:0",))
    full = plan(NO_PLAN, named(host("a"), gpus("b", 5)), wanted(either))
    assert (full.assignments["m"][0].server, full.assignments["m"][0].devices) == ("a", ("host",))


def test_only_the_replicas_of_a_dead_server_are_moved() -> None:
    servers = named(host("a"), host("b"), host("c"))
    workloads = wanted(*(cpu(f"m{number}", 20) for number in range(10)))
    made = plan(NO_PLAN, servers, workloads)
    lost = {model for model, assignments in made.assignments.items() if assignments[0].server == "a"}
    assert lost
    after = plan(made, {**servers, "a": host("a", trouble="a is unreachable")}, workloads)
    assert not after.unplaced
    assert all(after.assignments[model] == made.assignments[model] for model in workloads.keys() - lost)
    assert all(after.assignments[model][0].server != "a" for model in lost)
    back = plan(after, servers, workloads)
    assert back.assignments == after.assignments


def test_another_budget_looks_only_at_models_that_do_not_fit_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = named(host("a", 10_000), host("b", 10_000))
    workloads = wanted(*(cpu(f"m{number:03}", 10 + number) for number in range(300)))
    made = plan(NO_PLAN, servers, workloads)
    looked: list[str] = []
    stays = Fitter.stays

    def counted(self: Fitter, workload: Workload, assignment: Assignment, **options: bool) -> Assignment | None:
        looked.append(workload.model)
        return stays(self, workload, assignment, **options)

    monkeypatch.setattr(Fitter, "stays", counted)
    for size in (9_900, 10_100, 400):
        made = plan(made, {**servers, "a": host("a", size)}, workloads)
        assert not looked, f"a budget of {size} disturbs no model"
    after = plan(made, {**servers, "a": host("a", 290)}, workloads)
    moved = {model for model in workloads if after.assignments[model] is not made.assignments[model]}
    assert (
        set(looked) == moved == {model for model in workloads if where(made)[model] == ["a"] and int(model[1:]) > 280}
    )


def test_replicas_leave_a_drained_server_only_into_gaps() -> None:
    servers = named(host("a"), host("b", 50), host("c", 200, trouble="c is unreachable"))
    workloads = wanted(cpu("large", 60), cpu("small", 30, guaranteed=True))
    made = plan(NO_PLAN, servers, workloads, Hints(cached={"small": frozenset({"a"})}))
    assert where(made) == {"large": ["a"], "small": ["a"]}
    drained = {**servers, "a": host("a", drained="it is being drained to free its memory")}
    after = plan(made, drained, workloads)
    assert where(after) == {"large": ["a"], "small": ["b"]}, "no replica shares memory because of a drain"
    more = {**workloads, "new": cpu("new", 10)}
    assert where(plan(after, drained, more))["new"] == ["b"], "no new replica is placed on a drained server"
    back = plan(after, servers, workloads)
    assert back.assignments == after.assignments, "placed replicas stay where they are"


def test_operator_drain_shares_memory_and_keeps_only_what_fits_nowhere() -> None:
    servers = named(host("a"), host("b", 50))
    workloads = wanted(cpu("large", 60), cpu("small", 30, guaranteed=True), cpu("one", 15), cpu("two", 15))
    made = plan(NO_PLAN, servers, workloads, Hints(cached={name: frozenset({"a"}) for name in workloads}))
    assert where(made)["large"] == where(made)["small"] == ["a"]
    drained = {**servers, "a": host("a", drained="it is being drained", vacate=Vacate.ANYWHERE)}
    after = plan(made, drained, workloads)
    assert where(after) == {"large": ["a"], "small": ["b"], "one": ["b"], "two": ["b"]}, (
        "only what b cannot hold at all stays"
    )
    forced = plan(made, {**servers, "a": replace(drained["a"], vacate=Vacate.ALWAYS)}, workloads)
    assert where(forced) == {"small": ["b"], "one": ["b"], "two": ["b"]}
    assert forced.unplaced["large"].startswith("it needs 60 B")
    found = drain_plan(made, "a", "it is being drained", force=False)
    assert {(move.model, move.source.server, move.target.server) for move in found.moves} >= {("small", "a", "b")}
    assert found.plan.assignments == after.assignments
    assert (list(found.stays), dict(found.ends)) == (["large"], {})
    assert found.stays["large"] == forced.unplaced["large"]
    ended = drain_plan(made, "a", "it is being drained", force=True)
    assert (dict(ended.stays), list(ended.ends)) == ({}, ["large"])


def test_drain_ends_replicas_beyond_the_minimum_and_displaces_no_pinned_model() -> None:
    servers = named(host("a"), host("b"))
    workloads = wanted(cpu("two", 10, replicas=2), cpu("low", 60, guaranteed=True), cpu("high", 60, guaranteed=True))
    workloads["high"] = replace(workloads["high"], priority=5)
    made = plan(NO_PLAN, servers, workloads)
    (a,) = where(made)["high"]
    (b,) = where(made)["low"]
    assert {a, b} == {"a", "b"}
    drained = {**servers, a: host(a, drained="it is being drained", vacate=Vacate.ANYWHERE)}
    after = plan(made, drained, workloads)
    assert where(after) == {"two": [b], "low": [b], "high": [a]}, "a drain does not displace a lower priority"
    found = drain_plan(made, a, "it is being drained", force=False)
    assert found.ends == {"two": "the model keeps its minimum number of replicas elsewhere"}
    assert list(found.stays) == ["high"]


def test_server_that_is_about_to_end_keeps_only_the_last_replica_of_a_model() -> None:
    servers = named(host("a"), host("b"))
    workloads = wanted(cpu("two", 10, replicas=2, min_replicas=2), cpu("alone", 10, selector=(("name", "a"),)))
    servers["a"] = replace(servers["a"], labels={"name": "a"})
    made = plan(NO_PLAN, servers, workloads)
    assert where(made) == {"two": ["a", "b"], "alone": ["a"]}
    ending = {**servers, "a": replace(servers["a"], drained="its agent is about to stop", vacate=Vacate.LAST)}
    after = plan(made, ending, workloads)
    assert where(after) == {"two": ["b"], "alone": ["a"]}
    assert after.unplaced["two"].endswith("only 1 can run it (a: its agent is about to stop)")


def test_cordoned_server_keeps_its_replicas_and_gets_no_others() -> None:
    servers = named(host("a"), host("b", 20))
    made = plan(NO_PLAN, servers, wanted(cpu("old", 30)))
    closed = {**servers, "a": host("a", cordoned="it is cordoned")}
    after = plan(made, closed, wanted(cpu("old", 30), cpu("new", 10), cpu("big", 30)))
    assert where(after) == {"old": ["a"], "new": ["b"]}
    assert after.unplaced["big"].startswith("it needs 30 B, and a suitable server has at most 20 B")
    alone = plan(NO_PLAN, named(closed["a"]), wanted(cpu("m", 1)))
    assert alone.unplaced == {"m": "no suitable server takes new replicas (a: it is cordoned)"}


def test_a_replica_waits_for_the_only_suitable_server() -> None:
    made = plan(NO_PLAN, named(host("a", trouble="a is unreachable: refused")), wanted(cpu("m", 10)))
    assert made.assignments["m"][0].waits
    assert made.unplaced["m"] == "no suitable server answers: a is unreachable: refused"
    made = plan(made, named(host("a")), wanted(cpu("m", 10)))
    assert not made.assignments["m"][0].waits
    assert not made.unplaced


def test_guaranteed_replicas_do_not_share_memory_and_others_do() -> None:
    servers = named(host("a"), host("b"))
    soft = [cpu(f"s{number}", 60) for number in range(4)]
    made = plan(NO_PLAN, servers, wanted(*soft))
    assert sorted(map(len, map(list, where(made).values()))) == [1, 1, 1, 1]
    assert not made.unplaced
    guaranteed = [cpu(f"f{number}", 60, guaranteed=True) for number in range(3)]
    made = plan(NO_PLAN, servers, wanted(*guaranteed))
    assert list(made.unplaced) == ["f2"]
    assert "needs 60 B" in made.unplaced["f2"]
    assert "at most 40 B besides pinned models" in made.unplaced["f2"]
    important = replace(guaranteed[2], priority=1)
    made = plan(made, servers, wanted(*guaranteed[:2], important))
    assert "f2" in made.assignments
    assert len(made.unplaced) == 1


def test_a_guaranteed_replica_displaces_others_to_where_they_still_fit() -> None:
    servers = named(host("a"), host("b", 90))
    made = plan(NO_PLAN, servers, wanted(cpu("soft", 50)))
    assert where(made) == {"soft": ["b"]}
    made = plan(made, servers, wanted(cpu("soft", 50), cpu("firm", 80, guaranteed=True, selector=())))
    assert where(made)["firm"] != where(made)["soft"]
    tight = plan(NO_PLAN, named(host("a")), wanted(cpu("soft", 50), cpu("firm", 80, guaranteed=True)))
    assert where(tight) == {"firm": ["a"]}
    assert "soft" in tight.unplaced


def test_guaranteed_replicas_are_rearranged_to_make_room() -> None:
    servers = named(host("a", 10), host("b", 10))
    first = wanted(cpu("x", 4, guaranteed=True), cpu("y", 4, guaranteed=True, selector=()))
    made = plan(NO_PLAN, servers, first, Hints(cached={"x": frozenset({"a"}), "y": frozenset({"b"})}))
    assert where(made) == {"x": ["a"], "y": ["b"]}
    made = plan(made, servers, {**first, "z": cpu("z", 8, guaranteed=True)})
    assert not made.unplaced
    assert len({*where(made)["x"], *where(made)["y"]}) == 1


def test_without_budgets_replicas_are_spread_over_the_servers() -> None:
    servers = named(host("a", UNLIMITED), host("b", UNLIMITED), host("c", UNLIMITED))
    made = plan(NO_PLAN, servers, wanted(*(cpu(f"m{number}", 50) for number in range(6))))
    counts = [sum(server in names for names in where(made).values()) for server in servers]
    assert counts == [2, 2, 2]


# Properties

ZONES = ("", "a", "b")
LABELS = ((), (("gpu", "yes"),), (("team", "x"),))
PRODUCTS = ("NVIDIA L4", "NVIDIA H200")
servers_ = st.builds(
    lambda name, hosts, cards, zone, labels, trouble, products, numbered, drained, vacate, cordoned: Server(
        name,
        (
            Pool("host", hosts),
            *(Pool(f"gpu:{n}", size, n, products[n], size + 2, numbered) for n, size in enumerate(cards)),
        ),
        zone,
        dict(labels),
        trouble,
        drained,
        vacate,
        cordoned,
    ),
    st.sampled_from("abcde"),
    st.integers(0, 20),
    st.lists(st.integers(0, 20), max_size=2),
    st.sampled_from(ZONES),
    st.sampled_from(LABELS),
    st.sampled_from(("", "", "", "it is unreachable")),
    st.lists(st.sampled_from(PRODUCTS), min_size=2, max_size=2),
    st.sampled_from((True, True, True, False)),
    st.sampled_from(("", "", "", "it is drained")),
    st.sampled_from(list(Vacate)),
    st.sampled_from(("", "", "", "it is cordoned")),
)
sizes = st.sampled_from(({"cpu": 1}, {"cpu": 3}, {"cpu": 7}, {"gpu": 4}, {"gpu": 6, "cpu": 5}, {"gpu": 12}))
workloads_ = st.builds(
    lambda model, size, least, more, guaranteed, priority, selector, chosen: Workload(
        model, size, least + more, least, guaranteed, priority, selector, **chosen
    ),
    st.sampled_from([f"m{number}" for number in range(8)]),
    sizes,
    st.integers(1, 2),
    st.integers(0, 1),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from(LABELS),
    st.sampled_from(
        (
            {},
            {"gpu_count": 1},
            {"gpu_count": 2},
            {"gpus": (1,)},
            {"gpu_product": "l4"},
            {"gpu_count": 1, "gpu_product": "H200", "gpu_min_bytes": 8},
        )
    ),
)
fleets = st.lists(servers_, max_size=4, unique_by=lambda server: server.name)
model_states = st.lists(workloads_, max_size=8, unique_by=lambda workload: workload.model)
cached = st.dictionaries(
    st.sampled_from([f"m{number}" for number in range(8)]), st.frozensets(st.sampled_from("abcde"), max_size=2)
)


def assert_suits(workload: Workload, server: Server, devices: tuple[str, ...]) -> None:
    """Check that the devices of an assignment exist and match the request."""
    pools = {pool.name: pool for pool in server.pools}
    chosen = [pools[device] for device in devices]
    assert len({pool.name for pool in chosen}) == len(chosen) > 0
    cards = [pool for pool in server.pools if pool.gpu is not None]
    if chosen[0].gpu is None:
        assert len(chosen) == 1
        assert "cpu" in workload.bytes
        return
    assert all(pool.gpu is not None for pool in chosen)
    if workload.gpus:
        assert [pool.gpu for pool in chosen] == list(workload.gpus)
    elif workload.gpu_count is not None:
        assert len(chosen) == workload.gpu_count
    for pool in chosen:
        assert workload.gpu_product.lower() in pool.product.lower()
        assert pool.total_bytes >= workload.gpu_min_bytes
    if not all(pool.numbered for pool in chosen):
        assert len(chosen) == len(cards), "Triton cannot be restricted to some of them"


def assert_sound(made: Plan) -> None:
    """Check the invariants of every plan."""
    used: dict[tuple[str, str], int] = {}
    for model, assignments in made.assignments.items():
        workload = made.workloads[model]
        assert len({assignment.server for assignment in assignments}) == len(assignments), "two replicas on one server"
        assert len(assignments) <= workload.replicas
        for assignment in assignments:
            server = made.servers[assignment.server]
            assert assignment.waits == bool(server.trouble)
            assert all(server.labels.get(key) == value for key, value in workload.selector)
            assert_suits(workload, server, assignment.devices)
            for device in assignment.devices:
                used[assignment.server, device] = used.get((assignment.server, device), 0) + (
                    assignment.bytes if assignment.guaranteed else 0
                )
    for server in made.servers.values():
        for pool in server.pools:
            guaranteed = used.get((server.name, pool.name), 0)
            assert guaranteed <= pool.bytes, f"{server.name} {pool.name} is over its budget"
            room = made.server_usage.get(server.name)
            assert guaranteed == (room.guaranteed.get(pool.name, 0) if room else 0)
            for model in room.models if room else ():
                for assignment in made.assignments[model]:
                    if (
                        assignment.server == server.name
                        and pool.name in assignment.devices
                        and not assignment.guaranteed
                    ):
                        assert guaranteed + assignment.bytes <= pool.bytes, (
                            f"{model} can never be loaded besides pinned models"
                        )
    for model, workload in made.workloads.items():
        placed = [assignment for assignment in made.assignments.get(model, ()) if not assignment.waits]
        assert (len(placed) < workload.min_replicas) == (model in made.unplaced)


@given(st.lists(st.tuples(fleets, model_states, cached), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_sequence_of_events_breaks_a_budget_or_a_selector(
    history: Sequence[tuple[list[Server], list[Workload], dict[str, frozenset[str]]]],
) -> None:
    made = NO_PLAN
    for servers, workloads, files in history:
        before = made
        made = plan(before, named(*servers), wanted(*workloads), Hints(cached=files))
        assert_sound(made)
        for model, assignments in made.assignments.items():
            there = {assignment.server for assignment in before.assignments.get(model, ())}
            seated = {assignment.server for assignment in assignments if not assignment.waits}
            closed = {name for name in seated if made.servers[name].closed}
            assert closed <= there, "a new replica was placed on a drained or cordoned server"
            forced = {name for name in seated if made.servers[name].drained} & {
                server.name for server in servers if server.vacate is Vacate.ALWAYS
            }
            assert not forced, "a replica stayed on a server that was drained with force"
        again = plan(before, dict(named(*servers)), dict(wanted(*workloads)), Hints(cached=dict(files)))
        assert (again.assignments, again.unplaced) == (made.assignments, made.unplaced), (
            "the same arguments, another plan"
        )


@given(fleets, model_states, workloads_)
@settings(max_examples=200, deadline=None)
def test_no_replica_moves_needlessly(servers: list[Server], workloads: list[Workload], more: Workload) -> None:
    made = plan(NO_PLAN, named(*servers), wanted(*workloads))
    equal = plan(made, {s.name: replace(s) for s in servers}, {w.model: replace(w) for w in workloads})
    assert equal is made, "nothing changed"
    if more.guaranteed or any(one.model == more.model for one in workloads):
        return
    after = plan(made, named(*servers), wanted(*workloads, more))
    assert {
        model: assignments for model, assignments in after.assignments.items() if model != more.model
    } == made.assignments


@given(fleets, model_states)
@settings(max_examples=200, deadline=None)
def test_a_model_lacks_replicas_only_if_no_server_could_load_one(
    servers: list[Server], workloads: list[Workload]
) -> None:
    made = plan(NO_PLAN, named(*servers), wanted(*workloads))
    for model in made.unplaced:
        workload = made.workloads[model]
        if workload.guaranteed:
            continue
        taken = {assignment.server for assignment in made.assignments.get(model, ())}
        for server in servers:
            if server.name in taken or server.closed:
                continue
            guaranteed = made.server_usage[server.name].guaranteed if server.name in made.server_usage else {}
            assert not _choices(workload, server, {p.name: p.bytes - guaranteed.get(p.name, 0) for p in server.pools})


@given(fleets, st.lists(workloads_, max_size=5, unique_by=lambda workload: workload.model))
@settings(max_examples=300, deadline=None)
def test_pinned_models_are_all_placed_wherever_an_arrangement_exists(
    servers: list[Server], workloads: list[Workload]
) -> None:
    """Compare with an exhaustive search over all arrangements."""
    guaranteed = [replace(one, guaranteed=True, priority=0, replicas=one.min_replicas) for one in workloads]
    healthy = [replace(server, trouble="", drained="", cordoned="") for server in servers]
    made = plan(NO_PLAN, named(*healthy), wanted(*guaranteed))
    assert_sound(made)
    assert bool(made.unplaced) != _arrangement_exists(guaranteed, healthy)


@given(fleets, st.lists(workloads_, max_size=5, unique_by=lambda workload: workload.model), st.randoms())
@settings(max_examples=200, deadline=None)
def test_adding_models_one_by_one_places_them_if_possible(
    servers: list[Server], workloads: list[Workload], random
) -> None:
    guaranteed = [replace(one, guaranteed=True, priority=0, replicas=one.min_replicas) for one in workloads]
    healthy = named(*(replace(server, trouble="", drained="", cordoned="") for server in servers))
    made = NO_PLAN
    there: dict[str, Workload] = {}
    for one in random.sample(guaranteed, len(guaranteed)):
        there = {**there, one.model: one}
        made = plan(made, healthy, there)
        assert_sound(made)
    assert bool(made.unplaced) != _arrangement_exists(guaranteed, list(healthy.values()))


def _choices(workload: Workload, server: Server, room: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return the possible device sets of a replica on a server, computed independently of the planner."""
    if any(server.labels.get(key) != value for key, value in workload.selector):
        return []
    cards = [pool for pool in server.pools if pool.gpu is not None]
    if "gpu" in workload.bytes and (cards or "cpu" not in workload.bytes):
        able = [
            pool
            for pool in cards
            if workload.gpu_product.lower() in pool.product.lower()
            and pool.total_bytes >= workload.gpu_min_bytes
            and (not workload.gpus or pool.gpu in workload.gpus)
        ]
        need, names = workload.bytes["gpu"], [pool.name for pool in able]
        count = len(workload.gpus) or workload.gpu_count or len(able)
        if not able or (not all(pool.numbered for pool in able) and (count != len(cards) or workload.gpus)):
            return []
    else:
        need, names, count = workload.bytes["cpu"], ["host"], 1
    return [some for some in itertools.combinations(names, count) if all(room[name] >= need for name in some)]


def _arrangement_exists(workloads: Sequence[Workload], servers: Iterable[Server]) -> bool:
    known = {server.name: server for server in servers}
    replicas = [one for one in workloads for _ in range(one.min_replicas)]
    server_usage = {server.name: {pool.name: pool.bytes for pool in server.pools} for server in known.values()}

    def place(at: int, taken: frozenset[tuple[str, str]]) -> bool:
        if at == len(replicas):
            return True
        one = replicas[at]
        for name, server in known.items():
            if (one.model, name) in taken:
                continue
            for devices in _choices(one, server, server_usage[name]):
                kind = "cpu" if devices == ("host",) else "gpu"
                for device in devices:
                    server_usage[name][device] -= one.bytes[kind]
                if place(at + 1, taken | {(one.model, name)}):
                    return True
                for device in devices:
                    server_usage[name][device] += one.bytes[kind]
        return False

    return place(0, frozenset())


@pytest.mark.parametrize("guaranteed", [True, False])
def test_an_assignment_states_its_memory(guaranteed: bool) -> None:
    made = plan(NO_PLAN, named(host("a")), wanted(cpu("m", 10, guaranteed=guaranteed)))
    assert made.assignments["m"] == (Assignment("a", ("host",), 10, guaranteed, "the only server"),)
    made = plan(made, named(host("a")), wanted(cpu("m", 20, guaranteed=guaranteed)))
    assert made.assignments["m"][0].bytes == 20
