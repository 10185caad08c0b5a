"""Drains across instances and their gateways: who waits for whom, and how long routes stay closed."""

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.errors import StoreUnavailableError
from controlplane.gateway.drain.coordinator import DrainCoordinator
from controlplane.gateway.drain.follower import no_peers
from controlplane.reconciler.leader_election import Holder
from controlplane.registry.gateways import DrainRequest, GatewayLog
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from tests.support.hooked_store import HookedStore

NAME = "0" * 32
LONG_SECONDS = 200.0


class FakeGateway:
    """A gateway with one route, and how often that was closed and opened again.

    Args:
        store: The bucket.
        leading: Whether its process leads.
        drain_seconds: How long its unloads wait for the others.
    """

    def __init__(self, store: ObjectStore, *, leading: bool = False, drain_seconds: float = LONG_SECONDS) -> None:
        self.closed_routes: set[tuple[str, str]] = set()
        self.closings = Counter[tuple[str, str]]()
        self.openings = 0
        self.drained = asyncio.Event()
        self.drained.set()
        self.peers = DrainCoordinator(GatewayLog(store), lambda: leading, drain_seconds=drain_seconds, gateway=self)

    @asynccontextmanager
    async def closed(
        self, server: str, model: str, others: Callable[[], Awaitable[None]] = no_peers
    ) -> AsyncIterator[None]:
        self.closed_routes.add((server, model))
        self.closings[server, model] += 1
        try:
            await self.drained.wait()
            await others()
            yield
        finally:
            self.closed_routes.remove((server, model))
            self.openings += 1

    async def look(self, server: str, model: str) -> None:
        assert (server, model) in self.closed_routes, "it looks before it opens"


class Outage:
    """A bucket that one instance cannot reach for a while.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.away = False
        self.failed = self.answered = 0
        self.store = HookedStore(store, before=self._fail)

    def _fail(self, operation: str, key: str) -> None:
        if self.away:
            self.failed += 1
            raise StoreUnavailableError(f"{operation} {key}: the store is away")
        self.answered += 1


async def soon(what: str, condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    try:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


async def more(what: str, count: Callable[[], int], than: int) -> None:
    """Wait until something has happened some more times."""
    before = count()
    await soon(what, lambda: count() >= before + than)


def run(part: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LONG_SECONDS):
            await part()

    asyncio.run(bounded())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short intervals between checks and heartbeats; gateways are not considered gone any sooner."""
    monkeypatch.setattr("controlplane.gateway.drain.coordinator._LOOK_SECONDS", 0.02)
    monkeypatch.setattr("controlplane.gateway.drain.coordinator._LEAD_LOOK_SECONDS", 0.1)
    monkeypatch.setattr("controlplane.gateway.drain.membership.BEAT_SECONDS", 0.05)
    monkeypatch.setattr("controlplane.gateway.drain.membership._AGAIN_SECONDS", 0.05)


def withdrawal(model: str = "m", seconds: float = LONG_SECONDS) -> DrainRequest:
    return DrainRequest("a", model, seconds)


def test_route_stays_closed_if_acknowledgement_response_is_lost(tmp_path: Path) -> None:
    def lose(operation: str, key: str) -> None:
        if operation == "create" and "/acknowledged/" in key:
            raise StoreUnavailableError("the answer is lost")

    store = FilesystemStore(tmp_path)
    hooked = HookedStore(store, after=lose)

    async def part() -> None:
        leader, gateway = FakeGateway(store, leading=True), FakeGateway(hooked)
        await leader.peers.start()
        await gateway.peers.start()
        async with leader.peers.withdrawn("a", "m"):
            await soon("it acknowledges again", lambda: sum("/acknowledged/" in key for _, key in hooked.calls) == 2)
            assert gateway.closed_routes
            assert gateway.openings == 0
        await soon("it opens", lambda: gateway.openings == 1)
        await gateway.peers.stop()
        await leader.peers.stop()

    run(part)


