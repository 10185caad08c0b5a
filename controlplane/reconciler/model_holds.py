"""Client holds as the loop knows them: read from the bucket, and taken in at once where this process was told."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from controlplane.errors import ControlPlaneError
from controlplane.registry.holds import ModelHold, ModelHolds

logger = logging.getLogger(__name__)

_READ_SECONDS = 60.0
"""The longest time between two reads, whatever the change feed says."""
_SWEEP_SECONDS = 120.0
"""Between two removals of what has ended."""


class HoldCache:
    """Who holds which model, for how long. Belongs to one event loop.

    Args:
        holds: The bucket's.
        on_read: Called in the loop after each read.
        may_sweep: Whether this process may remove what has ended.
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
        """Return the holds that hold: the model by the hold's id."""
        return {key: hold.model for key, hold in {**self._known, **self._told}.items() if hold.active(now)}

    def tell(self, hold: ModelHold) -> None:
        """Take in a hold that was just taken, renewed or given back."""
        self._told[hold.id] = hold

    def read(self) -> None:
        """Begin to read what changed in the bucket, unless that is going on."""
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="read client holds")

    async def stop(self) -> None:
        """Hand over nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        # What we are told while the list is made may be newer than what it says.
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
            logger.debug("the client holds cannot be read: %s", error)  # the deployments' warning says why
        else:
            if found is not None:
                self._read_at, self._swept_at = now, now if sweep else self._swept_at
                self._known = {hold.id: hold for hold in found}
                self._told = {key: hold for key, hold in self._told.items() if told.get(key) is not hold}
        finally:
            self._task = None
        self._on_read()
