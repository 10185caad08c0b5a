"""The heartbeat of an agent, with stores that fail."""

import asyncio
from pathlib import Path

from controlplane.agent.registrar import Registrar
from controlplane.errors import StoreUnavailableError
from controlplane.registry.agents import AgentLog
from controlplane.servers.registration import Registration
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from tests.support.agents import KEY

ONE = Registration(name="one", agent_url="http://h:8094", grpc_url="h:8001")


def heartbeats(store: ObjectStore) -> dict[str, list[int]]:
    return {name: [one.number for one in found.values()] for name, found in AgentLog(store).present().items()}


async def until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_agent_whose_store_was_away_at_its_start_continues_its_numbers(tmp_path: Path) -> None:
    """A smaller number than the newest one in the store would look as if the agent were silent."""
    store = FilesystemStore(tmp_path / "store")
    (tmp_path / "agent-token").write_text("abc")
    AgentLog(store).beat("one", "abc", 500, ONE.digest, ONE.signed(KEY))
    opened: list[bool] = []

    def open_store() -> ObjectStore:
        opened.append(True)
        if len(opened) < 3:
            raise StoreUnavailableError("the store is away")
        return store

    registrar = Registrar(open_store, ONE, KEY, tmp_path, seconds=0.02)
    await registrar.start()
    assert heartbeats(store) == {"one": [500]}
    await until(lambda: heartbeats(store)["one"][0] > 502)
    (found,) = AgentLog(store).present("one")["one"].values()
    assert Registration.verified(AgentLog(store).read("one", "abc", found) or b"", KEY) == ONE
    assert len(list(store.list("agents/"))) <= 3
    await registrar.stop()
    assert heartbeats(store) == {}


async def test_leaving_is_in_the_registration_until_the_end(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path / "store")
    registrar = Registrar(lambda: store, ONE, KEY, tmp_path, seconds=0.02)
    await registrar.start()
    await registrar.leaving()
    (token, found), *_ = AgentLog(store).present("one")["one"].items()
    assert Registration.verified(AgentLog(store).read("one", token, found) or b"", KEY).leaving
    await registrar.stop()
    assert heartbeats(store) == {}