@pytest.mark.usefixtures("quick")
def test_store_outage_does_not_end_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During an outage it is unknown whether an announcement still exists; the last known state counts."""
    monkeypatch.setattr("controlplane.gateway.drain.heartbeats.GONE_SECONDS", 0.0)  # however long it is away
    outage = Outage(FilesystemStore(tmp_path))
    log = GatewayLog(FilesystemStore(tmp_path))

    async def part() -> None:
        gateway = FakeGateway(outage.store)
        await gateway.peers.start()
        log.announce(NAME, withdrawal())
        await soon("it acknowledges the drain", lambda: log.gateways().acknowledged.get(NAME) == {gateway.peers.id})
        outage.away = True
        await more("it reads the store", lambda: outage.failed, 10)
        assert gateway.closed_routes
        outage.away = False
        await more("it reads the announcement again", lambda: outage.answered, 10)
        assert gateway.closed_routes
        outage.away = True
        log.over(NAME, {gateway.peers.id})
        await more("it reads the store", lambda: outage.failed, 10)
        assert gateway.closed_routes
        assert gateway.openings == 0
        outage.away = False
        await soon("it reads that the drain has ended", lambda: gateway.openings == 1)
        await gateway.peers.stop()

    run(part)


@pytest.mark.usefixtures("quick")
def test_drain_ends_at_its_deadline(tmp_path: Path) -> None:
    """Also if the store stays unavailable, or no leader removes the announcement: the observed state counts again."""
    outage = Outage(FilesystemStore(tmp_path))
    log = GatewayLog(FilesystemStore(tmp_path))

    async def part() -> None:
        gateway = FakeGateway(outage.store)
        await gateway.peers.start()
        log.announce(NAME, withdrawal(seconds=3.0))
        log.announce("1" * 32, withdrawal("other"))
        await soon("it closes both routes", lambda: gateway.closings.total() == 2)
        outage.away = True
        await soon("it opens the route of the expired drain", lambda: gateway.openings == 1)
        assert gateway.closed_routes == {("a", "other")}
        outage.away = False
        await more("it reads that both are still announced", lambda: outage.answered, 10)
        assert log.gateways().announced == {NAME, "1" * 32}
        assert gateway.closed_routes == {("a", "other")}
        assert gateway.closings["a", "m"] == 1
        await gateway.peers.stop()

    run(part)


def test_starting_gateway_closes_routes_of_announced_drains(tmp_path: Path) -> None:
    log = GatewayLog(FilesystemStore(tmp_path))
    log.announce(NAME, withdrawal())
    log.announce("1" * 32, withdrawal("other"))

    async def part() -> None:
        gateway = FakeGateway(FilesystemStore(tmp_path))
        await gateway.peers.start()
        assert gateway.closed_routes == {("a", "m"), ("a", "other")}
        await gateway.peers.stop()

    run(part)


@pytest.mark.parametrize("failing", ["create", "list"])
def test_gateway_does_not_start_if_store_fails(tmp_path: Path, failing: str) -> None:
    def fail(operation: str, key: str) -> None:
        if operation == failing and key.startswith("gateways/"):
            raise StoreUnavailableError("away")

    async def part() -> None:
        gateway = FakeGateway(HookedStore(FilesystemStore(tmp_path), before=fail))
        with pytest.raises(StoreUnavailableError):
            await gateway.peers.start()
        await gateway.peers.stop()

    run(part)


def test_leader_waits_for_gateway_that_starts_during_drain(tmp_path: Path) -> None:
    """The leader was alone when it began; before the unload it reads the gateways again and finds the new one."""
    store = FilesystemStore(tmp_path)

    async def part() -> None:
        leader, gateway = FakeGateway(store, leading=True), FakeGateway(store)
        await leader.peers.start()
        leader.drained.clear()
        leaving = asyncio.create_task(_leave(leader))
        await soon("it is announced", lambda: GatewayLog(store).gateways().announced)
        gateway.drained.clear()
        starting = asyncio.create_task(gateway.peers.start())
        await soon("the new gateway closes the route", lambda: gateway.closed_routes)
        leader.drained.set()
        done, _ = await asyncio.wait({leaving}, timeout=0.3)
        assert not done, "the new one drains, and has not answered"
        gateway.drained.set()
        await leaving
        await starting
        await leader.peers.stop()
        await gateway.peers.stop()

    async def _leave(leader: FakeGateway) -> None:
        async with leader.peers.withdrawn("a", "m"):
            pass

    run(part)


@pytest.mark.usefixtures("quick")
def test_leader_without_gateway_announces_drains_and_removes_leftovers(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    log = GatewayLog(store)

    async def part() -> None:
        leader, gateway = DrainCoordinator(log, lambda: True, drain_seconds=LONG_SECONDS), FakeGateway(store)
        await leader.start()
        await gateway.peers.start()
        assert log.gateways().present.keys() == {gateway.peers.id}
        async with leader.withdrawn("a", "m"):
            assert gateway.closed_routes == {("a", "m")}
            assert gateway.openings == 0
        await soon("it opens", lambda: gateway.openings == 1)
        log.announce(NAME, withdrawal())
        await soon("the leader removes what another one left", lambda: not log.gateways().withdrawals)
        await gateway.peers.stop()
        # The gateway may have acknowledged a drain after its removal; the leader's next pass removes that, too.
        await soon("the leader removes late acknowledgements", lambda: not list(store.list("gateways/")))
        await leader.stop()

    run(part)


@pytest.mark.usefixtures("quick")
def test_standby_without_gateway_does_not_read_store(tmp_path: Path) -> None:
    hooked = HookedStore(FilesystemStore(tmp_path))
    leads = False

    async def part() -> None:
        nonlocal leads
        follower = DrainCoordinator(GatewayLog(hooked), lambda: leads, drain_seconds=LONG_SECONDS)
        await follower.start()
        await asyncio.sleep(0.3)  # some looks, if it looked
        assert hooked.calls == []
        leads = True
        await soon("it looks once it leads", lambda: hooked.calls)
        await follower.stop()

    run(part)


@pytest.mark.parametrize("looked", [True, False])
def test_during_store_outage_only_leader_without_peers_unloads(tmp_path: Path, looked: bool) -> None:
    outage = Outage(FilesystemStore(tmp_path))
    log = GatewayLog(FilesystemStore(tmp_path))

    async def part() -> None:
        leader = DrainCoordinator(GatewayLog(outage.store), lambda: True, drain_seconds=LONG_SECONDS)
        if looked:
            async with leader.withdrawn("a", "m"):
                pass
        outage.away = True
        if looked:
            async with leader.withdrawn("a", "m"):
                assert outage.failed
            outage.away = False
            log.beat("alive", 1, Holder.myself().to_body(20.0))
            await leader._look()
            outage.away = True
        with pytest.raises(StoreUnavailableError):
            async with leader.withdrawn("a", "m"):
                raise AssertionError("there may be others")
        await leader.stop()

    run(part)


def test_leader_that_announces_too_slowly_does_not_unload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the peers may have opened their routes again."""
    monkeypatch.setattr("controlplane.gateway.drain.coordinator._SENT_SECONDS", 0.1)

    def linger(operation: str, key: str) -> None:
        if operation == "create" and key.endswith("/announced.json"):
            time.sleep(0.5)

    async def part() -> None:
        leader = DrainCoordinator(
            GatewayLog(HookedStore(FilesystemStore(tmp_path), after=linger)), lambda: True, drain_seconds=0.1
        )
        with pytest.raises(StoreUnavailableError, match="timed out announcing the drain of"):
            async with leader.withdrawn("a", "m"):
                raise AssertionError("it unloads")
        assert not GatewayLog(FilesystemStore(tmp_path)).gateways().withdrawals
        await leader.stop()

    run(part)


