"""A follower among front doors: what it is told to keep away from, it keeps away from, whatever the bucket does."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.errors import StoreUnavailableError
from controlplane.gateway.peers import Peers
from controlplane.reconciler.lease import Holder
from controlplane.registry.doors import DoorLog, Withdrawal
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from tests.support.hooked_store import HookedStore

NAME = "0" * 32


class Door:
    """A front door with one road, and how often that was closed and opened again.

    Args:
        store: The bucket.
        leading: Whether its process leads.
    """

    def __init__(self, store: ObjectStore, *, leading: bool = False) -> None:
        self.closed: set[tuple[str, str]] = set()
        self.closings = Counter[tuple[str, str]]()
        self.openings = 0
        self.peers = Peers(DoorLog(store), self._close, self._look, lambda: leading)

    @asynccontextmanager
    async def _close(self, server: str, model: str) -> AsyncIterator[None]:
        self.closed.add((server, model))
        self.closings[server, model] += 1
        try:
            yield
        finally:
            self.closed.remove((server, model))
            self.openings += 1

    async def _look(self, server: str, model: str) -> None:
        assert (server, model) in self.closed, "it looks before it opens"


async def soon(what: str, condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    try:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


def run(part: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await part()

    asyncio.run(bounded())


def test_a_road_stays_closed_when_the_answer_to_its_acknowledgement_is_lost(tmp_path: Path) -> None:
    def lose(operation: str, key: str) -> None:
        if operation == "create" and "/acknowledged/" in key:
            raise StoreUnavailableError("the answer is lost")

    store = FilesystemStore(tmp_path)
    hooked = HookedStore(store, after=lose)

    async def part() -> None:
        leader, door = Door(store, leading=True), Door(hooked)
        await leader.peers.start()
        await door.peers.start()
        async with leader.peers.withdrawn("a", "m") as kept_away:
            await kept_away()
            await soon("it says so again", lambda: sum("/acknowledged/" in key for _, key in hooked.calls) == 2)
            assert door.closed
            assert door.openings == 0
        await soon("it opens", lambda: door.openings == 1)
        await door.peers.stop()
        await leader.peers.stop()

    run(part)


@pytest.mark.parametrize("leaves", [True, False])
def test_what_one_announced_that_lives_no_more_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """Also where nobody removes it: there may be no leader with a front door."""
    monkeypatch.setattr("controlplane.gateway.peers._GONE_SECONDS", 60.0 if leaves else 2.0)
    log = DoorLog(FilesystemStore(tmp_path))

    async def part() -> None:
        door = Door(FilesystemStore(tmp_path))
        log.announce("1" * 32, Withdrawal("a", "other", "nobody"))
        await door.peers.start()
        for number in (1, 2):
            log.beat("leader", number, Holder.myself().to_body(20.0))
            log.announce(NAME, Withdrawal("a", "m", "leader"))
            await soon("it keeps away", lambda number=number: door.closings["a", "m"] == number)
            if leaves:
                assert door.closed
                log.leave("leader")
            await soon("it opens", lambda number=number: door.openings == number)
            assert log.announced() == {NAME, "1" * 32}
        assert door.closings.total() == 2, "nobody has announced the other one"
        await door.peers.stop()

    run(part)


def test_an_acknowledgement_that_comes_late_does_not_stay_in_the_bucket(tmp_path: Path) -> None:
    held, late = threading.Event(), threading.Event()

    def hold(operation: str, key: str) -> None:
        if operation == "create" and "/acknowledged/" in key:
            assert held.wait(60)

    def tell(operation: str, key: str) -> None:
        if operation == "create" and "/acknowledged/" in key:
            late.set()

    store = FilesystemStore(tmp_path)
    log = DoorLog(store)

    async def part() -> None:
        leader = Door(store, leading=True)
        follower = Door(HookedStore(store, before=hold, after=tell))
        await leader.peers.start()
        await follower.peers.start()
        async with leader.peers.withdrawn("a", "m") as kept_away:
            waiting = asyncio.create_task(kept_away())
            await soon("the follower keeps away", lambda: follower.closed)
            waiting.cancel()  # the drain's time is up
        await soon("it is over", lambda: not list(store.list("doors/withdrawals/")))
        held.set()
        await soon("the follower has answered", late.is_set)
        await soon("it opens", lambda: follower.openings == 1)
        log.acknowledge(NAME, "killed")  # as an end in the middle of removing leaves it
        await soon("the leader removes it all", lambda: not list(store.list("doors/withdrawals/")))
        assert {info.key.partition("/")[2].partition("/")[0] for info in store.list("doors/")} == {"present"}
        await leader.peers.stop()
        await follower.peers.stop()

    run(part)
