"""How many servers each pool needs."""

import pytest

from controlplane.placement.planner import plan
from controlplane.placement.types import NO_PLAN, Plan, Pool, Server, Workload
from controlplane.placement.wanted import wanted_servers

LABEL = "pool"


def server(name: str, size: int = 100, pool: str = "", **fields: object) -> Server:
    labels = {LABEL: pool} if pool else {}
    return Server(name, (Pool("host", size),), labels=labels, **fields)  # type: ignore[arg-type]


def pinned(model: str, size: int, pool: str = "", **fields: object) -> Workload:
    selector = ((LABEL, pool),) if pool else ()
    fields = {"guaranteed": True, "selector": selector, **fields}
    return Workload(model, {"cpu": size}, **fields)  # type: ignore[arg-type]


def made(servers: list[Server], *models: Workload) -> Plan:
    return plan(NO_PLAN, {one.name: one for one in servers}, {one.model: one for one in models})


def test_servers_in_use_and_no_more() -> None:
    found = made([server("a"), server("b"), server("c", pool="big")], pinned("m", 60), pinned("n", 30))
    assert wanted_servers(found, LABEL) == {"default": 1, "big": 0}


@pytest.mark.parametrize(("models", "servers"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_what_does_not_fit_needs_further_servers(models: int, servers: int) -> None:
    found = made([server("a")], *(pinned(f"m{number}", 50) for number in range(models)))
    assert wanted_servers(found, LABEL) == {"default": servers}


def test_further_servers_stop_where_they_do_not_help() -> None:
    found = made([server("a")], pinned("m", 100), pinned("huge", 200))
    assert wanted_servers(found, LABEL) == {"default": 1}


def test_replicas_are_on_different_servers() -> None:
    assert wanted_servers(made([server("a")], pinned("m", 10, replicas=3, min_replicas=3)), LABEL) == {"default": 3}
    scaled = Workload("m", {"cpu": 10}, replicas=2, min_replicas=1)
    assert wanted_servers(made([server("a")], scaled), LABEL) == {"default": 2}


def test_pool_without_servers_scales_from_zero() -> None:
    found = made([server("a")], pinned("m", 50), pinned("big-model", 50, "big"))
    assert wanted_servers(found, LABEL) == {"default": 1, "big": 1}
    assert wanted_servers(made([], pinned("m", 50, "big", replicas=2, min_replicas=2)), LABEL) == {"big": 2}


def test_pool_whose_servers_are_all_away_wants_one_for_a_model_that_waits() -> None:
    away = [server(name, pool="big", trouble="not reachable") for name in ("a", "b")]
    waiting = Workload("m", {"cpu": 50}, selector=((LABEL, "big"),))
    assert wanted_servers(made(away, waiting), LABEL) == {"big": 1}
    assert wanted_servers(made(away, waiting), LABEL, {"m"}) == {"big": 0}
    assert wanted_servers(made(away), LABEL) == {"big": 0}


def test_server_in_trouble_is_replaced_and_its_own_place_is_not_counted() -> None:
    found = made([server("a", trouble="not reachable"), server("b")], pinned("m", 60), pinned("n", 60))
    assert wanted_servers(found, LABEL) == {"default": 2}


def test_models_of_one_pool_do_not_count_for_another() -> None:
    servers = [server("a", pool="small"), server("b", pool="big")]
    full = made(servers, pinned("m", 100, "small"), pinned("n", 100, "small"), pinned("o", 100, "big"))
    assert wanted_servers(full, LABEL) == {"small": 2, "big": 1}