def test_peer_gateway_is_not_gone_if_store_was_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.gateway.drain.heartbeats.BEAT_SECONDS", 0.01)
    monkeypatch.setattr("controlplane.gateway.drain.heartbeats.GONE_SECONDS", 0.5)
    log = GatewayLog(FilesystemStore(tmp_path))
    log.beat("alive", 1, Holder.myself().to_body(20.0))

    async def part() -> None:
        leader = DrainCoordinator(log, lambda: False, drain_seconds=LONG_SECONDS)
        for _ in range(2):
            await leader._look()
            assert leader._others() == {"alive"}
            await asyncio.sleep(1.0)  # as if the bucket were away, or this process were stopped
        await leader.stop()

    run(part)


def test_leader_does_not_wait_for_gateway_of_ended_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.gateway.drain.heartbeats.GONE_SECONDS", 1e6)  # its missed heartbeats do not count
    log, me = GatewayLog(FilesystemStore(tmp_path)), Holder.myself()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)

    async def part() -> None:
        leader = DrainCoordinator(
            log, lambda: False, drain_seconds=LONG_SECONDS
        )  # one that leads would remove the dead one
        log.beat("dead", 1, replace(me, pid=int(gone.stdout)).to_body(20.0))
        async with asyncio.timeout(60), leader.withdrawn("a", "m"):
            pass
        log.beat("alive", 1, me.to_body(20.0))
        entered = asyncio.Event()

        async def leave() -> None:
            async with leader.withdrawn("a", "m"):
                entered.set()

        leaving = asyncio.create_task(leave())
        await soon("it is announced", lambda: log.gateways().announced)
        (name,) = log.gateways().announced
        assert log.withdrawal(name) == DrainRequest("a", "m", LONG_SECONDS + 20.0)
        log.acknowledge(name, "dead")
        await asyncio.sleep(0.3)
        assert not entered.is_set(), "one lives, and has not answered"
        log.acknowledge(name, "alive")
        await leaving
        assert not log.gateways().withdrawals
        await leader.stop()

    run(part)


