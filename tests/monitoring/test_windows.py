"""Windows hold what was put into them, and no more memory than they say, however long they run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.monitoring.windows import COARSE_SPAN_SECONDS, FINE_SPAN_SECONDS, Ring, Windows

STEP, SPAN = 1.0, 20.0
ADDS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 100), st.integers(0, 100)), max_size=200)


@settings(deadline=None)
@given(ADDS, st.integers(1, 25), st.integers(0, 30))
def test_ring_sums_its_newest_slots(adds: list[tuple[int, int, int]], width: int, late: int) -> None:
    ring, slot = Ring(2, STEP, SPAN, largest=[1]), 0
    sums: dict[int, int] = {}
    largest: dict[int, int] = {}
    for step, value, level in adds:
        slot += step
        ring.add(slot, np.array([value, level], float))
        sums[slot] = sums.get(slot, 0) + value
        largest[slot] = max(largest.get(slot, 0), level)
        assert ring.nbytes <= ring.max_bytes
    last = slot + late
    first = last - width + 1
    slots, rows = ring.read(first, last)
    kept = [one for one in sums if max(first, last - int(SPAN) + 1) <= one <= last]
    assert list(slots) == kept
    assert rows[:, 0].tolist() == [sums[one] for one in kept]
    assert rows[:, 1].tolist() == [largest[one] for one in kept]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 400), st.integers(1, 1000)), min_size=1, max_size=60))
def test_window_contains_all_counts_between_scrapes(looks: list[tuple[float, int]]) -> None:
    windows, at = Windows(1), 1000.0
    counted: list[tuple[float, int]] = []
    for pause, count in looks:
        windows.add(at, at + pause, np.array([count], float))
        at += pause
        counted.append((at, count))
    for window, step in ((FINE_SPAN_SECONDS, 1.0), (COARSE_SPAN_SECONDS, 10.0)):
        total = windows.total(window, at)[0]
        everything = sum(count for _, count in counted)
        surely = sum(
            count
            for (when, count), (pause, _) in zip(counted, looks, strict=True)
            if when - pause > at - window + 2 * step
        )
        assert surely * 0.999 <= total <= everything * 1.001


SEVENS = Windows(1)
for when in range(7, 20_000, 7):
    SEVENS.add(when - 7, when, np.array([7.0]))


@settings(deadline=None)
@given(st.integers(1, 240), st.integers(1, 21_600))
def test_parts_of_a_window_add_up_to_the_window(count: int, window: int) -> None:
    windows = SEVENS
    parts = windows.points(window, 20_000.0, count)
    assert len(parts) <= count
    assert [ago for ago, _ in parts] == sorted((ago for ago, _ in parts), reverse=True)
    assert parts[-1][0] == 0
    assert sum(float(total[0]) for _, total in parts) >= windows.total(window, 20_000.0)[0] * 0.999


def test_memory_of_a_model_is_bounded() -> None:
    windows = Windows(20, [19])
    sizes = []
    row = np.ones(20)
    for second in range(14 * 3600):  # more than twice what is kept, asked every second
        windows.add(second, second + 1, row)
        if second % 3600 == 0:
            sizes.append(windows.nbytes)
    assert max(sizes) <= windows.max_bytes < 400_000
    assert max(sizes[7:]) == max(sizes)
    assert sizes[13] <= max(sizes[6:9])  # no more after 13 hours than after 8
    assert windows.total(300, 14 * 3600)[0] == pytest.approx(300, abs=1)
    assert windows.total(6 * 3600, 14 * 3600)[0] == pytest.approx(6 * 3600, abs=11)


def test_memory_of_an_idle_model_is_released() -> None:
    windows = Windows(20)
    for second in range(10_000):
        windows.add(second, second + 1, np.ones(20))
    busy = windows.nbytes
    windows.add(100_000, 100_001, np.ones(20))
    windows.add(200_000, 200_001, np.ones(20))
    assert windows.nbytes <= busy
    assert windows.total(300, 200_001)[0] == 1


def test_earlier_slot_is_refused() -> None:
    ring = Ring(1, 1.0, 10.0)
    ring.add(5, np.ones(1))
    with pytest.raises(ValueError, match="slots must not decrease"):
        ring.add(4, np.ones(1))
