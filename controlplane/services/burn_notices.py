"""Tells the webhook when an objective burns and when it is kept again, over restarts and changes of the leader.

What was told is kept in the bucket, for each objective: whether it burns, under which id that was sent, and whether it
arrived. Who comes after a restart, or after another leader, goes on from there: a message that did not arrive is sent
again under its old id, by which a receiver that had it already drops it; what began or ended to burn in between is
told; the rest is not told twice.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from controlplane.domain.figures import ObjectiveKind, ObjectiveState
from controlplane.errors import ControlPlaneError
from controlplane.monitoring.webhook import Webhook, new_message_id
from controlplane.registry.standings import Standings

logger = logging.getLogger(__name__)

PART = "told"


@dataclass(frozen=True, slots=True)
class Told:
    """What was told of an objective last.

    Attributes:
        burning: Whether that it burns.
        id: The message's id; empty before the first.
        arrived: Whether it arrived, or was given up.
        recalled: Whether that was another process, whose windows are gone.
    """

    burning: bool = False
    id: str = ""
    arrived: bool = True
    recalled: bool = False


def next_told(told: Told, *, burning: bool, seasoned: bool, new_id: str) -> Told:
    """Decide what to tell now; what comes back is to be sent if its id is new, or it is recalled and did not arrive.

    Args:
        told: What was told last.
        burning: Whether it burns now.
        seasoned: Whether this process has watched for long enough to say that it does not.
        new_id: For a new message.
    """
    if burning is told.burning or (told.recalled and not burning and not seasoned):
        return told
    return Told(burning, new_id, arrived=False)


class BurnNotices:
    """What was told, and what is still to arrive. Belongs to one event loop.

    Args:
        standings: Where it is kept.
        webhook: Delivers.
        leading: Whether this process is the one that tells.
        seasoned_seconds: How long to watch before "it does not burn" is believed of what another process saw burn.
    """

    def __init__(
        self, standings: Standings, webhook: Webhook, *, leading: Callable[[], bool], seasoned_seconds: float
    ) -> None:
        self._standings = standings
        self._webhook = webhook
        self._leading = leading
        self._seasoned_seconds = seasoned_seconds
        self._told: dict[str, dict[ObjectiveKind, Told]] = {}
        self._known = False
        self._began = time.monotonic()
        self._dirty: set[str] = set()
        self._writing: asyncio.Task[None] | None = None
        webhook.on_end = self._ended

    async def ready(self) -> bool:
        """Whether this process is to tell; reads first what was told before it led."""
        if not self._webhook.enabled or not self._leading():
            self._known = False
            return False
        if not self._known:
            try:
                found = await asyncio.to_thread(self._standings.all)
            except ControlPlaneError as error:
                logger.info("what was told of objectives cannot be read yet: %s", error)
                return False
            self._told = {model: _parse(body.get(PART)) for model, body in found.items()}
            self._known = True
        return True

    def tell(self, model: str, state: ObjectiveState, data: Mapping[str, Any]) -> None:
        """Send what has to be told of an objective now, if anything has."""
        known = self._told.setdefault(model, {})
        before = known.get(state.kind, Told())
        seasoned = time.monotonic() - self._began >= self._seasoned_seconds
        now = next_told(before, burning=state.burning, seasoned=seasoned, new_id=new_message_id())
        again = now is before and before.recalled and not before.arrived
        if now is before and not again:
            return
        known[state.kind] = replace(now, recalled=False)
        kind = "objective.burning" if now.burning else "objective.kept"
        self._webhook.send(kind, {**data, "objective": state.model_dump(mode="json")}, message_id=now.id)
        if not again:
            self._dirty.add(model)

    def forget(self, model: str, others: Collection[ObjectiveKind] = ()) -> None:
        """A model is not deployed any more, or has no other objectives than these."""
        known = self._told.get(model, {})
        if gone := known.keys() - set(others):
            self._told[model] = {kind: told for kind, told in known.items() if kind not in gone}
            self._dirty.add(model)

    def models(self) -> set[str]:
        """Return the models of which something was told."""
        return {model for model, known in self._told.items() if known}

    def keep(self) -> None:
        """Write what changed, beside the loop."""
        if self._dirty and self._leading() and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write(), name="keep what was told")

    async def stop(self) -> None:
        """End what is being written."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self) -> None:
        for model in list(self._dirty):
            self._dirty.discard(model)
            value = {
                kind.value: {"burning": told.burning, "id": told.id, "arrived": told.arrived}
                for kind, told in self._told.get(model, {}).items()
            }
            try:
                done = await asyncio.to_thread(
                    self._standings.put, model, PART, value, actor="monitoring", reason="told of an objective"
                )
            except ControlPlaneError as error:
                logger.info("what was told of %s cannot be kept: %s", model, error)
                done = False
            if not done:
                self._dirty.add(model)  # again at the next look, if this process leads by then
                return

    def _ended(self, message_id: str) -> None:
        for model, known in self._told.items():
            for kind, told in known.items():
                if told.id == message_id and not told.arrived:
                    known[kind] = replace(told, arrived=True)
                    self._dirty.add(model)
                    return


def _parse(value: Any) -> dict[ObjectiveKind, Told]:
    """Read a record; nothing where somebody else wrote it."""
    try:
        return {
            ObjectiveKind(kind): Told(bool(one["burning"]), str(one["id"]), bool(one["arrived"]), recalled=True)
            for kind, one in (value or {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
