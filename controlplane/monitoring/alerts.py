"""Tells the webhook when an objective burns and when it is kept again, over restarts and changes of the leader.

What is to be told is kept in the bucket first, for each objective: whether it burns, the message with its id, and
whether it arrived. Only what is kept is sent, so that whoever is killed at any moment told nothing that the next does
not know of. Who comes after a restart, or after another leader, goes on from there: a message that did not arrive is
sent again as it was, under its old id, by which a receiver that had it already drops it; what began or ended to burn in
between is told; the rest is not told twice.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from controlplane.domain.metrics import ObjectiveKind, ObjectiveState
from controlplane.errors import ControlPlaneError
from controlplane.monitoring.webhook import Webhook, new_message_id
from controlplane.registry.condition_log import ConditionLog

logger = logging.getLogger(__name__)

PART = "told"


@dataclass(frozen=True, slots=True)
class AlertState:
    """What was told of an objective last, or is about to be.

    Attributes:
        burning: Whether that it burns.
        id: The message's id; empty before the first.
        arrived: Whether it arrived, or was given up.
        recalled: Whether that was another process, whose windows are gone.
        since: When it turned (UTC): the message's timestamp; None once it arrived.
        data: The message's data; None once it arrived.
    """

    burning: bool = False
    id: str = ""
    arrived: bool = True
    recalled: bool = False
    since: datetime | None = None
    data: Mapping[str, Any] | None = None


def next_alert_state(told: AlertState, *, burning: bool, seasoned: bool, new_id: str) -> AlertState:
    """Decide what to tell now; what comes back is to be told if its id is new.

    Args:
        told: What was told last.
        burning: Whether it burns now.
        seasoned: Whether this process has watched for long enough to say that it does not.
        new_id: For a new message.
    """
    if burning is told.burning or (told.recalled and not burning and not seasoned):
        return told
    return AlertState(burning, new_id, arrived=False)


class AlertNotifier:
    """What was told, and what is still to arrive. Belongs to one event loop.

    Args:
        condition_log: Where it is kept.
        webhook: Delivers.
        leading: Whether this process is the one that tells.
        seasoned_seconds: How long to watch before "it does not burn" is believed of what another process saw burn.
    """

    def __init__(
        self, condition_log: ConditionLog, webhook: Webhook, *, leading: Callable[[], bool], seasoned_seconds: float
    ) -> None:
        self._condition_log = condition_log
        self._webhook = webhook
        self._leading = leading
        self._seasoned_seconds = seasoned_seconds
        self._told: dict[str, dict[ObjectiveKind, AlertState]] = {}
        self._known = False
        self._began: float | None = None
        self._dirty: set[str] = set()
        self._sent: set[str] = set()  # ids in the webhook's queue
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        webhook.on_end = self._ended

    def ready(self) -> bool:
        """Whether this process is to tell and knows what was told before it led; begins to read that if it does not."""
        self._began = self._began or time.monotonic()
        if not self._webhook.enabled or not self._leading():
            self._known = False
            return False
        if not self._known and _idle(self._reading) and _idle(self._writing):
            self._reading = asyncio.create_task(self._read(), name="read what was told")
        return self._known

    def tell(self, model: str, state: ObjectiveState, data: Mapping[str, Any]) -> None:
        """See to it that what has to be told of an objective now is told, if anything has."""
        known = self._told.setdefault(model, {})
        before = known.get(state.kind, AlertState())
        if not before.arrived and before.id not in self._sent:
            return  # it has to be kept and sent first: one after the other
        now = next_alert_state(before, burning=state.burning, seasoned=self._seasoned(), new_id=new_message_id())
        if now is not before:
            data = {**data, "objective": state.model_dump(mode="json")}
            known[state.kind] = replace(now, since=datetime.now(UTC), data=data)
            self._dirty.add(model)

    def forget(self, model: str, others: Collection[ObjectiveKind]) -> None:
        """A model has no other objectives than these any more."""
        known = self._told.get(model, {})
        if gone := known.keys() - set(others):
            self._told[model] = {kind: told for kind, told in known.items() if kind not in gone}
            self._dirty.add(model)

    def drop(self, model: str) -> None:
        """A model is not deployed any more; what is kept of it goes with its deployment."""
        self._told.pop(model, None)
        self._dirty.discard(model)

    def models(self) -> set[str]:
        """Return the models of which something was told, or is about to be."""
        return {model for model, known in self._told.items() if known}

    def keep(self) -> None:
        """Write what changed, beside the loop."""
        if self._dirty and self._leading() and _idle(self._writing):
            self._writing = asyncio.create_task(self._write(), name="keep what was told")

    async def stop(self) -> None:
        """End what is being read and written."""
        if self._reading is not None:
            self._reading.cancel()
        await asyncio.gather(*(task for task in (self._reading, self._writing) if task), return_exceptions=True)

    def _seasoned(self) -> bool:
        return self._began is not None and time.monotonic() - self._began >= self._seasoned_seconds

    async def _read(self) -> None:
        try:
            found = await asyncio.to_thread(self._condition_log.all)
        except ControlPlaneError as error:
            logger.info("what was told of objectives cannot be read yet: %s", error)
            return
        before, self._told, self._known = self._told, {}, True
        self._dirty.clear()  # what was not kept was not sent
        for model, body in found.items():
            self._told[model] = known = _parse(body.get(PART))
            for kind, told in known.items():
                if (mine := before.get(model, {}).get(kind)) and mine.arrived and mine.id == told.id:
                    known[kind] = replace(told, arrived=True)  # it could not be kept then
                    self._dirty.add(model)
            self._send(known.values())

    async def _write(self) -> None:
        for model in list(self._dirty):
            if model not in self._dirty:
                continue  # dropped meanwhile
            self._dirty.discard(model)
            known = dict(self._told.get(model, {}))
            value = {kind.value: _record(told) for kind, told in known.items()}
            try:
                done = await asyncio.to_thread(
                    self._condition_log.put, model, PART, value, actor="monitoring", reason="told of an objective"
                )
            except ControlPlaneError as error:
                logger.info("what is to be told of %s cannot be kept: %s", model, error)
                self._dirty.add(model)  # again at the next look, if this process leads by then
                continue
            if not done:
                self._known = False  # another leader told something meanwhile: its word stands
                return
            now = self._told.get(model, {})  # what was on its way already may have arrived meanwhile
            self._send(told for kind, told in now.items() if kind in known and known[kind].id == told.id)

    def _send(self, kept: Iterable[AlertState]) -> None:
        for told in kept:
            if not told.arrived and told.id not in self._sent and told.data is not None:
                self._sent.add(told.id)
                kind = "objective.burning" if told.burning else "objective.kept"
                self._webhook.send(kind, told.data, told.id, since=told.since)

    def _ended(self, message_id: str) -> None:
        self._sent.discard(message_id)
        for model, known in self._told.items():
            for kind, told in known.items():
                if told.id == message_id and not told.arrived:
                    known[kind] = replace(told, arrived=True, since=None, data=None)
                    self._dirty.add(model)
                    return


def _idle(task: "asyncio.Task[None] | None") -> bool:
    return task is None or task.done()


def _record(told: AlertState) -> dict[str, Any]:
    record: dict[str, Any] = {"burning": told.burning, "id": told.id, "arrived": told.arrived}
    if not told.arrived and told.since is not None:
        record |= {"since": told.since.isoformat(), "data": told.data}
    return record


def _parse(value: Any) -> dict[ObjectiveKind, AlertState]:
    """Read a record; nothing where somebody else wrote it."""
    try:
        return {
            ObjectiveKind(kind): AlertState(
                bool(one["burning"]),
                str(one["id"]),
                arrived := bool(one["arrived"]),
                recalled=True,
                since=None if arrived else datetime.fromisoformat(one["since"]),
                data=None if arrived else dict(one["data"]),
            )
            for kind, one in (value or {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
