"""Notifies the webhook when an objective burns and when it recovers, across restarts and changes of the leader.

For each objective, the notification is first recorded in the store: whether the objective burns, the message with its
id, and whether it was delivered. Only recorded messages are sent, so a crash never leaves a sent notification
unrecorded. After a restart or a change of the leader, the next process continues from the record: it sends an
undelivered message again, unchanged and under its old id, so that a receiver that already has it can drop it; it
reports what began or ceased to burn in between; and it sends nothing else twice.
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
    """The last notification about an objective, delivered or not.

    Attributes:
        burning: Whether it reports that the objective burns.
        id: The message's id; empty before the first message.
        arrived: Whether it was delivered or given up.
        recalled: Whether another process made it, whose windows are lost.
        since: When the state changed (UTC), the message's timestamp; None once it was delivered.
        data: The message's data; None once it was delivered.
    """

    burning: bool = False
    id: str = ""
    arrived: bool = True
    recalled: bool = False
    since: datetime | None = None
    data: Mapping[str, Any] | None = None


def next_alert_state(alert: AlertState, *, burning: bool, seasoned: bool, new_id: str) -> AlertState:
    """Return the next notification state; it must be sent if its id is new.

    Args:
        alert: The last notification.
        burning: Whether the objective burns now.
        seasoned: Whether this process has full windows, so that it can report a recovery.
        new_id: The id of a new message.
    """
    if burning is alert.burning or (alert.recalled and not burning and not seasoned):
        return alert
    return AlertState(burning, new_id, arrived=False)


class AlertNotifier:
    """Records and sends the notifications about objectives. Belongs to one event loop.

    Args:
        condition_log: Stores the notification states.
        webhook: Delivers the messages.
        leading: Returns whether this process is the leader, which sends the notifications.
        seasoned_seconds: How long to watch before reporting the recovery of an objective that another process saw burn.
    """

    def __init__(
        self, condition_log: ConditionLog, webhook: Webhook, *, leading: Callable[[], bool], seasoned_seconds: float
    ) -> None:
        self._condition_log = condition_log
        self._webhook = webhook
        self._leading = leading
        self._seasoned_seconds = seasoned_seconds
        self._alerts: dict[str, dict[ObjectiveKind, AlertState]] = {}
        self._known = False
        self._began: float | None = None
        self._dirty: set[str] = set()
        self._sent: set[str] = set()  # ids in the webhook's queue
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        webhook.on_end = self._ended

    def ready(self) -> bool:
        """Return whether this process sends notifications and has read the earlier states; if not, start to read."""
        self._began = self._began or time.monotonic()
        if not self._webhook.enabled or not self._leading():
            self._known = False
            return False
        if not self._known and _idle(self._reading) and _idle(self._writing):
            self._reading = asyncio.create_task(self._read(), name="read alert states")
        return self._known

    def notify(self, model: str, state: ObjectiveState, data: Mapping[str, Any]) -> None:
        """Queue a notification about an objective if its state requires one."""
        known = self._alerts.setdefault(model, {})
        before = known.get(state.kind, AlertState())
        if not before.arrived and before.id not in self._sent:
            return  # the previous message must be recorded and sent first, to keep the order
        now = next_alert_state(before, burning=state.burning, seasoned=self._has_full_window(), new_id=new_message_id())
        if now is not before:
            data = {**data, "objective": state.model_dump(mode="json")}
            known[state.kind] = replace(now, since=datetime.now(UTC), data=data)
            self._dirty.add(model)

    def forget(self, model: str, others: Collection[ObjectiveKind]) -> None:
        """Forget the notifications about all objectives of a model except ``others``."""
        known = self._alerts.get(model, {})
        if gone := known.keys() - set(others):
            self._alerts[model] = {kind: alert for kind, alert in known.items() if kind not in gone}
            self._dirty.add(model)

    def drop(self, model: str) -> None:
        """Forget a model that is no longer deployed; its record is removed with its deployment."""
        self._alerts.pop(model, None)
        self._dirty.discard(model)

    def models(self) -> set[str]:
        """Return the models with notifications, delivered or not."""
        return {model for model, known in self._alerts.items() if known}

    def keep(self) -> None:
        """Record changed states in the store, in a task."""
        if self._dirty and self._leading() and _idle(self._writing):
            self._writing = asyncio.create_task(self._write(), name="write alert states")

    async def stop(self) -> None:
        """Cancel the read in progress, and wait for the write in progress."""
        if self._reading is not None:
            self._reading.cancel()
        await asyncio.gather(*(task for task in (self._reading, self._writing) if task), return_exceptions=True)

    def _has_full_window(self) -> bool:
        return self._began is not None and time.monotonic() - self._began >= self._seasoned_seconds

    async def _read(self) -> None:
        try:
            found = await asyncio.to_thread(self._condition_log.all)
        except ControlPlaneError as error:
            logger.info("failed to read the alert states; trying again: %s", error)
            return
        before, self._alerts, self._known = self._alerts, {}, True
        self._dirty.clear()  # messages that were not recorded were not sent
        for model, body in found.items():
            self._alerts[model] = known = _parse(body.get(PART))
            for kind, alert in known.items():
                if (mine := before.get(model, {}).get(kind)) and mine.arrived and mine.id == alert.id:
                    known[kind] = replace(alert, arrived=True)  # the delivery could not be recorded at the time
                    self._dirty.add(model)
            self._send(known.values())

    async def _write(self) -> None:
        for model in list(self._dirty):
            if model not in self._dirty:
                continue  # dropped in the meantime
            self._dirty.discard(model)
            known = dict(self._alerts.get(model, {}))
            value = {kind.value: _record(alert) for kind, alert in known.items()}
            try:
                done = await asyncio.to_thread(
                    self._condition_log.put, model, PART, value, actor="monitoring", reason="record the alert state"
                )
            except ControlPlaneError as error:
                logger.info("failed to record the alert state of %s; trying again: %s", model, error)
                self._dirty.add(model)  # tried again at the next `keep`, if this process leads by then
                continue
            if not done:
                self._known = False  # another leader wrote a notification in the meantime: its record is valid
                return
            now = self._alerts.get(model, {})  # messages in the queue may have been delivered in the meantime
            self._send(alert for kind, alert in now.items() if kind in known and known[kind].id == alert.id)

    def _send(self, kept: Iterable[AlertState]) -> None:
        for alert in kept:
            if not alert.arrived and alert.id not in self._sent and alert.data is not None:
                self._sent.add(alert.id)
                kind = "objective.burning" if alert.burning else "objective.kept"
                self._webhook.send(kind, alert.data, alert.id, since=alert.since)

    def _ended(self, message_id: str) -> None:
        self._sent.discard(message_id)
        for model, known in self._alerts.items():
            for kind, alert in known.items():
                if alert.id == message_id and not alert.arrived:
                    known[kind] = replace(alert, arrived=True, since=None, data=None)
                    self._dirty.add(model)
                    return


def _idle(task: "asyncio.Task[None] | None") -> bool:
    return task is None or task.done()


def _record(alert: AlertState) -> dict[str, Any]:
    record: dict[str, Any] = {"burning": alert.burning, "id": alert.id, "arrived": alert.arrived}
    if not alert.arrived and alert.since is not None:
        record |= {"since": alert.since.isoformat(), "data": alert.data}
    return record


def _parse(value: Any) -> dict[ObjectiveKind, AlertState]:
    """Return the states in a record; none if the record has another format."""
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
