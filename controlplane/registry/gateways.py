"""Gateways as the bucket knows them: who is there, what leaves a server, and who has stopped asking for it.

Three kinds of small objects, each written once and removed again:

* ``gateways/present/GATEWAY/NUMBER.json`` says that a gateway lives. It writes the next number every few seconds, and
  nobody's clock is compared with another's: who goes on changing lives. The one before the newest stays, so that a
  listing that is under way meanwhile does not miss both.
* ``gateways/drains/ID/announced.json`` says that a model is about to leave a server. The leader's.
* ``gateways/drains/ID/acknowledged/GATEWAY.json`` says that a gateway sends no more requests there, and that none is
  under way.
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
    """A model that is about to leave a server.

    Attributes:
        server: The server's name.
        model: The model's name.
        seconds: So long after this was said the leader has told Triton to unload it, or never will.
    """

    server: str
    model: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Gateways:
    """All that gateways tell each other, as it was at one moment.

    Attributes:
        present: The newest number of each door.
        announced: The ids of what is about to leave.
        acknowledged: Which doors send no more requests there, by id; also of what is over.
    """

    present: Mapping[str, int]
    announced: Set[str]
    acknowledged: Mapping[str, Set[str]]

    @property
    def withdrawals(self) -> set[str]:
        """The ids of all that anything is left of, also of what is over."""
        return {*self.announced, *self.acknowledged}


class GatewayLog:
    """Reads and writes what gateways tell each other. Safe to use from several threads.

    Args:
        store: The bucket.

    Raises:
        StoreError: By every call: the store failed.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def gateways(self) -> Gateways:
        """Return all that is there. One request for up to a thousand objects."""
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
        """Say that a door lives; the numbers ascend from 1."""
        self._create(self._beat_key(gateway, number), holder)
        if number > 2:
            self._store.delete(self._beat_key(gateway, number - 2))

    def leave(self, gateway: str) -> None:
        """Say that a door has closed."""
        for info in list(self._store.list(f"{_PRESENT}{gateway}/")):
            self._store.delete(info.key)

    def holder(self, gateway: str, number: int) -> dict[str, Any]:
        """Return which process a door belongs to; empty where it has moved on."""
        return self._read(self._beat_key(gateway, number))

    def announce(self, withdrawal_id: str, withdrawal: DrainRequest) -> None:
        """Say that a model is about to leave a server."""
        self._create(_announcement(withdrawal_id), asdict(withdrawal))

    def withdrawal(self, withdrawal_id: str) -> DrainRequest | None:
        """Return what is about to leave; None where that is over."""
        body = self._read(_announcement(withdrawal_id))
        return DrainRequest(str(body["server"]), str(body["model"]), float(body["seconds"])) if body else None

    def acknowledge(self, withdrawal_id: str, gateway: str) -> None:
        """Say that a door sends no more requests there."""
        self._create(_acknowledgement(withdrawal_id, gateway), {})

    def over(self, withdrawal_id: str, acknowledged: Set[str]) -> None:
        """Say that it has left, or stays: nobody has to keep away any more.

        Args:
            withdrawal_id: Which.
            acknowledged: The doors whose acknowledgements are to be removed with it.
        """
        self._store.delete(_announcement(withdrawal_id))
        for gateway in sorted(acknowledged):
            self._store.delete(_acknowledgement(withdrawal_id, gateway))

    @staticmethod
    def _beat_key(gateway: str, number: int) -> str:
        return f"{_PRESENT}{gateway}/{number:012d}.json"

    def _create(self, key: str, body: dict[str, Any]) -> None:
        with suppress(ObjectExistsError):  # a retry of ours: nobody else writes this key
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
