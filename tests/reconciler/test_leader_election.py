"""The lease, with several holders on one store and clocks that the test moves."""

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.reconciler import leader_election as leases
from controlplane.reconciler.leader_election import Holder, Lease
from controlplane.registry.chain import Chain
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.memory import MemoryStore


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def lease(store: MemoryStore, clock: Clock, machine: str) -> Lease:
    """Create a lease of a process on another machine with another clock."""
    made = Lease(store, seconds=10.0, clock=clock)
    made._me = dataclasses.replace(made._me, id=machine, machine=machine)
    return made


def test_leader_keeps_lease_until_silent_for_its_duration() -> None:
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
    assert not one.held, "the holder stops before another can start"
    there.now += 0.2
    other.attempt()
    assert other.held
    assert other.fencing_number == 3
    one.attempt()
    assert not one.held


def test_process_that_may_not_lead_never_takes_the_lease() -> None:
    """Neither a free one nor an expired one; it learns who holds it."""
    store, here, there = MemoryStore(), Clock(100.0), Clock(5_000_000.0)
    gateway = Lease(store, seconds=10.0, clock=there, may_lead=False)
    gateway.attempt()
    assert not gateway.held
    one = lease(store, here, "one")
    one.attempt()
    assert one.fencing_number == 1
    gateway.attempt()
    assert gateway.leader == one.leader
    there.now += 1000.0
    gateway.attempt()
    assert gateway.in_touch
    assert not gateway.held
    assert gateway.fencing_number == 1


def test_released_lease_is_free_at_once() -> None:
    store, clock = MemoryStore(), Clock()
    one, other = lease(store, clock, "one"), lease(store, clock, "other")
    one.attempt()
    one._release()
    other.attempt()
    assert other.held


def test_unchanged_tenure_means_no_other_leader_in_between() -> None:
    store, clock = MemoryStore(), Clock()
    one, other = lease(store, clock, "one"), lease(store, clock, "other")
    one.attempt()
    other.attempt()
    first = one.tenure
    assert (first > 0, other.tenure) == (True, 0)
    clock.now += 9.5
    assert one.tenure == 0
    one.attempt()
    assert one.tenure == first, "it expired and no other instance took it"
    other.attempt()
    clock.now += 10.5
    other.attempt()
    other._release()
    one.attempt()
    assert one.held
    assert one.tenure > first, "another instance had the lease"


def test_lease_of_a_dead_local_process_is_free_at_once() -> None:
    me = Holder.myself()
    assert not me.is_gone(me)
    assert dataclasses.replace(me, pid=2**22 - 3).is_gone(me)
    assert dataclasses.replace(me, started=me.started - 100).is_gone(me), "the process id was reused"
    assert not dataclasses.replace(me, machine="elsewhere", pid=2**22 - 3).is_gone(me), (
        "a process on another machine cannot be checked"
    )
    assert not dataclasses.replace(me, machine="", pid=2**22 - 3).is_gone(dataclasses.replace(me, machine=""))


def test_lease_chain_stays_short() -> None:
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


def test_store_outage_ends_the_lease_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
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


def work_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Keep the calling thread, and with it the event loop, busy until a condition holds."""
    deadline, digest = time.monotonic() + seconds, hashlib.sha256()
    while not condition():
        assert time.monotonic() < deadline, "the condition was not reached"
        for _ in range(1000):
            digest.update(b"work")


async def test_busy_event_loop_does_not_delay_renewals(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    one = Lease(store, seconds=1.5)
    await one.start()
    try:
        assert one.held
        first = one.fencing_number
        lost = []

        def renewed() -> bool:
            lost.extend([] if one.held else [one.fencing_number])
            return one.fencing_number >= first + 6

        work_until(renewed)  # two lease durations: without renewals the lease would have expired
        assert lost == []
        newest = Chain(store, "leases/reconciler/", pruned=True).head()
        assert newest is not None
        assert newest.number >= first + 6
        assert one.epoch == 0
    finally:
        await one.stop()
    newest = Chain(store, "leases/reconciler/", pruned=True).head()
    assert newest is not None
    assert newest.body["id"] == "", "it was released"


async def test_stopped_event_loop_loses_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALLED_SECONDS", 1.0)
    changes: list[bool] = []
    one = Lease(FilesystemStore(tmp_path), seconds=0.6, on_change=lambda: changes.append(one.held))
    await one.start()
    try:
        work_until(lambda: not one.held)
        async with asyncio.timeout(30):
            while not one.held:
                await asyncio.sleep(0.02)
        assert one.held, "the event loop runs again and takes the lease again"
    finally:
        await one.stop()


def test_contact_lost_longer_than_the_lease_begins_an_epoch() -> None:
    store, clock = MemoryStore(), Clock()
    one, other = lease(store, clock, "one"), lease(store, clock, "other")
    one.attempt()
    other.attempt()
    clock.now += 8
    one.attempt()
    other.attempt()
    assert (one.epoch, other.epoch, other.in_touch) == (0, 0, True)
    clock.now += 9
    assert (one.in_touch, other.in_touch) == (False, False)
    one.attempt()
    other.attempt()
    assert (one.epoch, other.epoch) == (1, 1), "also the epoch of the standby"
    assert (one.in_touch, other.in_touch) == (True, True)


def test_lease_names_the_servers_of_its_holder() -> None:
    store, clock = MemoryStore(), Clock()
    one = Lease(store, seconds=10.0, clock=clock, servers={"gpu": "gpu:8001"})
    other = lease(store, clock, "other")
    assert other.driven is None
    one.attempt()
    other.attempt()
    assert other.driven == {"gpu": "gpu:8001"}
    one._release()
    other.attempt()
    assert other.driven == {}


@pytest.mark.parametrize("lost", ["the newest", "all"])
def test_lost_lease_stays_unavailable_until_it_expires_for_its_holder(lost: str) -> None:
    store, here, there = MemoryStore(), Clock(100.0), Clock(5_000_000.0)
    one, other = lease(store, here, "one"), lease(store, there, "other")
    for _ in range(3):
        one.attempt()
    other.attempt()
    for info in list(store.list(leases.PREFIX, limit=1 if lost == "the newest" else None)):
        store.delete(info.key)
    other.attempt()
    there.now += 9.0
    other.attempt()
    assert not other.held, "the holder has not read the store yet and trusts its lease"
    assert one.held
    one.attempt()
    assert not one.held, "its lease is gone"
    there.now += 1.1
    other.attempt()
    assert other.held
    one.attempt()
    assert not one.held
