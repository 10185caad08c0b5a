"""Client holds in the loop: read from the bucket, and updated at once when this process handles a change."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from controlplane.errors import ControlPlaneError
from controlplane.registry.holds import ModelHold, ModelHolds

logger = logging.getLogger(__name__)

_READ_SECONDS = 60.0
"""Maximum time between two reads, regardless of the change feed."""
_SWEEP_SECONDS = 120.0
"""Time between two removals of expired holds."""


class HoldCache:
    """Cache of the holds on models. Belongs to one event loop.

    Args:
        holds: The holds in the bucket.
        on_read: Called in the loop after each read.
        may_sweep: Whether this process may remove expired holds.
    """

    def __init__(self, holds: ModelHolds, *, on_read: Callable[[], None], may_sweep: Callable[[], bool]) -> None:
        self._holds = holds
        self._on_read = on_read
        self._may_sweep = may_sweep
        self._known: dict[str, ModelHold] = {}
        self._told: dict[str, ModelHold] = {}
        self._read_at: float | None = None
        self._swept_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def until(self, now: datetime) -> dict[str, datetime]:
        """Return the end of the longest hold by model."""
        ends: dict[str, datetime] = {}
        for hold in ({**self._known, **self._told}).values():
            if hold.active(now):
                ends[hold.model] = max(hold.expires_at, ends.get(hold.model, hold.expires_at))
        return ends

    def active(self, now: datetime) -> dict[str, str]:
        """Return the active holds: the model by the hold's id."""
        return {key: hold.model for key, hold in {**self._known, **self._told}.items() if hold.active(now)}

    def tell(self, hold: ModelHold) -> None:
        """Apply a hold that was just acquired, renewed or released."""
        self._told[hold.id] = hold

    def read(self) -> None:
        """Start to read the changes in the bucket, unless a read is in progress."""
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="read client holds")

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        # Holds that are applied while the list is made may be newer than the list.
        before, now = set(self._told), time.monotonic()
        sweep = self._may_sweep() and now - self._swept_at >= _SWEEP_SECONDS
        due = sweep or self._read_at is None or now - self._read_at >= _READ_SECONDS

        def read() -> tuple[ModelHold, ...] | None:
            if not self._holds.may_have_changed() and not due:
                return None
            if sweep:
                self._holds.sweep()
            return self._holds.list()

        told = {key: self._told[key] for key in before}
        try:
            found = await asyncio.to_thread(read)
        except ControlPlaneError as error:
            self._read_at = None
            logger.debug("failed to read the client holds: %s", error)  # the deployments' warning gives the reason
        else:
            if found is not None:
                self._read_at, self._swept_at = now, now if sweep else self._swept_at
                self._known = {hold.id: hold for hold in found}
                self._told = {key: hold for key, hold in self._told.items() if told.get(key) is not hold}
        finally:
            self._task = None
        self._on_read()
