"""Time windows in memory: counts per second for the last minutes, and per ten seconds for the last hours.

Pure data: no clock, no I/O. Times are seconds on any monotonic clock. Only slots in which something happened take
space, so a model without requests costs almost nothing, and the maximum size of a `Windows` is known in advance
(`Windows.max_bytes`), however long it runs.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]
"""One value for each column, in the order of the window's columns."""

FINE_STEP_SECONDS, FINE_SPAN_SECONDS = 1.0, 600.0
COARSE_STEP_SECONDS, COARSE_SPAN_SECONDS = 10.0, 6 * 3600.0

_FIRST_ROWS = 8
_SLACK = 1.25
"""Factor of space beyond the span, so that old rows are dropped from time to time and not with every new row."""


class Ring:
    """Rows by time slot, limited to the newest ones of a time span.

    Args:
        columns: Number of values in a row.
        step_seconds: Length of a slot.
        span_seconds: How long rows are kept.
        largest: Columns of which a slot keeps the largest value; of all others it keeps the sum.
    """

    def __init__(self, columns: int, step_seconds: float, span_seconds: float, largest: Sequence[int] = ()) -> None:
        self.step_seconds = step_seconds
        self.span_slots = math.ceil(span_seconds / step_seconds)
        self._max_rows = math.ceil(self.span_slots * _SLACK)
        self._largest = list(largest)
        self._slots = np.zeros(_FIRST_ROWS, np.int64)
        self._rows = np.zeros((_FIRST_ROWS, columns), np.float32)
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Current size in bytes."""
        return self._slots.nbytes + self._rows.nbytes

    @property
    def max_bytes(self) -> int:
        """Maximum size in bytes."""
        return self._max_rows * (self._slots.itemsize + self._rows.itemsize * self._rows.shape[1])

    def slot(self, at: float) -> int:
        """Return the slot that contains a time."""
        return math.floor(at / self.step_seconds)

    def add(self, slot: int, row: Row) -> None:
        """Add a row to a slot.

        Raises:
            ValueError: The slot is older than the newest one.
        """
        if self._count and slot <= self._slots[self._count - 1]:
            if slot < self._slots[self._count - 1]:
                raise ValueError(f"slot {slot} is before {self._slots[self._count - 1]}; slots must not decrease")
            self._merge(self._rows[self._count - 1], row)
            return
        if self._count == len(self._slots):
            self._make_room(slot)
        self._slots[self._count], self._rows[self._count] = slot, row
        self._count += 1

    def read(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the slots from ``first`` to ``last``, inclusive, in which something happened, and their rows."""
        slots = self._slots[: self._count]
        begin, end = np.searchsorted(slots, [max(first, last - self.span_slots + 1), last + 1])
        return slots[begin:end], self._rows[begin:end]

    def _merge(self, kept: NDArray[np.float32], row: Row) -> None:
        largest = np.maximum(kept[self._largest], row[self._largest])
        kept += row
        kept[self._largest] = largest

    def _make_room(self, slot: int) -> None:
        slots = self._slots[: self._count]
        begin = int(np.searchsorted(slots, slot - self.span_slots + 1))
        left = self._count - begin
        # Keep a quarter free, so that rows are not moved each time; the arrays shrink again after a quiet time.
        size = min(max(_FIRST_ROWS, math.ceil((left + 1) * _SLACK)), self._max_rows)
        rows = np.zeros((size, self._rows.shape[1]), np.float32)
        numbers = np.zeros(size, np.int64)
        rows[:left], numbers[:left] = self._rows[begin : self._count], slots[begin:]
        self._rows, self._slots, self._count = rows, numbers, left


class Windows:
    """Counts over time, in two resolutions.

    Args:
        columns: Number of values in a row.
        largest: Columns of which a slot keeps the largest value.
    """

    def __init__(self, columns: int, largest: Sequence[int] = ()) -> None:
        self._fine = Ring(columns, FINE_STEP_SECONDS, FINE_SPAN_SECONDS, largest)
        self._coarse = Ring(columns, COARSE_STEP_SECONDS, COARSE_SPAN_SECONDS, largest)
        self._largest = list(largest)

    @property
    def nbytes(self) -> int:
        """Current size in bytes."""
        return self._fine.nbytes + self._coarse.nbytes

    @property
    def max_bytes(self) -> int:
        """Maximum size in bytes."""
        return self._fine.max_bytes + self._coarse.max_bytes

    def add(self, since: float, until: float, row: Row) -> None:
        """Add the counts between two times, distributed evenly over the slots in between.

        Args:
            since: Time of the previous sample.
            until: Time of this sample.
            row: The differences between the two.
        """
        for ring in (self._fine, self._coarse):
            last = ring.slot(until)
            first = min(max(ring.slot(since) + 1, last - ring.span_slots + 1), last)
            share = row / (max(last - ring.slot(since), 1))
            share[self._largest] = row[self._largest]
            for slot in range(first, last + 1):
                ring.add(slot, share)

    def ring(self, window_seconds: float) -> Ring:
        """Return the finest ring that covers a window."""
        return self._fine if window_seconds <= FINE_SPAN_SECONDS else self._coarse

    def read(self, window_seconds: float, now: float) -> NDArray[np.float32]:
        """Return the rows of the slots of a window that ends now, oldest first."""
        ring = self.ring(window_seconds)
        last = ring.slot(now)
        return ring.read(last - math.ceil(window_seconds / ring.step_seconds) + 1, last)[1]

    def total(self, window_seconds: float, now: float) -> Row:
        """Return the sum (or the largest) of each column over a window that ends now."""
        rows = self.read(window_seconds, now)
        total: Row = rows.sum(axis=0, dtype=np.float64)
        if len(rows):
            total[self._largest] = rows[:, self._largest].max(axis=0)
        return total

    def points(self, window_seconds: float, now: float, count: int) -> list[tuple[float, Row]]:
        """Return a window divided into equal parts: for each, how many seconds ago it ends, and its totals.

        Args:
            window_seconds: The window.
            now: When it ends.
            count: Maximum number of parts; none is shorter than a slot.

        Returns:
            The parts, oldest first.
        """
        ring = self.ring(window_seconds)
        slots = max(math.ceil(window_seconds / ring.step_seconds), 1)
        width = math.ceil(slots / max(count, 1))
        last = ring.slot(now)
        found = []
        for back in range(math.ceil(slots / width) - 1, -1, -1):
            end = last - back * width
            _, rows = ring.read(end - width + 1, end)
            total: Row = rows.sum(axis=0, dtype=np.float64)
            if len(rows):
                total[self._largest] = rows[:, self._largest].max(axis=0)
            found.append((back * width * ring.step_seconds, total))
        return found
