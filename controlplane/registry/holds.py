"""Client holds: a client's claim on a model, which keeps the model loaded until the hold ends.

Each hold is a separate pruned chain, ``holds/<model>/<hold id>/``: acquiring it is revision 1, each renewal is the next
one, and releasing it writes a last revision with the end. One LIST of the prefix finds all holds. A revision never
changes, so reading the holds again costs one request if nothing changed.

A hold ends by the store's clock, at the time in its revision. Stores report the time with a resolution of one second,
so a client that must not lose the model renews early rather than at the end.
"""

import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from controlplane.domain.names import validate_model_name
from controlplane.errors import CommitConflictError, InvalidInputError, NotFoundError, ObjectNotFoundError
from controlplane.registry.chain import Chain, Revision
from controlplane.registry.changes import ChangeFeed, ChangeLog, steady
from controlplane.storage.base import ObjectStore

PREFIX = "holds/"
KIND = "holds"
"""Name of all holds together in the change feed."""
_POLLED_SECONDS = 0.5
MAX_SECONDS = 24 * 3600.0
_KEY = re.compile(r"holds/([^/]+)/([0-9a-f]{32})/(\d{12})\.json")
_SWEEP_AFTER = timedelta(minutes=1)
"""How long the objects of an ended hold stay, for a renewal that is in flight."""


@dataclass(frozen=True, slots=True)
class ModelHold:
    """A client's claim on a model.

    Attributes:
        id: The hold's id.
        model: The model that is held.
        holder: The owner of the hold, for display.
        expires_at: When the hold ends unless it is renewed (UTC).
        seconds: The time to live of the last request.
    """

    id: str
    model: str
    holder: str
    expires_at: datetime
    seconds: float

    def active(self, now: datetime) -> bool:
        """Return whether the hold is active at this moment."""
        return now < self.expires_at

    def released(self) -> "ModelHold":
        """Return this hold as ended by every clock: the store's clock may be behind this machine's."""
        return replace(self, expires_at=datetime.min.replace(tzinfo=UTC))


