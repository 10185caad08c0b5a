"""Windows of time in memory: what was counted in each second for minutes, in each ten seconds for hours.

Pure data: no clock, no I/O. Times are seconds on any clock that never goes back. Only slots in which something happened
take space, so a model that nobody asks costs next to nothing, and the most a `Windows` can take is known beforehand
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
"""Room beyond the span, so that what has passed is dropped now and then and not with every row."""


class Ring:
    """Rows by slot of time, the newest of a span.

    Args:
        columns: How many values a row has.
        step_seconds: Length of a slot.
        span_seconds: How far back rows are kept.
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
        """Bytes that it takes now."""
        return self._slots.nbytes + self._rows.nbytes

    @property
    def max_bytes(self) -> int:
        """The most that it can take."""
        return self._max_rows * (self._slots.itemsize + self._rows.itemsize * self._rows.shape[1])

    def slot(self, at: float) -> int:
        """Return the slot that a moment is in."""
        return math.floor(at / self.step_seconds)

    def add(self, slot: int, row: Row) -> None:
        """Add what happened in a slot.

        Raises:
            ValueError: The slot is older than the newest one.
        """
        if self._count and slot <= self._slots[self._count - 1]:
            if slot < self._slots[self._count - 1]:
                raise ValueError(f"slot {slot} is before {self._slots[self._count - 1]}; time goes forward")
            self._merge(self._rows[self._count - 1], row)
            return
        if self._count == len(self._slots):
            self._make_room(slot)
        self._slots[self._count], self._rows[self._count] = slot, row
        self._count += 1

    def read(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the slots from ``first`` to ``last``, both included, in which something happened, and their rows."""
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
        # A quarter free, so that rows are not moved each time; small again once it was quiet.
        size = min(max(_FIRST_ROWS, math.ceil((left + 1) * _SLACK)), self._max_rows)
        rows = np.zeros((size, self._rows.shape[1]), np.float32)
        numbers = np.zeros(size, np.int64)
        rows[:left], numbers[:left] = self._rows[begin : self._count], slots[begin:]
        self._rows, self._slots, self._count = rows, numbers, left


class Windows:
    """What was counted, in two resolutions.

    Args:
        columns: How many values a row has.
        largest: Columns of which a slot keeps the largest value.
    """

    def __init__(self, columns: int, largest: Sequence[int] = ()) -> None:
        self._fine = Ring(columns, FINE_STEP_SECONDS, FINE_SPAN_SECONDS, largest)
        self._coarse = Ring(columns, COARSE_STEP_SECONDS, COARSE_SPAN_SECONDS, largest)
        self._largest = list(largest)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes now."""
        return self._fine.nbytes + self._coarse.nbytes

    @property
    def max_bytes(self) -> int:
        """The most that it can take."""
        return self._fine.max_bytes + self._coarse.max_bytes

    def add(self, since: float, until: float, row: Row) -> None:
        """Add what was counted between two moments, spread evenly over the slots in between.

        Args:
            since: When the count before was taken.
            until: When this one was.
            row: The differences.
        """
        for ring in (self._fine, self._coarse):
            last = ring.slot(until)
            first = min(max(ring.slot(since) + 1, last - ring.span_slots + 1), last)
            share = row / (max(last - ring.slot(since), 1))
            share[self._largest] = row[self._largest]
            for slot in range(first, last + 1):
                ring.add(slot, share)

    def ring(self, window_seconds: float) -> Ring:
        """Return the finest ring that reaches back so far."""
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
        """Return a window cut into equal parts: by how many seconds ago each ends, oldest first, its totals.

        Args:
            window_seconds: The window.
            now: When it ends.
            count: How many parts at most; none is shorter than a slot.
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
