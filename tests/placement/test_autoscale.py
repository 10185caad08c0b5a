"""Number of replicas: up under queueing, down when idle, without oscillation."""

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from controlplane.placement.autoscale import Scale, ScalingRules, Window, rescale

START = datetime(2026, 1, 1, tzinfo=UTC)
RULES = ScalingRules(up_seconds=10, down_seconds=60)
BUSY = Window(requests=500, queue_seconds=100.0, seconds=5)  # 200 ms
IDLE = Window(requests=0, queue_seconds=0.0, seconds=5)
SHORT = Window(requests=500, queue_seconds=5.0, seconds=5)  # 10 ms, at the rate of BUSY
BETWEEN = Window(requests=500, queue_seconds=35.0, seconds=5)  # 70 ms


def play(scale: Scale, *windows: Window, start: datetime = START, least: int = 1, most: int = 3) -> list[Scale]:
    found = []
    for number, window in enumerate(windows):
        now = start + timedelta(seconds=5 * number)
        scale = rescale(scale, window, least=least, most=most, objective_milliseconds=100, now=now, rules=RULES)
        found.append(scale)
    return found


def test_a_lasting_queue_adds_replicas_one_by_one() -> None:
    replicas = [scale.replicas for scale in play(Scale(1), *[BUSY] * 8)]
    assert replicas == [1, 1, 2, 2, 3, 3, 3, 3]
    assert "requests waited 200 ms, more than the objective of 100 ms, for 10 s" in play(Scale(1), *[BUSY] * 3)[-1].why


def test_a_short_peak_adds_no_replica() -> None:
    assert {scale.replicas for scale in play(Scale(1), BUSY, BUSY, BETWEEN, BUSY, BUSY, SHORT, BUSY)} == {1}


def test_a_replica_that_keeps_the_queue_short_stays() -> None:
    grown = play(Scale(1), *[BUSY] * 3)[-1]
    assert {scale.replicas for scale in play(grown, *[SHORT] * 50)} == {2}


def test_rare_requests_add_no_replica_however_long_they_wait() -> None:
    rare = Window(requests=1, queue_seconds=0.15, seconds=15)
    assert {scale.replicas for scale in play(Scale(1), *[rare] * 20, most=2)} == {1}
    slow = Window(requests=1, queue_seconds=8.0, seconds=5)
    assert play(Scale(1), *[slow] * 3)[-1].replicas == 2


def test_an_idle_model_loses_replicas_one_by_one() -> None:
    grown = play(Scale(1), *[BUSY] * 5)[-1]
    assert grown.replicas == 3
    replicas = [scale.replicas for scale in play(grown, *[IDLE] * 30)]
    assert replicas[11] == 3
    assert replicas[12] == 2
    assert replicas[-1] == 1
    assert "the request rate was low (0/s)" in play(grown, *[IDLE] * 13)[-1].why


def test_changed_bounds_apply_immediately() -> None:
    assert play(Scale(5), IDLE)[-1].replicas == 3
    assert play(Scale(1), IDLE, least=2)[-1].replicas == 2


@given(st.lists(st.sampled_from((BUSY, IDLE, SHORT, BETWEEN)), max_size=80), st.integers(1, 3), st.integers(0, 3))
def test_the_number_stays_within_bounds_and_changes_slowly(windows: list[Window], least: int, more: int) -> None:
    scales = [Scale(least), *play(Scale(least), *windows, least=least, most=least + more)]
    replicas = [scale.replicas for scale in scales]
    assert all(least <= number <= least + more for number in replicas)
    changes = [at for at in range(1, len(replicas)) if replicas[at] != replicas[at - 1]]
    assert all(abs(replicas[at] - replicas[at - 1]) == 1 for at in changes)
    for earlier, later in itertools.pairwise(changes):
        up = replicas[later] > replicas[later - 1]
        assert (later - earlier) * 5 >= (RULES.up_seconds if up else RULES.down_seconds)
