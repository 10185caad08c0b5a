"""State of the gateways in the bucket: heartbeats, announced drains, and their acknowledgements.

There are three kinds of small objects; each is written once and later removed:

* ``gateways/present/GATEWAY/NUMBER.json`` is the heartbeat of a gateway. The gateway writes the next number every few
  seconds. Clocks are not compared: a gateway whose number changes is alive. The previous object stays, so that a
  concurrent listing does not miss both.
* ``gateways/drains/ID/announced.json`` announces the drain of a model on a server. The leader writes it.
* ``gateways/drains/ID/acknowledged/GATEWAY.json`` states that a gateway sends no more requests for the model to the
  server and has none in flight there.
"""

import json
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from controlplane.errors import ObjectExistsError, ObjectNotFoundError
from controlplane.storage.base import ObjectStore

PREFIX = "gateways/"
_PRESENT, _WITHDRAWALS = f"{PREFIX}present/", f"{PREFIX}drains/"


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """The drain of a model on a server.

    Attributes:
        server: The server's name.
        model: The model's name.
        seconds: Time after the announcement by which the leader has requested the unload from Triton, or never will.
    """

    server: str
    model: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Gateways:
    """The state of all gateways and drains at one moment.

    Attributes:
        present: The newest heartbeat number of each gateway.
        announced: The ids of the announced drains.
        acknowledged: The gateways that acknowledged a drain, by drain id; includes drains that ended.
    """

    present: Mapping[str, int]
    announced: Set[str]
    acknowledged: Mapping[str, Set[str]]

    @property
    def withdrawals(self) -> set[str]:
        """Return the ids of all drains that have any object in the store, including drains that ended."""
        return {*self.announced, *self.acknowledged}


class GatewayLog:
    """Reads and writes the state of the gateways. Safe to use from several threads.

    Args:
        store: The bucket.

    Raises:
        StoreError: Raised by every method if the store failed.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def gateways(self) -> Gateways:
        """Return the current state. One request for up to a thousand objects."""
        present: dict[str, int] = {}
        announced: set[str] = set()
        acknowledged: dict[str, set[str]] = {}
        for info in self._store.list(PREFIX):
            match info.key.removeprefix(PREFIX).split("/"):
                case ["present", gateway, file] if (number := file.removesuffix(".json")).isdigit():
                    present[gateway] = max(int(number), present.get(gateway, 0))
                case ["drains", name, "announced.json"]:
                    announced.add(name)
                case ["drains", name, "acknowledged", file]:
                    acknowledged.setdefault(name, set()).add(file.removesuffix(".json"))
        return Gateways(present, announced, acknowledged)

    def beat(self, gateway: str, number: int, holder: dict[str, Any]) -> None:
        """Write a gateway's heartbeat; the numbers ascend from 1."""
        self._create(self._beat_key(gateway, number), holder)
        if number > 2:
            self._store.delete(self._beat_key(gateway, number - 2))

    def leave(self, gateway: str) -> None:
        """Remove a gateway's heartbeats after it has stopped."""
        for info in list(self._store.list(f"{_PRESENT}{gateway}/")):
            self._store.delete(info.key)

    def holder(self, gateway: str, number: int) -> dict[str, Any]:
        """Return the process that a gateway belongs to; empty if the heartbeat is no longer in the store."""
        return self._read(self._beat_key(gateway, number))

    def announce(self, withdrawal_id: str, withdrawal: DrainRequest) -> None:
        """Announce the drain of a model on a server."""
        self._create(_announcement(withdrawal_id), asdict(withdrawal))

    def withdrawal(self, withdrawal_id: str) -> DrainRequest | None:
        """Return an announced drain; None if it has ended."""
        body = self._read(_announcement(withdrawal_id))
        return DrainRequest(str(body["server"]), str(body["model"]), float(body["seconds"])) if body else None

    def acknowledge(self, withdrawal_id: str, gateway: str) -> None:
        """Record that a gateway sends no more requests to the drained model."""
        self._create(_acknowledgement(withdrawal_id, gateway), {})

    def over(self, withdrawal_id: str, acknowledged: Set[str]) -> None:
        """End a drain, whether the model was unloaded or stays, so that gateways may route to it again.

        Args:
            withdrawal_id: The drain's id.
            acknowledged: The gateways whose acknowledgements are removed with the drain.
        """
        self._store.delete(_announcement(withdrawal_id))
        for gateway in sorted(acknowledged):
            self._store.delete(_acknowledgement(withdrawal_id, gateway))

    @staticmethod
    def _beat_key(gateway: str, number: int) -> str:
        return f"{_PRESENT}{gateway}/{number:012d}.json"

    def _create(self, key: str, body: dict[str, Any]) -> None:
        with suppress(ObjectExistsError):  # a retry of this process's write: no other process writes this key
            self._store.create(key, json.dumps(body).encode())

    def _read(self, key: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._store.get(key)))
        except ObjectNotFoundError:
            return {}


def _announcement(withdrawal_id: str) -> str:
    return f"{_WITHDRAWALS}{withdrawal_id}/announced.json"


def _acknowledgement(withdrawal_id: str, gateway: str) -> str:
    return f"{_WITHDRAWALS}{withdrawal_id}/acknowledged/{gateway}.json"
