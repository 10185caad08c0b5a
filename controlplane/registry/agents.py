"""Registrations of agents in the bucket, and their heartbeats.

``agents/NAME/TOKEN/NUMBER-DIGEST.json`` contains a registration. The agent writes the next number every few seconds and
removes the one before the previous one, so that a concurrent listing does not miss both. Clocks are not compared: an
agent whose number changes is alive. The token stays with the agent's data folder, so two agents that claim one name are
distinguished. The digest is of the content: what did not change is not read again.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from controlplane.errors import ObjectExistsError, ObjectNotFoundError
from controlplane.storage.base import ObjectStore

PREFIX = "agents/"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The newest heartbeat of one agent.

    Attributes:
        number: Its number.
        digest: The digest of the registration.
    """

    number: int
    digest: str


class AgentLog:
    """Reads and writes registrations. Safe to use from several threads.

    Args:
        store: The bucket.

    Raises:
        StoreError: Raised by every method if the store failed.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def present(self, name: str = "") -> dict[str, Mapping[str, Heartbeat]]:
        """Return the newest heartbeats by server name and token, of all servers or of one. One request for 500 agents.

        Args:
            name: The server's name; empty for all.
        """
        found: dict[str, dict[str, Heartbeat]] = {}
        for info in self._store.list(f"{PREFIX}{name}/" if name else PREFIX):
            match info.key.removeprefix(PREFIX).split("/"):
                case [server, token, file] if file.endswith(".json"):
                    number, _, digest = file.removesuffix(".json").partition("-")
                    if not number.isdigit():
                        continue
                    known = found.setdefault(server, {}).get(token)
                    if known is None or int(number) > known.number:
                        found[server][token] = Heartbeat(int(number), digest)
        return dict(found)

    def beat(self, name: str, token: str, number: int, digest: str, registration: bytes) -> None:
        """Write a heartbeat; the numbers ascend. Older ones of this agent are removed, except for the previous one."""
        with suppress(ObjectExistsError):  # a retry of this process's write
            self._store.create(_key(name, token, number, digest), registration)
        for info in list(self._store.list(f"{PREFIX}{name}/{token}/")):
            older = info.key.rpartition("/")[2].partition("-")[0]
            if older.isdigit() and int(older) < number - 1:
                self._store.delete(info.key)

    def read(self, name: str, token: str, heartbeat: Heartbeat) -> bytes | None:
        """Return a registration; None if the heartbeat is no longer in the store."""
        try:
            return self._store.get(_key(name, token, heartbeat.number, heartbeat.digest))
        except ObjectNotFoundError:
            return None

    def leave(self, name: str, token: str) -> None:
        """Remove an agent's registration."""
        for info in list(self._store.list(f"{PREFIX}{name}/{token}/")):
            self._store.delete(info.key)


def _key(name: str, token: str, number: int, digest: str) -> str:
    return f"{PREFIX}{name}/{token}/{number:012d}-{digest}.json"
