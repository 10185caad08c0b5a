"""``Idempotency-Key``: a repeated request with the same key gets the first response again.

Each key has two small objects, which are created and never overwritten: a claim before the request is processed, so
that two of them do not run at once on any instances, and the response after it. A claim whose process died is taken
over after `CLAIM_SECONDS` under the next number.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict

from controlplane.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    IdempotencyMismatchError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from controlplane.storage.base import ObjectStore
from controlplane.storage.clock import StoreClock

logger = logging.getLogger(__name__)

PREFIX = "idempotency/"
CLAIM_SECONDS = 120.0
"""Time after which another request with the key takes over. It is long enough, because POSTs only start work."""

_TAKEOVERS = 20
_WAIT_SECONDS = 10.0


class StoredAnswer(BaseModel):
    """A response as it was first sent."""

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
    id: str = ""
    """Unique: a create whose response was lost recognizes its own claim on the retry."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to process the request."""

    folder: str
    number: int
    request: str


class Idempotency:
    """Claims keys and stores responses in the bucket."""

    def __init__(self, store: ObjectStore, clock: StoreClock | None = None) -> None:
        self._store = store
        self._clock = clock or StoreClock(store)
        # Claims of this process that it does not act on, because it could not find out whether they were written. One
        # operation at a time, so no lock.
        self._idle: set[str] = set()

    async def begin(self, key: str, actor: str, target: str, body: bytes) -> StoredAnswer | Turn:
        """Return the stored response, or the right to process the request.

        Args:
            key: The client's key; the keys of different actors are independent.
            actor: The caller.
            target: Method and path with query.
            body: The request's body.

        Raises:
            IdempotencyMismatchError: The key was used before for a different request.
            ConflictError: The first request with this key is still being processed.
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
                raise ConflictError(f"the first request with the Idempotency-Key {key[:60]!r} is still being processed")
            await asyncio.sleep(0.1)

    async def finish(self, turn: Turn, answer: StoredAnswer) -> None:
        """Store the response.

        If the store fails, the response is still correct and is sent to the client; a repetition is then refused as
        "still being processed" for the lifetime of the claim.
        """

        def write() -> None:
            try:
                self._store.create(f"{turn.folder}answer.json", answer.model_dump_json().encode())
            except ObjectExistsError:
                return  # taken over meanwhile: the response that was written first is kept
            except StoreError as error:
                logger.warning("failed to store the response to a request with an Idempotency-Key: %s", error)

        await asyncio.to_thread(write)

    async def abandon(self, turn: Turn) -> None:
        """Release the claim: the request was not processed and may be sent again."""

        def remove() -> None:
            try:
                self._store.delete(f"{turn.folder}claim.{turn.number}.json")
            except StoreError as error:  # the reason why the request failed is more useful than this
                logger.warning("failed to release the claim of an Idempotency-Key: %s", error)

        await asyncio.to_thread(remove)

    def _look(self, folder: str, request: str, key: str) -> StoredAnswer | Turn | None:
        claim = _Claim(request=request, at=datetime.now(UTC), id=uuid.uuid4().hex)
        for number in range(1, _TAKEOVERS + 1):
            name = f"{folder}claim.{number}.json"
            if self._create(name, claim):
                return Turn(folder, number, request)
            try:
                before = _Claim.model_validate_json(self._store.get(name))
            except ObjectNotFoundError:
                return None  # released at this moment
            if before.request != request:
                raise IdempotencyMismatchError(
                    f"the Idempotency-Key {key[:60]!r} was already used for another request; use a new key"
                )
            if before.id and (before.id == claim.id or before.id in self._idle):
                self._idle.discard(before.id)
                return Turn(folder, number, request)
            try:
                return StoredAnswer.model_validate_json(self._store.get(f"{folder}answer.json"))
            except ObjectNotFoundError:
                pass
            # Compare by the store's clock: two machines' clocks may differ by more than a claim lasts.
            written = self._store.head(name)
            if written is None:
                return None  # released at this moment
            if self._clock.now() - written.modified_at < timedelta(seconds=CLAIM_SECONDS):
                return None
            # Its process died, so take the next number.
        raise ConflictError(f"the Idempotency-Key {key[:60]!r} was tried too often; use a new key")

    def _create(self, name: str, claim: _Claim) -> bool:
        """Write a claim, and return False if one exists, which may be this one."""
        try:
            self._store.create(name, claim.model_dump_json().encode())
        except ObjectExistsError:
            return False
        except CommitOutcomeUnknownError:
            self._idle.add(claim.id)
            raise
        return True
