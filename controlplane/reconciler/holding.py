"""Client leases as the loop knows them: read from the bucket, and taken in at once where this process was told."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from controlplane.errors import ControlPlaneError
from controlplane.registry.leases import ModelLease, ModelLeases

logger = logging.getLogger(__name__)

_READ_SECONDS = 60.0
"""The longest time between two reads, whatever the change feed says."""
_SWEEP_SECONDS = 120.0
"""Between two removals of what has ended."""


class Holds:
    """Who holds which model, for how long. Belongs to one event loop.

    Args:
        leases: The bucket's.
        on_read: Called in the loop after each read.
        may_sweep: Whether this process may remove what has ended.
    """

    def __init__(self, leases: ModelLeases, *, on_read: Callable[[], None], may_sweep: Callable[[], bool]) -> None:
        self._leases = leases
        self._on_read = on_read
        self._may_sweep = may_sweep
        self._known: dict[str, ModelLease] = {}
        self._told: dict[str, ModelLease] = {}
        self._read_at: float | None = None
        self._swept_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def until(self, now: datetime) -> dict[str, datetime]:
        """Return the end of the longest lease by model."""
        ends: dict[str, datetime] = {}
        for lease in ({**self._known, **self._told}).values():
            if lease.active(now):
                ends[lease.model] = max(lease.expires_at, ends.get(lease.model, lease.expires_at))
        return ends

    def active(self, now: datetime) -> dict[str, str]:
        """Return the leases that hold: the model by the lease's id."""
        return {key: lease.model for key, lease in {**self._known, **self._told}.items() if lease.active(now)}

    def tell(self, lease: ModelLease) -> None:
        """Take in a lease that was just taken, renewed or given back."""
        self._told[lease.id] = lease

    def read(self) -> None:
        """Begin to read what changed in the bucket, unless that is going on."""
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="read client leases")

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

        def read() -> tuple[ModelLease, ...] | None:
            if not self._leases.may_have_changed() and not due:
                return None
            if sweep:
                self._leases.sweep()
            return self._leases.list()

        told = {key: self._told[key] for key in before}
        try:
            found = await asyncio.to_thread(read)
        except ControlPlaneError as error:
            self._read_at = None
            logger.debug("the client leases cannot be read: %s", error)  # the deployments' warning says why
        else:
            if found is not None:
                self._read_at, self._swept_at = now, now if sweep else self._swept_at
                self._known = {lease.id: lease for lease in found}
                self._told = {key: lease for key, lease in self._told.items() if told.get(key) is not lease}
        finally:
            self._task = None
        self._on_read()