@pytest.mark.usefixtures("quick")
def test_late_acknowledgement_is_removed_from_store(tmp_path: Path) -> None:
    held, late = threading.Event(), threading.Event()

    def hold(operation: str, key: str) -> None:
        if operation == "create" and "/acknowledged/" in key:
            assert held.wait(60)

    def tell(operation: str, key: str) -> None:
        if operation == "create" and "/acknowledged/" in key:
            late.set()

    store = FilesystemStore(tmp_path)
    log = GatewayLog(store)

    async def part() -> None:
        leader = DrainCoordinator(log, lambda: True, drain_seconds=0.1)
        follower = FakeGateway(HookedStore(store, before=hold, after=tell))
        await leader.start()
        await follower.peers.start()
        async with leader.withdrawn("a", "m"):
            await soon("the follower closes the route", lambda: follower.closed_routes)
        await soon("it is over", lambda: not list(store.list("gateways/drains/")))
        held.set()
        await soon("the follower has answered", late.is_set)
        await soon("it opens", lambda: follower.openings == 1)
        log.acknowledge(NAME, "killed")  # as an end in the middle of removing leaves it
        await soon("the leader removes it all", lambda: not list(store.list("gateways/drains/")))
        assert {info.key.partition("/")[2].partition("/")[0] for info in store.list("gateways/")} == {"present"}
        await leader.stop()
        await follower.peers.stop()

    run(part)


@pytest.mark.usefixtures("quick")
def test_heartbeats_and_acknowledgements_do_not_queue_behind_downloads(tmp_path: Path) -> None:
    """Nor do heartbeats queue behind other calls of the gateways."""
    store, end = FilesystemStore(tmp_path), threading.Event()
    log = GatewayLog(store)

    def hang(operation: str, key: str) -> None:
        if operation == "list" and stuck.is_set():
            assert end.wait(LONG_SECONDS)

    stuck = threading.Event()

    async def part() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        download = loop.run_in_executor(None, end.wait, LONG_SECONDS)
        gateway = FakeGateway(HookedStore(store, before=hang))
        await gateway.peers.start()
        log.announce(NAME, withdrawal())
        await soon("it acknowledges the drain", lambda: log.gateways().acknowledged.get(NAME))
        stuck.set()
        number = log.gateways().present[gateway.peers.id]
        await soon("it lives", lambda: log.gateways().present[gateway.peers.id] > number + 5)
        end.set()
        await download
        await gateway.peers.stop()
        assert not log.gateways().present

    run(part)
