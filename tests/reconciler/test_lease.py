"""The lease, with several holders on one store and clocks that the test moves."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.reconciler.lease import Holder, Lease
from controlplane.registry.chain import Chain
from controlplane.storage.memory import MemoryStore


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def lease(store: MemoryStore, clock: Clock, machine: str) -> Lease:
    """A lease of a process on another machine, whose clock shows something else."""
    made = Lease(store, seconds=10.0, clock=clock)
    made._me = dataclasses.replace(made._me, id=machine, machine=machine)
    return made


def test_one_leads_until_it_is_silent_for_the_whole_duration() -> None:
    store, here, there = MemoryStore(), Clock(100.0), Clock(5_000_000.0)
    one, other = lease(store, here, "one"), lease(store, there, "other")
    one.attempt()
    other.attempt()
    assert (one.held, other.held) == (True, False)
    assert one.leader == other.leader
    there.now += 9.9
    other.attempt()
    assert not other.held
    one.attempt()  # a renewal, seen by the other: its count starts again
    other.attempt()
    there.now += 9.9
    other.attempt()
    assert not other.held
    here.now += 9.1
    assert not one.held, "the holder stops before another may start"
    there.now += 0.2
    other.attempt()
    assert other.held
    assert other.fencing_number == 3
    one.attempt()
    assert not one.held


def test_a_lease_given_back_is_free_at_once() -> None:
    store, clock = MemoryStore(), Clock()
    one, other = lease(store, clock, "one"), lease(store, clock, "other")
    one.attempt()
    one._release()
    other.attempt()
    assert other.held


def test_who_has_the_same_tenure_knows_that_nobody_led_in_between() -> None:
    store, clock = MemoryStore(), Clock()
    one, other = lease(store, clock, "one"), lease(store, clock, "other")
    one.attempt()
    other.attempt()
    first = one.tenure
    assert (first > 0, other.tenure) == (True, 0)
    clock.now += 9.5
    assert one.tenure == 0
    one.attempt()
    assert one.tenure == first, "it ran out, and nobody took it"
    other.attempt()
    clock.now += 10.5
    other.attempt()
    other._release()
    one.attempt()
    assert one.held
    assert one.tenure > first, "another had it"


def test_a_process_that_is_gone_need_not_be_waited_for() -> None:
    me = Holder.myself()
    assert not me.is_gone(me)
    assert dataclasses.replace(me, pid=2**22 - 3).is_gone(me)
    assert dataclasses.replace(me, started=me.started - 100).is_gone(me), "the number was given to another process"
    assert not dataclasses.replace(me, machine="elsewhere", pid=2**22 - 3).is_gone(me), "it cannot be seen from here"
    assert not dataclasses.replace(me, machine="", pid=2**22 - 3).is_gone(dataclasses.replace(me, machine=""))


def test_the_chain_stays_short() -> None:
    store, clock = MemoryStore(), Clock()
    one = lease(store, clock, "one")
    for _ in range(20):
        one.attempt()
        clock.now += 3
    assert len(list(Chain(store, "leases/reconciler/", pruned=True).history())) <= 6


@given(moves=st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 12.0)), max_size=40))
def test_there_are_never_two_leaders(moves: list[tuple[int, float]]) -> None:
    store, clock = MemoryStore(), Clock()
    leases = [lease(store, clock, name) for name in ("a", "b", "c")]
    for who, seconds in moves:
        clock.now += seconds
        leases[who].attempt()
        assert sum(each.held for each in leases) <= 1


def test_a_store_that_fails_ends_the_lease_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from controlplane.errors import StoreUnavailableError

    store, clock = MemoryStore(), Clock()
    one = lease(store, clock, "one")
    one.attempt()

    def fails(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("down")

    monkeypatch.setattr(store, "list", fails)
    clock.now += 5
    with pytest.raises(StoreUnavailableError):
        one.attempt()
    assert one.held
    clock.now += 4.5
    assert not one.held
