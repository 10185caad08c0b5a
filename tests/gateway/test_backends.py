"""The spare servers in HAProxy's configuration."""

from types import SimpleNamespace
from typing import Any

import pytest

from controlplane.errors import InvalidInputError
from controlplane.gateway.haproxy.backends import Backends, resolved


def server(name: str, host: str = "10.0.0.1") -> Any:
    return SimpleNamespace(name=name, http_url=f"http://{host}:8000", client=SimpleNamespace(grpc_url=f"{host}:8001"))


def test_servers_take_spares_and_give_them_back() -> None:
    backends = Backends([server("a")], spare=2)
    assert [one.spare for one in backends.all] == [False, True, True]
    assert backends.join(server("b"))
    assert backends.join(server("c", "10.0.0.3"))
    assert not backends.join(server("d")), "none is left"
    assert backends.keys == {"a": "s0", "b": "s1", "c": "s2"}
    assert [(one.key, one.http) for one in backends.take_changed()] == [
        ("s1", "10.0.0.1:8000"),
        ("s2", "10.0.0.3:8000"),
    ]
    backends.leave("b")
    (changed,) = backends.take_changed()
    assert (changed.key, changed.spare) == ("s1", True)
    assert backends.join(server("e"))
    assert backends.keys == {"a": "s0", "c": "s2", "e": "s1"}


def test_a_new_haproxy_has_spares_for_all_servers_that_wait() -> None:
    backends = Backends([], spare=1)
    assert backends.join(server("a"))
    assert not backends.join(server("b"))
    assert not backends.join(server("c"))
    assert backends.grow()
    assert backends.keys.keys() == {"a", "b", "c"}
    assert sum(one.spare for one in backends.all) == 1
    assert backends.take_changed() == [], "HAProxy reads all addresses when it starts"
    assert not backends.grow()


def test_server_with_an_unknown_address_is_left_to_the_activator() -> None:
    backends = Backends([], spare=1)
    assert backends.join(server("a", "no-such-host.invalid"))
    (changed,) = backends.take_changed()
    backends.refuse(changed)
    assert (backends.keys, [one.spare for one in backends.all], backends.take_changed()) == ({}, [True], [])
    with pytest.raises(InvalidInputError, match="http://host:port"):
        backends.join(SimpleNamespace(name="b", http_url="", client=SimpleNamespace(grpc_url="h:1")))  # type: ignore[arg-type]


async def test_host_names_are_looked_up() -> None:
    assert await resolved("127.0.0.1:8000") == ("127.0.0.1", "8000")
    assert await resolved("[::1]:8000") == ("::1", "8000")
    with pytest.raises(InvalidInputError, match=r"the host name 'no-such-host\.invalid' is unknown here"):
        await resolved("no-such-host.invalid:1")
