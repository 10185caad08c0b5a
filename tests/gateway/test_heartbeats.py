"""Which peer gateways are alive according to their heartbeats."""

from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.drain.heartbeats import BEAT_SECONDS, GONE_SECONDS, Heartbeat, update_heartbeats

seconds = st.floats(0, 1e6)


def test_gateway_without_new_heartbeats_is_gone() -> None:
    known = update_heartbeats({}, {"a": 7}, 1e6)
    assert known == {"a": Heartbeat(7)}
    for _ in range(int(GONE_SECONDS)):
        known = update_heartbeats(known, {"a": 7}, 1.0)
        assert not known["a"].gone
    assert update_heartbeats(known, {"a": 7}, 1.0)["a"].gone
    assert update_heartbeats(known, {"a": 8}, 1.0) == {"a": Heartbeat(8)}


def test_unregistered_gateway_is_forgotten() -> None:
    known = update_heartbeats(update_heartbeats({}, {"a": 1, "b": 1}, 0.0), {"a": 1}, 5.0)
    assert update_heartbeats(known, {"b": 1}, 5.0) == {"b": Heartbeat(1)}


@given(outage=seconds, before=st.floats(0, GONE_SECONDS - BEAT_SECONDS))
def test_store_outage_does_not_count_as_missed_heartbeats(outage: float, before: float) -> None:
    known = update_heartbeats({"a": Heartbeat(3, before)}, {"a": 3}, outage)
    assert not known["a"].gone
    assert known["a"].silent_seconds <= before + outage


@given(st.lists(st.floats(BEAT_SECONDS, 1e6), min_size=int(GONE_SECONDS / BEAT_SECONDS) + 1))
def test_dead_gateway_is_detected_with_any_read_interval(pauses: list[float]) -> None:
    known = update_heartbeats({}, {"a": 1}, 0.0)
    for pause in pauses:
        known = update_heartbeats(known, {"a": 1}, pause)
    assert known["a"].gone
