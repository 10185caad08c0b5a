"""The table and the commands that change it. Pure."""

from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.haproxy.route_table import (
    GRANTS,
    KEYS,
    MAPS,
    MODELS,
    SPLITS,
    Table,
    arrange,
    commands,
    empty,
)
from controlplane.reconciler.routes import Route

SERVERS = ("s0", "s1", "s2")
_routes = st.dictionaries(
    st.sampled_from([f"m{number}" for number in range(6)]),
    st.builds(
        lambda servers, version: Route(tuple(sorted(servers)), version),
        st.sets(st.sampled_from(SERVERS), min_size=1),
        st.none() | st.integers(1, 3),
    ),
)
_direct = st.dictionaries(
    st.sampled_from(["k0", "k1", "any-client"]), st.sampled_from([(), ("m1",), ("m*",), ("x*", "m2")])
)


class Machine:
    """What HAProxy makes of the commands."""

    def __init__(self, slots: int) -> None:
        self.slots: list[set[str]] = [set() for _ in range(slots)]
        self.maps: dict[str, dict[str, str]] = {name: {} for name in MAPS}

    def run(self, command: str, wrong: Table) -> None:
        match command.split():
            case ["del", "map", name, key]:
                del self.maps[name][key]
            case ["add", "map", name, key, value]:
                assert key not in self.maps[name], "HAProxy would keep both"
                self.maps[name][key] = value
            case ["set", "map", name, key, value]:
                assert key in self.maps[name], "HAProxy would refuse it"
                self.maps[name][key] = value
            case ["set", "server", place, "state", state]:
                kind, _, rest = place.partition("-")
                slot, _, server = rest.partition("/")
                if kind == "h":
                    (self.slots[int(slot)].add if state == "ready" else self.slots[int(slot)].discard)(server)
            case _:
                raise AssertionError(command)


_splits = st.dictionaries(st.sampled_from([f"m{number}" for number in range(6)]), st.integers(0, 1_000_000))


@given(st.lists(st.tuples(_routes, _direct, _splits), min_size=1, max_size=6), st.integers(1, 4))
def test_commands_never_route_to_server_without_model(
    steps: list[tuple[dict[str, Route], dict[str, tuple[str, ...]], dict[str, int]]], slots: int
) -> None:
    table, machine = empty(slots), Machine(slots)
    for routes, direct, splits in steps:
        before, table = table, arrange(table, routes, direct, splits)
        for command in commands(before, table, SERVERS):
            machine.run(command, table)
            stays = before.splits.keys() & table.splits.keys()
            assert machine.maps[SPLITS].keys() >= stays, "no request goes by as if there were no rollout"
            for model, slot in machine.maps[MODELS].items():
                sent = machine.slots[int(slot)]
                old = before.slots[before.models[model]] if model in before.models else set()
                assert sent in (set(routes[model].servers) if model in routes else None, set(old))
        assert machine.maps == {name: {k: str(v) for k, v in table.entries(name).items()} for name in MAPS}
        assert machine.slots == [set(servers) for servers in table.slots]
        for name, number in table.models.items():
            assert table.slots[number] == set(routes[name].servers)
        if len({route.servers for route in routes.values()}) <= slots:
            assert table.models.keys() == routes.keys()
        assert table.splits == {model: parts for model, parts in splits.items() if model in table.models}
        assert table.versions == {model: str(routes[model].version or "mixed") for model in table.models}


def test_key_is_granted_only_its_models() -> None:
    routes = {"team-a": Route(("s0",)), "other": Route(("s0",))}
    table = arrange(empty(1), routes, {"wide": (), "team": ("team-*",)}, {})
    assert table.entries(KEYS) == {"wide": "*", "team": "team"}
    assert table.entries(GRANTS) == {"team/team-a": 1}


def test_model_with_one_replica_has_slot_with_any_number_of_servers() -> None:
    servers = [f"s{number}" for number in range(1000)]
    table = empty(1, servers)
    routes = {f"m{number}": Route((servers[number % 1000],), 1) for number in range(10_000)}
    pair, other = Route(("s1", "s2"), 1), Route(("s3", "s4"), 1)
    after = arrange(table, {**routes, "pair": pair, "other": other}, {}, {})
    assert {model: after.slots[after.models[model]] for model in routes} == {
        model: set(route.servers) for model, route in routes.items()
    }
    assert {"pair", "other"} - after.models.keys() == {"other"}, "the one further slot is for the first of them"
    assert after.slots[: after.fixed] == table.slots[: table.fixed]
    assert not [one for one in commands(table, after, servers) if one.startswith("set server") and "-1000/" not in one]
