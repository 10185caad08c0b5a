import itertools
import json
import threading
from datetime import UTC, datetime

import pytest

from controlplane.errors import (
    CommitConflictError,
    CommitOutcomeUnknownError,
    DamagedRevisionError,
    NotFoundError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectStore
from controlplane.storage.memory import MemoryStore
from tests.support.hooked_store import HookedStore


def grow(chain: Chain, count: int, after: Revision | None = None) -> Revision:
    for _ in range(count):
        number = after.number + 1 if after else 1
        after = chain.append({"n": number}, after=after, actor="a", reason=f"step {number}")
    assert after is not None
    return after


def test_revisions_are_numbered_linked_and_kept(store: ObjectStore) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    chain = Chain(store, "c/", clock=lambda: now)
    assert chain.head() is None
    assert chain.refresh(None) is None
    last = grow(chain, 3)
    assert chain.head() == last
    assert (last.number, last.body, last.actor, last.reason, last.at) == (3, {"n": 3}, "a", "step 3", now)
    history = list(chain.history())
    assert [revision.number for revision in history] == [3, 2, 1]
    for child, parent in itertools.pairwise(history):
        assert child.parent_commit_id == parent.commit_id
    assert history[-1].parent_commit_id is None
    assert chain.get(2).body == {"n": 2}
    with pytest.raises(NotFoundError):
        chain.get(4)


def test_history_is_read_in_pages(store: ObjectStore) -> None:
    chain = Chain(store, "c/")
    grow(chain, 7)
    assert [revision.number for revision in chain.history(limit=3)] == [7, 6, 5]
    assert [revision.number for revision in chain.history(limit=3, before=5)] == [4, 3, 2]
    assert [revision.number for revision in chain.history(limit=3, before=2)] == [1]
    assert list(chain.history(limit=0)) == []


def test_keys_list_the_newest_first_across_powers_of_ten() -> None:
    chain = Chain(MemoryStore(), "c/")
    numbers = [1, 9, 10, 99, 100, 10**6, 10**12 - 1]
    keys = [chain.key(number) for number in numbers]
    assert sorted(keys, reverse=True) == keys


def test_late_writer_gets_a_conflict(store: ObjectStore) -> None:
    chain = Chain(store, "c/")
    first = grow(chain, 1)
    chain.append({"by": "winner"}, after=first, actor="winner", reason="won")
    with pytest.raises(CommitConflictError, match="winner"):
        chain.append({"by": "loser"}, after=first, actor="loser", reason="lost")
    head = chain.head()
    assert head is not None
    assert head.body == {"by": "winner"}
    with pytest.raises(CommitConflictError):
        chain.append({}, after=None, actor="loser", reason="also lost")


def test_one_of_many_writers_wins_each_revision(store: ObjectStore) -> None:
    chain = Chain(store, "c/")
    base = grow(chain, 1)
    won: list[int] = []
    barrier = threading.Barrier(16)

    def write(number: int) -> None:
        barrier.wait()
        try:
            chain.append({"writer": number}, after=base, actor="a", reason="race")
        except CommitConflictError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    head = chain.head()
    assert head is not None
    assert head.body == {"writer": won[0]}


class _LostAnswers:
    """Loses the responses of the first creates: they succeed, but the client does not learn it."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, operation: str, key: str) -> None:
        if operation == "create" and self.left:
            self.left -= 1
            raise CommitOutcomeUnknownError("the answer was lost", key=key)


# First trap: lost responses


def test_commit_with_a_lost_response_is_found_to_have_won(store: ObjectStore) -> None:
    hooked = HookedStore(store, after=_LostAnswers(1))
    chain = Chain(hooked, "c/")
    revision = chain.append({"x": 1}, after=None, actor="a", reason="r")
    assert chain.head() == revision
    assert [key for operation, key in hooked.calls if operation == "create"] == [chain.key(1)]  # checked, not resent


def test_retry_that_meets_its_own_object_is_not_a_conflict(store: ObjectStore) -> None:
    # An S3 client loses the response, sends the PUT again, and gets 412 because of its own first attempt.
    class Resending(HookedStore):
        def create(self, key: str, data: bytes) -> None:
            super().create(key, data)
            super().create(key, data)

    revision = Chain(Resending(store), "c/").append({"x": 1}, after=None, actor="a", reason="r")
    assert Chain(store, "c/").head() == revision


def test_lost_response_to_a_lost_race_is_a_conflict(store: ObjectStore) -> None:
    other = Chain(store, "c/").append({"by": "other"}, after=None, actor="o", reason="first")

    def lose(operation: str, key: str) -> None:
        if operation == "create":
            raise CommitOutcomeUnknownError("the answer was lost", key=key)

    with pytest.raises(CommitConflictError):
        Chain(HookedStore(store, before=lose), "c/").append({}, after=None, actor="a", reason="r")
    assert Chain(store, "c/").head() == other


def test_a_request_that_was_lost_is_sent_again(store: ObjectStore) -> None:
    lost = _LostAnswers(2)
    chain = Chain(HookedStore(store, before=lost), "c/")
    assert chain.append({"x": 1}, after=None, actor="a", reason="r") == chain.head()
    assert lost.left == 0


def test_undeterminable_commit_outcome_is_reported_as_unknown(store: ObjectStore) -> None:
    def unreachable(operation: str, key: str) -> None:
        if operation == "get":
            raise StoreUnavailableError("no answer")

    hooked = HookedStore(store, before=unreachable, after=_LostAnswers(100))
    with pytest.raises(CommitOutcomeUnknownError) as caught:
        Chain(hooked, "c/").append({"x": 1}, after=None, actor="a", reason="r")
    there = Chain(store, "c/").head()
    assert there is not None  # the commit had won, so deleting or retrying it would be wrong
    assert there.commit_id == caught.value.details["commit_id"]


def test_store_down_before_the_first_request_is_unavailable(store: ObjectStore) -> None:
    def down(operation: str, key: str) -> None:
        raise StoreUnavailableError("down")

    with pytest.raises(StoreUnavailableError):
        Chain(HookedStore(store, before=down), "c/").append({}, after=None, actor="a", reason="r")


# Second trap: late creates in a pruned chain


def test_late_create_of_a_pruned_number_is_not_a_commit(store: ObjectStore) -> None:
    chain = Chain(store, "lease/", pruned=True)
    second = grow(chain, 2)
    newest = grow(chain, 8, second)
    chain.prune(2)
    with pytest.raises(CommitConflictError):
        chain.append({"by": "late"}, after=second, actor="late", reason="slept")
    assert chain.head() == newest
    assert [revision.number for revision in chain.history()] == [10, 9]  # the late revision is removed


def test_late_first_create_in_a_pruned_chain_is_not_a_commit(store: ObjectStore) -> None:
    chain = Chain(store, "lease/", pruned=True)
    newest = grow(chain, 3)
    chain.prune(1)
    with pytest.raises(CommitConflictError):
        chain.append({"by": "late"}, after=None, actor="late", reason="slept")
    assert chain.head() == newest


def test_unconfirmed_commit_with_a_child_is_valid(store: ObjectStore) -> None:
    plain = Chain(store, "lease/", pruned=True)

    def overtake(operation: str, key: str) -> None:
        if operation == "create":  # between the create and the check of the newest revision
            head = plain.head()
            assert head is not None
            plain.append({"by": "next"}, after=head, actor="next", reason="overtook")

    chain = Chain(HookedStore(store, after=overtake), "lease/", pruned=True)
    ours = chain.append({"by": "us"}, after=None, actor="us", reason="r")
    head = plain.head()
    assert head is not None
    assert (head.number, head.parent_commit_id) == (2, ours.commit_id)


def test_the_newest_revision_is_never_pruned(store: ObjectStore) -> None:
    chain = Chain(store, "lease/", pruned=True)
    newest = grow(chain, 4)
    chain.prune(0)
    assert list(chain.history()) == [newest]
    grow(chain, 1, newest)


def test_history_that_is_kept_cannot_be_pruned(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="kept"):
        Chain(store, "c/").prune(1)


def test_a_pruned_chain_has_one_winner_while_it_is_pruned(store: ObjectStore) -> None:
    """Writers commit as fast as they can, some from an old head, while the chain is pruned after every commit."""
    wins: dict[int, list[str]] = {}
    guard = threading.Lock()

    def write(name: str) -> None:
        chain = Chain(store, "lease/", pruned=True)
        stale: Revision | None = None
        for turn in range(30):
            head = stale if turn % 3 == 2 else chain.head()
            if turn % 3 == 0:
                stale = head
            try:
                revision = chain.append({"by": name}, after=head, actor=name, reason="r")
            except CommitConflictError:
                continue
            with guard:
                wins.setdefault(revision.number, []).append(name)
            chain.prune(1)

    threads = [threading.Thread(target=write, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    head = Chain(store, "lease/", pruned=True).head()
    assert head is not None
    assert head.number >= max(wins)
    assert all(len(winners) == 1 for winners in wins.values())


# Third trap: checks of a known head


@pytest.mark.parametrize("pruned", [False, True])
def test_refresh_of_an_unchanged_chain_is_one_request(store: ObjectStore, pruned: bool) -> None:
    hooked = HookedStore(store)
    chain = Chain(hooked, "c/", pruned=pruned)
    grow(chain, 3)
    known = chain.head()
    assert known is not None
    hooked.calls.clear()
    assert chain.refresh(known) is known
    assert [name for name, _ in hooked.calls] == ["list"]


def test_own_commit_is_read_once_and_then_costs_one_request(store: ObjectStore) -> None:
    hooked = HookedStore(store)
    chain = Chain(hooked, "c/")
    committed = grow(chain, 3)
    hooked.calls.clear()
    known = chain.refresh(committed)
    assert known == committed
    assert [name for name, _ in hooked.calls] == ["list", "get"]
    hooked.calls.clear()
    assert chain.refresh(known) is known
    assert [name for name, _ in hooked.calls] == ["list"]


def test_a_refresh_of_a_pruned_chain_sees_past_pruned_numbers(store: ObjectStore) -> None:
    chain = Chain(store, "c/", pruned=True)
    known = grow(chain, 3)
    newest = grow(chain, 5, known)
    chain.prune(1)  # number 4 is pruned: a check for it alone would find no change
    assert chain.refresh(known) == newest


def test_a_refresh_finds_what_was_committed_since(store: ObjectStore) -> None:
    chain = Chain(store, "c/")
    known = grow(chain, 2)
    newest = grow(chain, 3, known)
    assert chain.refresh(known) == newest


# Foreign objects in the folder


def test_foreign_objects_are_left_alone(store: ObjectStore) -> None:
    chain = Chain(store, "c/")
    store.create("c/.DS_Store", b"x")
    assert chain.head() is None
    last = grow(chain, 2)
    store.create("c/README.txt", b"x")
    assert chain.head() == last
    assert len(list(chain.history())) == 2


def test_damaged_revision_is_reported_with_its_key(store: ObjectStore) -> None:
    chain = Chain(store, "c/")
    store.create(chain.key(1), b"{ not json")
    with pytest.raises(StoreError, match="999999999999"):
        chain.head()


def test_reading_a_revision_pruned_meanwhile_returns_the_newest(store: ObjectStore) -> None:
    plain = Chain(store, "c/", pruned=True)
    grow(plain, 2)
    newest: list[Revision] = []

    def move_on(operation: str, key: str) -> None:
        if operation == "get" and not newest:
            head = plain.head()
            newest.append(plain.append({}, after=head, actor="a", reason="r"))
            plain.prune(1)

    assert Chain(HookedStore(store, before=move_on), "c/", pruned=True).head() == newest[0]


def test_nothing_but_json_is_committed(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Chain(store, "c/").append({"x": float("nan")}, after=None, actor="a", reason="r")
    with pytest.raises(ObjectNotFoundError):
        store.get(Chain(store, "c/").key(1))


class OneBitOff:
    """A store that flips one bit in each of the first ``times`` reads."""

    def __init__(self, store: ObjectStore, times: int) -> None:
        self._store = store
        self._times = times

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data = self._store.get(key, start=start, length=length)
        if self._times == 0:
            return data
        self._times -= 1
        place = data.index(b'"n": ') + 5  # a digit of the body; the result is valid JSON
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_revision_corrupted_in_transit_is_read_again(store: ObjectStore) -> None:
    grow(Chain(store, "c/"), 2)
    head = Chain(OneBitOff(store, 2), "c/").head()  # type: ignore[arg-type]
    assert head is not None
    assert head.body == {"n": 2}


def test_permanently_damaged_revision_is_rejected(store: ObjectStore) -> None:
    grow(Chain(store, "c/"), 1)
    with pytest.raises(DamagedRevisionError, match="sha256"):
        Chain(OneBitOff(store, 99), "c/").head()  # type: ignore[arg-type]


def test_a_revision_written_by_hand_needs_no_digest(store: ObjectStore) -> None:
    chain = Chain(store, "c/")
    document = json.loads(grow(chain, 1).to_json())
    document |= {"number": 2, "parent_commit_id": document["commit_id"], "commit_id": "by-hand", "body": {"n": 7}}
    del document["sha256"]
    store.create(chain.key(2), json.dumps(document).encode())
    head = chain.head()
    assert head is not None
    assert (head.number, head.body) == (2, {"n": 7})
