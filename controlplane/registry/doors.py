"""Front doors as the bucket knows them: who is there, what leaves a server, and who has stopped asking for it.

Three kinds of small objects, each written once and removed again:

* ``doors/present/DOOR/NUMBER.json`` says that a front door lives. It writes the next number every few seconds, and
  nobody's clock is compared with another's: who goes on changing lives.
* ``doors/withdrawals/ID/announced.json`` says that a model is about to leave a server. The leader's.
* ``doors/withdrawals/ID/acknowledged/DOOR.json`` says that a front door sends no more requests there, and that none is
  under way.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from controlplane.errors import ObjectExistsError, ObjectNotFoundError
from controlplane.storage.base import ObjectStore

PREFIX = "doors/"
_PRESENT, _WITHDRAWALS = f"{PREFIX}present/", f"{PREFIX}withdrawals/"
_ANNOUNCED = "/announced.json"


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A model that is about to leave a server.

    Attributes:
        server: The server's name.
        model: The model's name.
        announcer: The id of the door that says so, whose sign of life is among those of all doors.
    """

    server: str
    model: str
    announcer: str


class DoorLog:
    """Reads and writes what front doors tell each other. Safe to use from several threads.

    Args:
        store: The bucket.

    Raises:
        StoreError: By every call: the store failed.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def beat(self, door: str, number: int, holder: dict[str, Any]) -> None:
        """Say that a door lives; the numbers ascend from 1."""
        self._create(self._beat_key(door, number), holder)
        if number > 1:
            self._store.delete(self._beat_key(door, number - 1))

    def leave(self, door: str) -> None:
        """Say that a door has closed."""
        for info in list(self._store.list(f"{_PRESENT}{door}/")):
            self._store.delete(info.key)

    def present(self) -> dict[str, int]:
        """Return the newest number of every door. One request."""
        found: dict[str, int] = {}
        for info in self._store.list(_PRESENT):
            door, _, number = info.key.removeprefix(_PRESENT).partition("/")
            if number.removesuffix(".json").isdigit():
                found[door] = max(int(number.removesuffix(".json")), found.get(door, 0))
        return found

    def holder(self, door: str, number: int) -> dict[str, Any]:
        """Return which process a door belongs to; empty where it has moved on."""
        return self._read(self._beat_key(door, number))

    def announce(self, withdrawal_id: str, withdrawal: Withdrawal) -> None:
        """Say that a model is about to leave a server."""
        self._create(_announcement(withdrawal_id), asdict(withdrawal))

    def announced(self) -> set[str]:
        """Return the ids of what is about to leave. One request."""
        keys = (info.key for info in self._store.list(_WITHDRAWALS))
        return {_id(key) for key in keys if key.endswith(_ANNOUNCED)}

    def withdrawals(self) -> set[str]:
        """Return the ids of all that anything is left of, also what is over. One request."""
        return {_id(info.key) for info in self._store.list(_WITHDRAWALS)}

    def withdrawal(self, withdrawal_id: str) -> Withdrawal | None:
        """Return what is about to leave; None where that is over."""
        body = self._read(_announcement(withdrawal_id))
        return Withdrawal(str(body["server"]), str(body["model"]), str(body["announcer"])) if body else None

    def acknowledge(self, withdrawal_id: str, door: str) -> None:
        """Say that a door sends no more requests there."""
        self._create(f"{_acknowledgements(withdrawal_id)}{door}.json", {})

    def acknowledged(self, withdrawal_id: str) -> set[str]:
        """Return which doors send no more requests there. One request."""
        prefix = _acknowledgements(withdrawal_id)
        return {info.key.removeprefix(prefix).removesuffix(".json") for info in self._store.list(prefix)}

    def over(self, withdrawal_id: str) -> None:
        """Say that it has left, or stays: nobody has to keep away any more."""
        self._store.delete(_announcement(withdrawal_id))
        for info in list(self._store.list(f"{_WITHDRAWALS}{withdrawal_id}/")):
            self._store.delete(info.key)

    @staticmethod
    def _beat_key(door: str, number: int) -> str:
        return f"{_PRESENT}{door}/{number:012d}.json"

    def _create(self, key: str, body: dict[str, Any]) -> None:
        with suppress(ObjectExistsError):  # a retry of ours: nobody else writes this key
            self._store.create(key, json.dumps(body).encode())

    def _read(self, key: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._store.get(key)))
        except ObjectNotFoundError:
            return {}


def _announcement(withdrawal_id: str) -> str:
    return f"{_WITHDRAWALS}{withdrawal_id}{_ANNOUNCED}"


def _acknowledgements(withdrawal_id: str) -> str:
    return f"{_WITHDRAWALS}{withdrawal_id}/acknowledged/"


def _id(key: str) -> str:
    return key.removeprefix(_WITHDRAWALS).partition("/")[0]
