"""Which actions an instance may take and which state it may trust, with clocks that the test moves."""

import dataclasses
from pathlib import Path

from controlplane.reconciler.authority import Authority, driven_servers
from controlplane.reconciler.leader_election import Lease
from controlplane.reconciler.pauses import PauseWatch
from controlplane.servers.server import ManagedServer
from controlplane.storage.memory import MemoryStore
from controlplane.triton.client import TritonClient
from controlplane.triton.repository import ModelRepository


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def server(folder: Path, name: str, *, private: bool = False) -> ManagedServer:
    client = TritonClient(name, "127.0.0.1:1")
    try:
        return ManagedServer(name, client, ModelRepository(folder), private=private)
    finally:
        await client.close()


class Instance:
    """The lease and authority of an instance on its own machine."""

    def __init__(self, store: MemoryStore, clock: Clock, name: str, *servers: ManagedServer) -> None:
        self.lease = Lease(store, seconds=10.0, clock=clock, servers=driven_servers(servers))
        self.lease._me = dataclasses.replace(self.lease._me, id=name, machine=name)
        self.read_epoch: int | None = None
        self.authority = Authority(self.lease, servers, read_epoch=lambda: self.read_epoch)

    def read(self) -> None:
        self.read_epoch = self.lease.epoch


async def test_standby_drives_its_private_server(tmp_path: Path) -> None:
    store, clock = MemoryStore(), Clock()
    one = Instance(store, clock, "one", await server(tmp_path, "embedded", private=True))
    other = Instance(store, clock, "other", await server(tmp_path, "embedded", private=True))
    for each in (one, other):
        each.lease.attempt()
        assert not each.authority.acts, "it has not read the deployments"
        each.read()
    assert (one.authority.leads, other.authority.leads) == (True, False)
    assert (one.authority.acts, other.authority.acts) == (True, True)


async def test_only_the_leader_drives_shared_servers(tmp_path: Path) -> None:
    store, clock = MemoryStore(), Clock()
    shared, mine = await server(tmp_path, "shared"), await server(tmp_path, "mine")
    one, other = Instance(store, clock, "one", shared), Instance(store, clock, "other", shared, mine)
    for each in (one, other):
        each.lease.attempt()
        each.read()
    assert (one.authority.acts, other.authority.acts) == (True, False)
    assert other.authority.undriven(shared) == ""
    assert "no server 'mine' in its settings" in other.authority.undriven(mine)


async def test_no_action_after_lost_contact_until_state_is_read_again(tmp_path: Path) -> None:
    store, clock = MemoryStore(), Clock()
    one = Instance(store, clock, "one", await server(tmp_path, "embedded", private=True))
    one.lease.attempt()
    one.read()
    term = one.authority.term
    assert term is not None
    clock.now += 9.5
    assert one.authority.term is None, "the store has been silent for longer than the lease"
    one.lease.attempt()
    assert one.authority.term is None, "the store answers, but the state was read before the outage"
    one.read()
    assert one.authority.term not in {None, term}, "an action that began before is refused"


def test_process_pause_is_counted_once() -> None:
    clock, seen = Clock(), []
    watch = PauseWatch(10.0, on_pause=lambda: seen.append(clock.now), clock=clock)
    clock.now += 8
    assert watch.count == 0
    clock.now += 8
    assert watch.count == 0, "the process ran in between"
    clock.now += 9.5
    assert (watch.count, watch.count) == (1, 1)
    assert seen == [clock.now]
