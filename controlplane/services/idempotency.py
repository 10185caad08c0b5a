"""``Idempotency-Key``: a request that is repeated with its key gets its first answer again.

Two small objects for each key, both created and never overwritten: a claim before the request is done, so that two of
them do not run at once on any replicas, and the answer after it. A claim whose process died is taken over after
`CLAIM_SECONDS` by the next number.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict

from controlplane.errors import ConflictError, IdempotencyMismatchError, ObjectExistsError, ObjectNotFoundError
from controlplane.storage.base import ObjectStore

PREFIX = "idempotency/"
CLAIM_SECONDS = 120.0
"""How long a request may take before another one with its key does it again: POSTs start work, they do not do it."""

_TAKEOVERS = 20
_WAIT_SECONDS = 10.0


class StoredAnswer(BaseModel):
    """An answer as it was first given."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: str
    status: int
    media_type: str
    location: str | None = None
    body: str


class _Claim(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    request: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to do the request."""

    folder: str
    number: int
    request: str


class Idempotency:
    """Claims keys and keeps answers, in the bucket."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def begin(self, key: str, actor: str, target: str, body: bytes) -> StoredAnswer | Turn:
        """Return the answer that was given before, or the right to give the first one.

        Args:
            key: The client's key; a key of another actor is another key.
            actor: Who asks.
            target: Method and path with query.
            body: The request's body.

        Raises:
            IdempotencyMismatchError: The key came before with another request.
            ConflictError: The first request with this key is still being done.
        """
        whose = hashlib.sha256(actor.encode() + b"\n" + key.encode()).hexdigest()
        folder = f"{PREFIX}{whose}/"
        request = hashlib.sha256(target.encode() + b"\n" + body).hexdigest()
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            found = await asyncio.to_thread(self._look, folder, request, key)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise ConflictError(f"the first request with the Idempotency-Key {key[:60]!r} is still being done")
            await asyncio.sleep(0.1)

    async def finish(self, turn: Turn, answer: StoredAnswer) -> None:
        """Keep the answer."""

        def write() -> None:
            try:
                self._store.create(f"{turn.folder}answer.json", answer.model_dump_json().encode())
            except ObjectExistsError:
                return  # taken over meanwhile: the first answer that was written stands

        await asyncio.to_thread(write)

    async def abandon(self, turn: Turn) -> None:
        """Give the claim back: nothing was done, and the request may be sent again."""
        await asyncio.to_thread(self._store.delete, f"{turn.folder}claim.{turn.number}.json")

    def _look(self, folder: str, request: str, key: str) -> StoredAnswer | Turn | None:
        claim = _Claim(request=request, at=datetime.now(UTC)).model_dump_json().encode()
        for number in range(1, _TAKEOVERS + 1):
            name = f"{folder}claim.{number}.json"
            try:
                self._store.create(name, claim)
            except ObjectExistsError:
                try:
                    before = _Claim.model_validate_json(self._store.get(name))
                except ObjectNotFoundError:
                    return None  # given back at this moment
                if before.request != request:
                    raise IdempotencyMismatchError(
                        f"the Idempotency-Key {key[:60]!r} was used before for another request; use a fresh key"
                    ) from None
                try:
                    return StoredAnswer.model_validate_json(self._store.get(f"{folder}answer.json"))
                except ObjectNotFoundError:
                    pass
                if datetime.now(UTC) - before.at < timedelta(seconds=CLAIM_SECONDS):
                    return None
                continue  # its process died: the next number is free
            return Turn(folder, number, request)
        raise ConflictError(f"the Idempotency-Key {key[:60]!r} was tried too often; use a fresh key")
