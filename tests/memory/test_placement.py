"""Who sits where: examples that a person can check, and properties over histories that hypothesis makes up."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.memory.placement.planning import plan
from controlplane.memory.placement.types import NO_PLAN, UNLIMITED, Hints, Plan, Pool, Seat, Server, Workload


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
    return {model: sorted(seat.server for seat in seats) for model, seats in made.seats.items()}


def test_it_packs_so_that_large_gaps_stay() -> None:
    made = plan(NO_PLAN, named(host("a"), host("b")), wanted(cpu("one", 30), cpu("two", 30), cpu("three", 30)))
    assert len({seat.server for seats in made.seats.values() for seat in seats}) == 1
    assert "leaves 70 B" in made.seats["one"][0].why


def test_copies_go_to_different_servers_and_zones() -> None:
    servers = named(host("a1", zone="a"), host("a2", zone="a"), host("b1", zone="b"))
    made = plan(NO_PLAN, servers, wanted(cpu("m", 10, copies=2, min_copies=2)))
    assert {servers[seat.server].zone for seat in made.seats["m"]} == {"a", "b"}
    made = plan(made, servers, wanted(cpu("m", 10, copies=3, min_copies=3)))
    assert where(made)["m"] == ["a1", "a2", "b1"]
    made = plan(made, servers, wanted(cpu("m", 10, copies=4, min_copies=4)))
    assert where(made)["m"] == ["a1", "a2", "b1"]
    assert made.lacking["m"] == "4 copies are wanted on different servers, and 3 can run it"


def test_it_prefers_where_it_is_loaded_or_its_files_are() -> None:
    servers = named(host("a"), host("b"), host("c"))
    hints = Hints(cached={"m": frozenset({"b"})})
    made = plan(NO_PLAN, servers, wanted(cpu("m", 10)), hints)
    assert where(made) == {"m": ["b"]}
    assert "its files are there" in made.seats["m"][0].why
    hints = Hints(cached={"m": frozenset({"b"})}, loaded={"m": {"c": ("host",)}})
    assert where(plan(NO_PLAN, servers, wanted(cpu("m", 10)), hints)) == {"m": ["c"]}


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
    assert made.seats["by-product"][0].server == "large"
    assert made.seats["by-size"][0].devices == ("gpu:1",)
    assert (made.seats["by-number"][0].server, made.seats["by-number"][0].devices) == ("large", ("gpu:2",))
    assert made.seats["all"][0].devices == ("gpu:0", "gpu:1", "gpu:2")
    assert made.seats["by-label"][0].server in {"small", "large"}
    assert made.lacking == {
        "nowhere": "no server has the labels team=search",
        "too-many": "none of the 3 servers has 4 GPUs",
    }


def test_either_kind_uses_the_gpu_where_there_is_one() -> None:
    either = Workload("m", {"cpu": 10, "gpu": 10}, gpu_count=1)
    made = plan(NO_PLAN, named(host("a"), gpus("b", 50)), wanted(either))
    assert (made.seats["m"][0].server, made.seats["m"][0].devices) == ("b", ("gpu:0",))
    full = plan(NO_PLAN, named(host("a"), gpus("b", 5)), wanted(either))
    assert (full.seats["m"][0].server, full.seats["m"][0].devices) == ("a", ("host",))


def test_a_dead_servers_copies_go_elsewhere_and_nothing_else_moves() -> None:
    servers = named(host("a"), host("b"), host("c"))
    workloads = wanted(*(cpu(f"m{number}", 20) for number in range(10)))
    made = plan(NO_PLAN, servers, workloads)
    lost = {model for model, seats in made.seats.items() if seats[0].server == "a"}
    assert lost
    after = plan(made, {**servers, "a": host("a", trouble="a is unreachable")}, workloads)
    assert not after.lacking
    assert all(after.seats[model] == made.seats[model] for model in workloads.keys() - lost)
    assert all(after.seats[model][0].server != "a" for model in lost)
    back = plan(after, servers, workloads)
    assert back.seats == after.seats


def test_what_is_on_a_drained_server_goes_where_there_is_a_gap_and_stays_where_there_is_none() -> None:
    servers = named(host("a"), host("b", 50), host("c", 200, trouble="c is unreachable"))
    workloads = wanted(cpu("large", 60), cpu("small", 30, firm=True))
    made = plan(NO_PLAN, servers, workloads, Hints(cached={"small": frozenset({"a"})}))
    assert where(made) == {"large": ["a"], "small": ["a"]}
    drained = {**servers, "a": host("a", drained="it is drained to free its memory")}
    after = plan(made, drained, workloads)
    assert where(after) == {"large": ["a"], "small": ["b"]}, "nothing shares memory for a restart"
    more = {**workloads, "new": cpu("new", 10)}
    assert where(plan(after, drained, more))["new"] == ["b"], "nothing new is placed on it"
    back = plan(after, servers, workloads)
    assert back.seats == after.seats, "what is somewhere stays there"


def test_where_there_is_no_other_server_it_waits() -> None:
    made = plan(NO_PLAN, named(host("a", trouble="a is unreachable: refused")), wanted(cpu("m", 10)))
    assert made.seats["m"][0].waits
    assert made.lacking["m"] == "no server that could run it answers: a is unreachable: refused"
    made = plan(made, named(host("a")), wanted(cpu("m", 10)))
    assert not made.seats["m"][0].waits
    assert not made.lacking


def test_soft_ones_share_and_firm_ones_do_not() -> None:
    servers = named(host("a"), host("b"))
    soft = [cpu(f"s{number}", 60) for number in range(4)]
    made = plan(NO_PLAN, servers, wanted(*soft))
    assert sorted(map(len, map(list, where(made).values()))) == [1, 1, 1, 1]
    assert not made.lacking
    firm = [cpu(f"f{number}", 60, firm=True) for number in range(3)]
    made = plan(NO_PLAN, servers, wanted(*firm))
    assert list(made.lacking) == ["f2"]
    assert "needs 60 B" in made.lacking["f2"]
    assert "at most 40 B beside what is pinned" in made.lacking["f2"]
    important = replace(firm[2], priority=1)
    made = plan(made, servers, wanted(*firm[:2], important))
    assert "f2" in made.seats
    assert len(made.lacking) == 1


def test_a_firm_one_pushes_soft_ones_to_where_they_still_can_be_loaded() -> None:
    servers = named(host("a"), host("b", 90))
    made = plan(NO_PLAN, servers, wanted(cpu("soft", 50)))
    assert where(made) == {"soft": ["b"]}
    made = plan(made, servers, wanted(cpu("soft", 50), cpu("firm", 80, firm=True, selector=())))
    assert where(made)["firm"] != where(made)["soft"]
    tight = plan(NO_PLAN, named(host("a")), wanted(cpu("soft", 50), cpu("firm", 80, firm=True)))
    assert where(tight) == {"firm": ["a"]}
    assert "soft" in tight.lacking


def test_firm_ones_are_rearranged_where_that_makes_room() -> None:
    servers = named(host("a", 10), host("b", 10))
    first = wanted(cpu("x", 4, firm=True), cpu("y", 4, firm=True, selector=()))
    made = plan(NO_PLAN, servers, first, Hints(cached={"x": frozenset({"a"}), "y": frozenset({"b"})}))
    assert where(made) == {"x": ["a"], "y": ["b"]}
    made = plan(made, servers, {**first, "z": cpu("z", 8, firm=True)})
    assert not made.lacking
    assert len({*where(made)["x"], *where(made)["y"]}) == 1


def test_without_budgets_copies_spread_over_the_servers() -> None:
    servers = named(host("a", UNLIMITED), host("b", UNLIMITED), host("c", UNLIMITED))
    made = plan(NO_PLAN, servers, wanted(*(cpu(f"m{number}", 50) for number in range(6))))
    counts = [sum(server in names for names in where(made).values()) for server in servers]
    assert counts == [2, 2, 2]


# Properties

ZONES = ("", "a", "b")
LABELS = ((), (("gpu", "yes"),), (("team", "x"),))
PRODUCTS = ("NVIDIA L4", "NVIDIA H200")
servers_ = st.builds(
    lambda name, hosts, cards, zone, labels, trouble, products, numbered, drained: Server(
        name,
        (
            Pool("host", hosts),
            *(Pool(f"gpu:{n}", size, n, products[n], size + 2, numbered) for n, size in enumerate(cards)),
        ),
        zone,
        dict(labels),
        trouble,
        drained,
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
)
sizes = st.sampled_from(({"cpu": 1}, {"cpu": 3}, {"cpu": 7}, {"gpu": 4}, {"gpu": 6, "cpu": 5}, {"gpu": 12}))
workloads_ = st.builds(
    lambda model, size, least, more, firm, priority, selector, chosen: Workload(
        model, size, least + more, least, firm, priority, selector, **chosen
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
tenants = st.lists(workloads_, max_size=8, unique_by=lambda workload: workload.model)
cached = st.dictionaries(
    st.sampled_from([f"m{number}" for number in range(8)]), st.frozensets(st.sampled_from("abcde"), max_size=2)
)


def assert_suits(workload: Workload, server: Server, devices: tuple[str, ...]) -> None:
    """The devices of a seat are there, and are what was asked for."""
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
        assert len(chosen) == len(cards), "Triton cannot be told which of them"


def assert_sound(made: Plan) -> None:
    """What holds of every plan, whatever came before."""
    used: dict[tuple[str, str], int] = {}
    for model, seats in made.seats.items():
        workload = made.workloads[model]
        assert len({seat.server for seat in seats}) == len(seats), "two copies on one server"
        assert len(seats) <= workload.copies
        for seat in seats:
            server = made.servers[seat.server]
            assert seat.waits == bool(server.trouble)
            assert all(server.labels.get(key) == value for key, value in workload.selector)
            assert_suits(workload, server, seat.devices)
            for device in seat.devices:
                used[seat.server, device] = used.get((seat.server, device), 0) + (seat.bytes if seat.firm else 0)
    for server in made.servers.values():
        for pool in server.pools:
            firm = used.get((server.name, pool.name), 0)
            assert firm <= pool.bytes, f"{server.name} {pool.name} is over its budget"
            room = made.rooms.get(server.name)
            assert firm == (room.firm.get(pool.name, 0) if room else 0)
            for model in room.models if room else ():
                for seat in made.seats[model]:
                    if seat.server == server.name and pool.name in seat.devices and not seat.firm:
                        assert firm + seat.bytes <= pool.bytes, f"{model} can never be loaded beside what is pinned"
    for model, workload in made.workloads.items():
        placed = [seat for seat in made.seats.get(model, ()) if not seat.waits]
        assert (len(placed) < workload.min_copies) == (model in made.lacking)


@given(st.lists(st.tuples(fleets, tenants, cached), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_sequence_of_events_breaks_a_budget_or_a_selector(
    history: Sequence[tuple[list[Server], list[Workload], dict[str, frozenset[str]]]],
) -> None:
    made = NO_PLAN
    for servers, workloads, files in history:
        before = made
        made = plan(before, named(*servers), wanted(*workloads), Hints(cached=files))
        assert_sound(made)
        for model, seats in made.seats.items():
            there = {seat.server for seat in before.seats.get(model, ())}
            drained = {seat.server for seat in seats if made.servers[seat.server].drained and not seat.waits}
            assert drained <= there, "something new was placed on a server that is drained"
        again = plan(before, dict(named(*servers)), dict(wanted(*workloads)), Hints(cached=dict(files)))
        assert (again.seats, again.lacking) == (made.seats, made.lacking), "the same arguments, another plan"


@given(fleets, tenants, workloads_)
@settings(max_examples=200, deadline=None)
def test_nothing_moves_needlessly(servers: list[Server], workloads: list[Workload], more: Workload) -> None:
    made = plan(NO_PLAN, named(*servers), wanted(*workloads))
    equal = plan(made, {s.name: replace(s) for s in servers}, {w.model: replace(w) for w in workloads})
    assert equal is made, "nothing changed"
    if more.firm or any(one.model == more.model for one in workloads):
        return
    after = plan(made, named(*servers), wanted(*workloads, more))
    assert {model: seats for model, seats in after.seats.items() if model != more.model} == made.seats


@given(fleets, tenants)
@settings(max_examples=200, deadline=None)
def test_a_soft_model_lacks_copies_only_where_no_server_could_ever_load_one(
    servers: list[Server], workloads: list[Workload]
) -> None:
    made = plan(NO_PLAN, named(*servers), wanted(*workloads))
    for model in made.lacking:
        workload = made.workloads[model]
        if workload.firm:
            continue
        taken = {seat.server for seat in made.seats.get(model, ())}
        for server in servers:
            if server.name in taken or server.closed:
                continue
            firm = made.rooms[server.name].firm if server.name in made.rooms else {}
            assert not _choices(workload, server, {p.name: p.bytes - firm.get(p.name, 0) for p in server.pools})


@given(fleets, st.lists(workloads_, max_size=5, unique_by=lambda workload: workload.model))
@settings(max_examples=300, deadline=None)
def test_pinned_models_are_all_placed_wherever_an_arrangement_exists(
    servers: list[Server], workloads: list[Workload]
) -> None:
    """Against all arrangements there are, gone through one by one."""
    firm = [replace(one, firm=True, priority=0, copies=one.min_copies) for one in workloads]
    well = [replace(server, trouble="", drained="") for server in servers]
    made = plan(NO_PLAN, named(*well), wanted(*firm))
    assert_sound(made)
    assert bool(made.lacking) != _arrangement_exists(firm, well)


@given(fleets, st.lists(workloads_, max_size=5, unique_by=lambda workload: workload.model), st.randoms())
@settings(max_examples=200, deadline=None)
def test_it_gets_there_one_by_one_too(servers: list[Server], workloads: list[Workload], random) -> None:
    firm = [replace(one, firm=True, priority=0, copies=one.min_copies) for one in workloads]
    well = named(*(replace(server, trouble="", drained="") for server in servers))
    made = NO_PLAN
    there: dict[str, Workload] = {}
    for one in random.sample(firm, len(firm)):
        there = {**there, one.model: one}
        made = plan(made, well, there)
        assert_sound(made)
    assert bool(made.lacking) != _arrangement_exists(firm, list(well.values()))


def _choices(workload: Workload, server: Server, room: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The sets of devices that a copy could have on a server; written anew, not with the planner's own code."""
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
    copies = [one for one in workloads for _ in range(one.min_copies)]
    rooms = {server.name: {pool.name: pool.bytes for pool in server.pools} for server in known.values()}

    def place(at: int, taken: frozenset[tuple[str, str]]) -> bool:
        if at == len(copies):
            return True
        one = copies[at]
        for name, server in known.items():
            if (one.model, name) in taken:
                continue
            for devices in _choices(one, server, rooms[name]):
                kind = "cpu" if devices == ("host",) else "gpu"
                for device in devices:
                    rooms[name][device] -= one.bytes[kind]
                if place(at + 1, taken | {(one.model, name)}):
                    return True
                for device in devices:
                    rooms[name][device] += one.bytes[kind]
        return False

    return place(0, frozenset())


@pytest.mark.parametrize("firm", [True, False])
def test_a_seat_says_what_it_takes(firm: bool) -> None:
    made = plan(NO_PLAN, named(host("a")), wanted(cpu("m", 10, firm=firm)))
    assert made.seats["m"] == (Seat("a", ("host",), 10, firm, "the only server"),)
    made = plan(made, named(host("a")), wanted(cpu("m", 20, firm=firm)))
    assert made.seats["m"][0].bytes == 20
