"""The decision to restart a server that leaks memory, step by step."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.memory.policy.leaks import LeakDecision, LeakRules, LeakStep, ServerExcess, decide_leak

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MIB = 1 << 20
RULES = LeakRules(bound_bytes=100 * MIB, patience_seconds=10, drain_seconds=60, interval_seconds=3600)
OVER = ServerExcess(
    excess_bytes={"host": 150 * MIB}, ledger_bytes={"host": 300 * MIB}, over_since=NOW - timedelta(seconds=30)
)
DRAINING = replace(OVER, draining_since=NOW - timedelta(seconds=5))
CLOSED = replace(DRAINING, closed_since=NOW - timedelta(seconds=1))


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def decided(server: ServerExcess, rules: LeakRules = RULES) -> LeakDecision:
    return decide_leak(server, rules, NOW)


def test_without_a_bound_any_excess_is_tolerated() -> None:
    assert decided(OVER, LeakRules()).step is LeakStep.NOTHING


def test_an_excess_equal_to_the_bound_is_tolerated() -> None:
    assert decided(replace(OVER, excess_bytes={"host": 100 * MIB})).step is LeakStep.NOTHING
    assert decided(replace(OVER, excess_bytes={"host": 100 * MIB + 1})).step is LeakStep.DRAIN


def test_the_reason_states_the_sizes() -> None:
    found = decided(replace(OVER, excess_bytes={"host": 150 * MIB, "gpu:0": 5, "gpu:1": 2048 * MIB}))
    assert found.step is LeakStep.DRAIN
    assert "150 MiB on host beyond the 300 MiB of the ledger" in found.why
    assert "2 GiB on gpu:1 beyond the 0 B of the ledger" in found.why
    assert "gpu:0" not in found.why
    assert "the bound is 100 MiB" in found.why


def test_a_recent_excess_is_only_watched() -> None:
    assert decided(replace(OVER, over_since=None)).step is LeakStep.WATCH
    assert decided(replace(OVER, over_since=ago(9.9))).step is LeakStep.WATCH
    assert decided(replace(OVER, over_since=ago(10))).step is LeakStep.DRAIN


def test_an_external_server_is_only_reported() -> None:
    found = decided(replace(OVER, supervised=False))
    assert found.step is LeakStep.TELL
    assert "restart this external server" in found.why


def test_a_server_is_not_restarted_again_within_the_interval() -> None:
    found = decided(replace(OVER, restarted_at=ago(3599)))
    assert found.step is LeakStep.TELL
    assert "it was restarted for this at 11:00:01 UTC and is not restarted again before 12:00:01 UTC" in found.why
    assert decided(replace(OVER, restarted_at=ago(3600))).step is LeakStep.DRAIN


def test_a_server_with_unmanaged_models_is_not_restarted() -> None:
    found = decided(replace(OVER, strangers=("theirs",)))
    assert found.step is LeakStep.TELL
    assert "theirs" in found.why


def test_the_drain_waits_for_holds_then_for_requests_in_flight() -> None:
    found = decided(replace(DRAINING, held=("a",), pending=("a", "b")))
    assert found == LeakDecision(LeakStep.WAIT, "waits for the holds on a")
    assert decided(replace(DRAINING, pending=("a", "b"))).step is LeakStep.CLOSE
    found = decided(replace(CLOSED, pending=("a", "b")))
    assert found == LeakDecision(LeakStep.WAIT, "waits for requests: a, b")
    assert decided(CLOSED).step is LeakStep.RESTART


def test_the_drain_ends_after_its_time_limit() -> None:
    late = replace(DRAINING, draining_since=ago(60), held=("a",))
    assert decided(late).step is LeakStep.CLOSE
    late = replace(late, closed_since=ago(10), pending=("b",))
    found = decided(late)
    assert found.step is LeakStep.RESTART
    assert "after 60 s of waiting still used: a, b" in found.why
    # Actions in progress are never interrupted.
    assert decided(replace(late, busy=("b",))).step is LeakStep.WAIT


def test_the_drain_ends_when_the_memory_is_freed() -> None:
    assert decided(replace(DRAINING, excess_bytes={"host": 1}, busy=("b",))).step is LeakStep.RESUME


@pytest.mark.parametrize("names", [("a", "b", "c", "d", "e"), ("a", "b", "c", "d", "e", "f", "g")])
def test_long_lists_of_names_are_abbreviated(names: tuple[str, ...]) -> None:
    why = decided(replace(DRAINING, held=names)).why
    assert why.endswith("a, b, c, d, e" + (" and 2 more" if len(names) > 5 else ""))