Holds = tuple[ModelHold, ...]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ModelHolds:
    """Acquires, renews, releases and lists client holds. Blocks; safe to use from several threads.

    Args:
        store: The bucket.
        clock: Provides the store's time.
        changes: Receives an entry before each commit, so that the holds need not be listed while none changes.
        feed: Reads the entries.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        clock: Callable[[], datetime] = _utc_now,
        changes: ChangeLog | None = None,
        feed: ChangeFeed | None = None,
    ) -> None:
        self._store = store
        self._changes = changes
        self._feed = feed
        self._clock = clock
        self._read: dict[str, ModelHold | None] = {}
        self._guard = threading.Lock()

    def acquire(self, model: str, *, seconds: float, holder: str = "") -> ModelHold:
        """Acquire a hold on a model.

        Raises:
            InvalidInputError: The time is not above 0, or longer than a day.
        """
        validate_model_name(model)
        return self._append(ModelHold(uuid.uuid4().hex, model, holder, self._end(seconds), seconds), None, "take")

    def renew(self, model: str, hold_id: str, *, seconds: float) -> ModelHold:
        """Extend a hold to ``seconds`` from now.

        Raises:
            NotFoundError: The hold has ended, and the model may be unloaded; acquire a new hold and check that the
                model is loaded.
            InvalidInputError: The time is not above 0, or longer than a day.
        """
        end = self._end(seconds)
        while True:
            head = self._head(model, hold_id)
            known = self._active(head, model, hold_id)
            try:
                return self._append(ModelHold(hold_id, model, known.holder, end, seconds), head, "renew")
            except CommitConflictError:
                continue  # two concurrent renewals: both are valid

    def release(self, model: str, hold_id: str) -> ModelHold:
        """Release a hold. Releasing an ended hold is not an error.

        Returns:
            The hold with its end, so that callers can apply it at once.

        Raises:
            NotFoundError: The hold never existed, or it ended long ago.
        """
        while True:
            head = self._head(model, hold_id)
            known = _parse(head.body) if head else None
            if known is None:
                raise _missing(model, hold_id)
            now = self._clock()
            if not known.active(now):
                return known
            try:
                return self._append(ModelHold(hold_id, model, known.holder, now, known.seconds), head, "release")
            except CommitConflictError:
                continue

    def get(self, model: str, hold_id: str) -> ModelHold:
        """Return an active hold.

        Raises:
            NotFoundError: There is no such active hold.
        """
        return self._active(self._head(model, hold_id), model, hold_id)

    def list(self, model: str | None = None) -> Holds:
        """Return the active holds of one model or of all models, ordered by their end."""
        now = self._clock()
        return tuple(sorted((one for one in self._all(model) if one.active(now)), key=lambda one: one.expires_at))

    def may_have_changed(self) -> bool:
        """Return whether a hold was acquired, renewed or released recently, according to the change feed.

        Raises:
            StoreError: The store failed.
        """
        if self._feed is None:
            return True
        self._feed.poll(not_before=steady() - _POLLED_SECONDS)
        return self._feed.expects(KIND)

    def sweep(self) -> int:
        """Remove holds that ended a while ago; return how many. Only the leader calls this."""
        now, gone = self._clock(), 0
        for hold in self._all(None):
            if now - hold.expires_at > _SWEEP_AFTER:
                for info in list(self._store.list(f"{PREFIX}{hold.model}/{hold.id}/")):
                    self._store.delete(info.key)
                gone += 1
        return gone

    def _all(self, model: str | None) -> Holds:
        newest: dict[tuple[str, str], str] = {}
        for info in self._store.list(PREFIX if model is None else f"{PREFIX}{model}/"):
            match = _KEY.fullmatch(info.key)
            if match:
                newest.setdefault((match[1], match[2]), info.key)
        with self._guard:
            if model is None:
                self._read = {key: hold for key, hold in self._read.items() if key in set(newest.values())}
            read = dict(self._read)
        for key in newest.values():
            if key in read:
                continue
            try:
                read[key] = _parse(Revision.from_json(self._store.get(key), key).body)
            except ObjectNotFoundError:
                read[key] = None  # pruned in the meantime: the next read finds the newer revision
                continue
            with self._guard:
                self._read[key] = read[key]
        return tuple(hold for key in newest.values() if (hold := read[key]) is not None)

    def _append(self, hold: ModelHold, after: Revision | None, reason: str) -> ModelHold:
        body = {
            "id": hold.id,
            "model": hold.model,
            "holder": hold.holder,
            "expires_at": hold.expires_at.isoformat(),
            "seconds": hold.seconds,
        }
        chain = self._chain(hold.model, hold.id)
        if self._changes is not None:
            self._changes.announce(KIND, 0)
        chain.append(body, after=after, actor=hold.holder or "client", reason=reason)
        if after is not None:
            chain.prune(2)
        return hold

    def _head(self, model: str, hold_id: str) -> Revision | None:
        validate_model_name(model)
        if not re.fullmatch(r"[0-9a-f]{32}", hold_id):
            raise _missing(model, hold_id)
        return self._chain(model, hold_id).head()

    def _active(self, head: Revision | None, model: str, hold_id: str) -> ModelHold:
        hold = _parse(head.body) if head else None
        if hold is None or not hold.active(self._clock()):
            raise _missing(model, hold_id)
        return hold

    def _chain(self, model: str, hold_id: str) -> Chain:
        return Chain(self._store, f"{PREFIX}{model}/{hold_id}/", pruned=True)

    def _end(self, seconds: float) -> datetime:
        if not 0 < seconds <= MAX_SECONDS:
            raise InvalidInputError(
                f"a hold of {seconds:g} s is not possible; give more than 0 and at most {MAX_SECONDS:g} s",
                seconds=seconds,
            )
        return self._clock() + timedelta(seconds=seconds)


def _parse(body: Mapping[str, Any]) -> ModelHold | None:
    try:
        return ModelHold(
            id=str(body["id"]),
            model=str(body["model"]),
            holder=str(body.get("holder", "")),
            expires_at=datetime.fromisoformat(body["expires_at"]),
            seconds=float(body["seconds"]),
        )
    except (KeyError, ValueError, TypeError):
        return None  # written by another program: not a hold


def _missing(model: str, hold_id: str) -> NotFoundError:
    return NotFoundError(f"{model} has no hold {hold_id}; it may have ended", model=model, hold=hold_id)
