"""Publish intents and garbage collection markers: the two flags of Dekker's mutual exclusion algorithm.

A process that is about to refer to blobs first writes an intent that names them, then looks for markers. A process that
is about to delete blobs first writes a marker that names them, then looks for intents (`controlplane.registry.gc`).
Every later list sees a completed write, so at least one of the two sees the other: the collector skips those blobs, or
the publisher waits until the marker is gone and then checks which blobs exist. See docs/adr/0002-garbage-collection.md.
"""

import json
import logging
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlplane.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

INTENTS = "publishing/"
MARKERS = "gc/deleting/"
MARKER_STALE = timedelta(minutes=10)
"""Maximum age of a live collector's marker; a live collector stops deleting well before. An older marker is stale."""

_POLL_SECONDS = 0.02
_POLL_MAX_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Note:
    """An intent or a marker as stored in the bucket."""

    key: str
    modified_at: datetime
    digests: frozenset[str]


def _write(store: ObjectStore, key: str, digests: Collection[str], why: str) -> None:
    document = {"at": datetime.now(UTC).isoformat(), "why": why, "digests": sorted(digests)}
    with suppress(ObjectExistsError):  # only we use this key: a retry met its own first attempt
        store.create(key, json.dumps(document, indent=1).encode())


def notes(store: ObjectStore, prefix: str) -> Iterator[Note]:
    """Yield all intents or all markers."""
    for info in store.list(prefix):
        digests = read_note(store, info.key)
        if digests is not None:
            yield Note(info.key, info.modified_at, digests)


def read_note(store: ObjectStore, key: str) -> frozenset[str] | None:
    """Return the digests that an intent or a marker names; None if it no longer exists.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        return frozenset(map(str, json.loads(store.get(key))["digests"]))
    except ObjectNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{key} is damaged, so the blobs that it protects are unknown; `tritonctl fsck --repair` removes it "
            "when it is too old to be in use",
            key=key,
        ) from error


def write_marker(store: ObjectStore, digests: Collection[str]) -> str:
    """Write a marker that announces the deletion of these blobs; return its key."""
    key = f"{MARKERS}{uuid.uuid4().hex}.json"
    _write(store, key, digests, "garbage collection")
    return key


def hold(store: ObjectStore, digests: Collection[str], why: str) -> str:
    """Protect blobs from collection: write the intent, then wait for any marker that names one of them.

    Returns:
        The intent's key, for `release`. An intent left behind by a crash expires automatically when it is older than
            ``gc.upload_max_age_seconds``.
    """
    key = f"{INTENTS}{uuid.uuid4().hex}.json"
    _write(store, key, digests, why)
    _wait_for_markers(store, frozenset(digests), key)
    return key


def release(store: ObjectStore, key: str) -> None:
    """Remove the intent of `hold`."""
    store.delete(key)


def stands(store: ObjectStore, key: str) -> bool:
    """Return whether the intent of `hold` still exists and protects its blobs.

    A collector removes an intent that it considers abandoned. If the intent exists after a commit, every collector that
    read the heads before the commit has seen the intent, and every later one sees the commit.
    """
    return store.head(key) is not None


def written_at(store: ObjectStore, key: str) -> datetime:
    """Return when an intent was written, by the store's clock.

    Raises:
        ConflictError: The intent no longer exists.
    """
    info = store.head(key)
    if info is None:
        raise ConflictError(f"{key} was removed while it was in use; check the clocks of the machines, then try again")
    return info.modified_at


@contextmanager
def holding(store: ObjectStore, digests: Collection[str], why: str) -> Iterator[str]:
    """Protect blobs for the duration of a block; yield the intent's key.

    After a commit with an unknown outcome the intent stays, because the commit may have succeeded and then needs its
    blobs.
    """
    key = hold(store, digests, why)
    try:
        yield key
    except CommitOutcomeUnknownError:
        raise
    except BaseException:
        _try_release(store, key)
        raise
    _try_release(store, key)


def _try_release(store: ObjectStore, key: str) -> None:
    try:
        release(store, key)
    except StoreError as error:  # the block's work is complete; the intent expires by its age
        logger.warning("failed to remove the intent %s: %s", key, error)


def _wait_for_markers(store: ObjectStore, digests: frozenset[str], intent: str) -> None:
    began, pause = time.monotonic(), _POLL_SECONDS
    now_there: datetime | None = None
    while True:
        blocking = [note for note in notes(store, MARKERS) if note.digests & digests]
        if not blocking:
            return
        if now_there is None:
            # Ages use only the store's clock: the error of our clock may exceed the ages.
            info = store.head(intent)
            now_there = info.modified_at if info else datetime.now(UTC)
        now = now_there + timedelta(seconds=time.monotonic() - began)
        if all(now - note.modified_at > MARKER_STALE for note in blocking):
            return
        logger.info("waiting for garbage collection %s to finish", blocking[0].key)
        time.sleep(pause)
        pause = min(pause * 2, _POLL_MAX_SECONDS)
