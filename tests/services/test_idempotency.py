"""An ``Idempotency-Key`` over a store whose answers get lost."""

import pytest

from controlplane.errors import CommitOutcomeUnknownError, ObjectExistsError, StoreUnavailableError
from controlplane.services.idempotency import Idempotency, StoredAnswer, Turn
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore


def answer(turn: Turn) -> StoredAnswer:
    return StoredAnswer(request=turn.request, status=202, media_type="application/json", body="{}")


async def test_claim_with_a_lost_response_stays_owned_by_its_creator() -> None:
    """The store's adapter sent the create again, and met what the first one had written."""

    def lost(operation: str, key: str) -> None:
        if operation == "create":
            raise ObjectExistsError(key)

    turn = await Idempotency(HookedStore(MemoryStore(), after=lost)).begin("k", "ada", "POST /x", b"")
    assert isinstance(turn, Turn)


async def test_unused_claim_is_taken_by_the_next_attempt() -> None:
    failures = ["create"]

    def lost(operation: str, key: str) -> None:
        if operation in failures:
            failures.remove(operation)
            raise CommitOutcomeUnknownError(key)

    keys = Idempotency(HookedStore(MemoryStore(), after=lost))
    with pytest.raises(CommitOutcomeUnknownError):
        await keys.begin("k", "ada", "POST /x", b"")
    turn = await keys.begin("k", "ada", "POST /x", b"")
    assert isinstance(turn, Turn)
    await keys.finish(turn, answer(turn))
    assert await keys.begin("k", "ada", "POST /x", b"") == answer(turn)


async def test_store_failure_after_the_request_keeps_its_response() -> None:
    away = False

    def fail(operation: str, key: str) -> None:
        if away:
            raise StoreUnavailableError("away")

    keys = Idempotency(HookedStore(MemoryStore(), before=fail))
    one, other = await keys.begin("1", "ada", "POST /x", b""), await keys.begin("2", "ada", "POST /x", b"")
    assert isinstance(one, Turn)
    assert isinstance(other, Turn)
    away = True
    await keys.finish(one, answer(one))  # the request was processed, so its client must get the response
    await keys.abandon(other)  # its client must get the reason why it failed
