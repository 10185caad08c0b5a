"""The decaying request rate."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.memory.policy.types import Usage
from controlplane.memory.policy.usage import VISIT_HALF_LIFE_SECONDS, VISIT_PAUSE_SECONDS, rate, used, visit_rate


def test_a_steady_stream_converges_to_its_rate(now: datetime) -> None:
    usage = Usage()
    for second in range(0, 8000, 2):
        usage = used(usage, now + timedelta(seconds=second), count=10, half_life_seconds=600)
    assert rate(usage, now + timedelta(seconds=8000), half_life_seconds=600) == pytest.approx(5.0, rel=0.01)


def test_the_rate_halves_in_its_half_life(now: datetime) -> None:
    usage = used(Usage(), now, half_life_seconds=600)
    later = rate(usage, now + timedelta(seconds=600), half_life_seconds=600)
    assert later == pytest.approx(usage.rate_per_second / 2)


def test_no_use_changes_nothing(now: datetime) -> None:
    usage = used(Usage(pending=3), now)
    assert used(usage, now + timedelta(hours=1), count=0) == usage
    assert rate(Usage(), now) == 0


def test_a_late_report_does_not_move_time_backwards(now: datetime) -> None:
    usage = used(Usage(), now)
    later = used(usage, now - timedelta(seconds=50))
    assert later.last_used_at == now
    assert later.rate_per_second == pytest.approx(2 * usage.rate_per_second)


@given(gaps=st.lists(st.floats(0, 1e5), max_size=20), split=st.integers(1, 5))
def test_the_grouping_of_uses_makes_no_difference(gaps: list[float], split: int) -> None:
    at = datetime.fromisoformat("2026-05-04T12:00:00+00:00")
    one = many = Usage()
    for gap in gaps:
        at += timedelta(seconds=gap)
        one = used(one, at, count=split)
        for _ in range(split):
            many = used(many, at)
    assert many.rate_per_second == pytest.approx(one.rate_per_second)
    assert many.visits_per_second == pytest.approx(one.visits_per_second)


def test_uses_with_short_pauses_are_one_visit(now: datetime) -> None:
    first = used(Usage(), now)
    usage = first
    for number in range(1, 50):
        usage = used(usage, now + timedelta(seconds=number * VISIT_PAUSE_SECONDS / 2))
    assert usage.visits_per_second == pytest.approx(visit_rate(first, usage.last_used_at or now))
    assert usage.rate_per_second > first.rate_per_second


def test_a_use_after_a_longer_pause_is_another_visit(now: datetime) -> None:
    first = used(Usage(), now)
    at = now + timedelta(seconds=VISIT_PAUSE_SECONDS + 1)
    assert used(first, at).visits_per_second == pytest.approx(visit_rate(first, at) + first.visits_per_second)


def test_visits_halve_in_their_half_life(now: datetime) -> None:
    first = used(Usage(), now)
    later = now + timedelta(seconds=VISIT_HALF_LIFE_SECONDS)
    assert visit_rate(first, later) == pytest.approx(first.visits_per_second / 2)
    assert visit_rate(Usage(), now) == 0
