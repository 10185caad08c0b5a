"""The store's clock: one time for all machines that share a bucket.

Ages of objects, ends of leases and times of deletion are compared with the store's clock, never with a machine's own
clock. The measurement writes a probe object and reads its modification time. From then on a monotonic clock that also
counts while the machine sleeps extrapolates the time, so setting or stepping a machine's clock has no effect. For a
folder store this is the file system's clock, which on a local disk is the machine's clock.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlplane.errors import ClockSkewError, StoreError, StoreUnavailableError
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "probe/"
_MEASURED_FOR_SECONDS = 900.0
"""How long a measurement is valid: crystals drift by less than 0.1 s in this time."""
DEFAULT_MAX_SKEW_SECONDS = 60.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _steady() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Skew:
    """The difference between this machine's clock and the store's clock.

    Attributes:
        seconds: Positive if the machine's clock is ahead.
        uncertainty_seconds: Maximum error of the measurement: half the requests' duration, and the store's resolution.
    """

    seconds: float
    uncertainty_seconds: float

    def within(self, seconds: float) -> bool:
        """Return whether the clocks may differ by at most ``seconds``."""
        return abs(self.seconds) - self.uncertainty_seconds <= seconds


class StoreClock:
    """Provider of the store's time. Safe to use from several threads.

    Args:
        store: The store.
        max_skew_seconds: Maximum skew of this machine's clock that `check` accepts.
        machine: This machine's clock.
        steady: Monotonic seconds that also advance while the machine sleeps.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        max_skew_seconds: float = DEFAULT_MAX_SKEW_SECONDS,
        machine: Callable[[], datetime] = _utc_now,
        steady: Callable[[], float] = _steady,
    ) -> None:
        self._store = store
        self._max_skew = max_skew_seconds
        self._machine = machine
        self._steady = steady
        self._known: tuple[datetime, float] | None = None
        self._measured_at = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the store's time. Sends requests to the store if the last measurement is too old.

        Raises:
            StoreError: The clock was never measured, and the store cannot be reached.
        """
        with self._lock:
            known = self._known
            if known is None or self._steady() - self._measured_at > _MEASURED_FOR_SECONDS:
                try:
                    self._measure()
                except StoreError as error:
                    if known is None:
                        raise
                    logger.debug("failed to measure the store's clock: %s", error)
        return self.peek()

    def peek(self) -> datetime:
        """Return the store's time by the last measurement, or this machine's time if there is none. No I/O."""
        known = self._known
        return self._machine() if known is None else known[0] + timedelta(seconds=self._steady() - known[1])

    def measure(self) -> Skew:
        """Measure the difference between this machine's clock and the store's.

        Raises:
            StoreError: The store failed.
        """
        with self._lock:
            return self._measure()

    def check(self) -> datetime:
        """Measure the skew, and return the store's time if this machine's clock agrees with it.

        Raises:
            ClockSkewError: One of the two clocks is wrong.
            StoreError: The store failed.
        """
        skew = self.measure()
        if not skew.within(self._max_skew):
            raise ClockSkewError(
                f"this machine's clock is {abs(skew.seconds):.0f} s {'ahead of' if skew.seconds > 0 else 'behind'} "
                f"the clock of the store {self._store.url}; the limit is {self._max_skew:g} s "
                "(CONTROLPLANE_STORE__MAX_CLOCK_SKEW_SECONDS). Correct the clock, for example with NTP, and try "
                "again",
                skew_seconds=round(skew.seconds, 1),
                max_seconds=self._max_skew,
            )
        return self.peek()

    def _measure(self) -> Skew:
        key = f"{PREFIX}clock-{uuid.uuid4().hex}"
        before, machine = self._steady(), self._machine()
        self._store.create(key, b"")
        after = self._steady()
        try:
            # On most servers a LIST has a resolution of milliseconds, but a HEAD only of seconds.
            info = next(self._store.list(key, limit=1), None)
        finally:
            self._store.delete(key)
        if info is None:
            raise StoreUnavailableError(
                f"the store {self._store.url} does not list the object {key}, which was just written"
            )
        resolution = 0.0 if info.modified_at.microsecond else 1.0
        written = info.modified_at + timedelta(seconds=resolution / 2)
        middle = (after - before) / 2
        self._measured_at = before + middle
        # A measurement that agrees with the previous one changes nothing, so the reported time does not jump.
        if self._known is None or abs((self.peek() - written).total_seconds()) > after - before + resolution + 0.1:
            self._known = (written, self._measured_at)
        elif self._known[0] + timedelta(seconds=after - self._known[1]) < info.modified_at:
            # The previous measurement fell behind: the time now is at least that of an object that was just written.
            # Without this, an age of an object that is older than the measurement could be negative.
            self._known = (info.modified_at, after)
        skew = (machine + timedelta(seconds=middle) - written).total_seconds()
        return Skew(skew, middle + resolution / 2)
