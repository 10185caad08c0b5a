"""When an active version is probed, and what its probes say together. Pure."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.health import ProbeKind, ProbeOutcome, percentile
from controlplane.domain.states import Proof
from controlplane.domain.tolerance import OutputComparison, Tolerance
from controlplane.lifecycle.history import Backoff, ReplicaHistory
from controlplane.lifecycle.probe_schedule import MAX_SKIPS, REMEMBERED, ProbeDecision, ProbeSignals, ProbeTracker, due
from controlplane.lifecycle.state import ProofStatus, Target
from controlplane.triton.embedded.processes import InstanceMemory, since_boot
from controlplane.triton.statistics import VersionCounters

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ("m", 1)
INTERVAL, POLL = 30.0, 1.0


def decide(**signs: object) -> ProbeDecision:
    return due(ProbeSignals(**signs), interval_seconds=INTERVAL, poll_seconds=POLL)  # type: ignore[arg-type]


@given(st.floats(0, 1))
def test_probe_runs_within_its_interval_and_not_much_earlier(spread: float) -> None:
    assert decide(since_probe=INTERVAL * 0.79, spread=spread) is ProbeDecision.NOTHING
    assert decide(since_probe=INTERVAL + 0.001, spread=spread) is ProbeDecision.ASK


def test_probes_of_different_models_are_spread() -> None:
    spreads = {ProbeTracker().signs(0.0).spread for _ in range(50)}
    assert len(spreads) > 40


def test_probe_is_skipped_after_a_successful_request_with_a_limit() -> None:
    assert decide(since_probe=31, since_success=0.5) is ProbeDecision.SKIP
    assert decide(since_probe=31, since_success=10) is ProbeDecision.ASK
    assert decide(since_probe=31, since_success=0.5, skips=MAX_SKIPS) is ProbeDecision.ASK


def test_suspect_version_is_probed_at_once_with_a_minimum_pause() -> None:
    for sign in ({"failing": True}, {"missing": 1}):
        assert decide(since_probe=2.5, since_success=0.1, **sign) is ProbeDecision.ASK
        assert decide(since_probe=1.5, **sign) is ProbeDecision.NOTHING


def counters(requests: int, failures: int = 0) -> dict[tuple[str, int], VersionCounters]:
    return {KEY: VersionCounters(requests, None, 0.0, failures)}


def proof(at: datetime = NOW, *, error: float = 0.0, seconds: float = 0.001, version: int = 1) -> Proof:
    compared = OutputComparison(
        output="y",
        tolerance=Tolerance(absolute=1e-4, relative=1e-3),
        max_absolute_error=error,
        max_relative_error=error / 2,
        agrees=True,
    )
    return Proof(version=version, agrees=True, at=at, latency_seconds=seconds, samples=1, outputs=(compared,))


def test_probe_requests_are_not_counted_as_traffic() -> None:
    watch = ProbeTracker()
    watch.take_counters(KEY, counters(10), 1.0)
    watch.asked(proof(), ProofStatus.PASSED, light=True, requests=1, now=2.0)
    watch.take_counters(KEY, counters(11), 3.0)
    assert watch.signs(3.0).since_success is None
    watch.take_counters(KEY, counters(12), 4.0)
    assert watch.signs(5.0).since_success == 1.0


def test_failed_request_is_a_signal_until_the_next_probe() -> None:
    watch = ProbeTracker()
    watch.take_counters(KEY, counters(10), 1.0)
    watch.take_counters(KEY, counters(12, failures=1), 2.0)
    assert watch.alarming
    assert watch.signs(2.0).failing
    watch.asked(proof(), ProofStatus.PASSED, light=True, requests=1, now=3.0)
    assert not watch.alarming


def test_failed_probe_is_not_counted_as_a_client_failure() -> None:
    watch = ProbeTracker()
    watch.take_counters(KEY, counters(10), 1.0)
    watch.asked(proof(), ProofStatus.UNRESPONSIVE, light=True, requests=1, now=2.0)
    watch.take_counters(KEY, counters(11, failures=1), 3.0)
    assert not watch.alarming


def test_reset_counters_give_no_signal() -> None:
    watch = ProbeTracker()
    watch.take_counters(KEY, counters(100, failures=3), 1.0)
    watch.take_counters(KEY, counters(5, failures=5), 2.0)
    assert not watch.alarming


def test_missing_process_is_a_signal_until_the_next_load() -> None:
    watch = ProbeTracker()
    two, one = InstanceMemory(2, 1, 1), InstanceMemory(1, 1, 1)
    watch.take_processes(KEY, {KEY: two})
    assert watch.missing == (0, 2)
    watch.take_processes(KEY, {KEY: one})
    assert watch.missing == (1, 2)
    watch.take_processes(KEY, {})
    assert watch.missing == (2, 2)
    watch.loaded()
    watch.take_processes(KEY, {KEY: one})
    assert watch.missing == (0, 1)


def test_only_processes_from_before_a_load_may_exit_after_it() -> None:
    watch, began = ProbeTracker(), since_boot()
    before, after = began - 5.0, began + 0.5

    def at(now: float, *started: float) -> tuple[int, int]:
        watch.take_processes(KEY, {KEY: InstanceMemory(len(started), 1, 1, started)}, now)
        return watch.missing

    watch.loaded(began)
    assert at(began + 1, before, before, after) == (0, 3), "two processes are exiting"
    assert at(began + 2, before, after) == (0, 2)
    assert at(began + 3, after) == (0, 1)
    assert at(began + 4) == (1, 1)
    watch.loaded(began)
    assert at(began + 1, before, after) == (0, 2), "a version that Triton did not reload"
    assert at(began + 100, before, after) == (0, 2)
    assert at(began + 101, after) == (1, 2)


def test_probe_history_is_bounded_and_summed() -> None:
    watch = ProbeTracker()
    for number in range(REMEMBERED + 10):
        late = number == REMEMBERED
        mark = ProofStatus.TIMED_OUT if late else ProofStatus.PASSED
        at = NOW + timedelta(seconds=number)
        watch.asked(proof(at, error=number * 1e-6, seconds=0.001), mark, light=True, requests=1, now=float(number))
    summary = watch.summary()
    assert summary.probes == REMEMBERED
    assert summary.failed == 1
    assert summary.p50_seconds == pytest.approx(0.001)
    assert summary.drift_absolute == pytest.approx((REMEMBERED + 9) * 1e-6)
    assert summary.newest is not None
    assert summary.newest.kind is ProbeKind.SAMPLE
    assert summary.last_failure is not None
    assert summary.last_failure.outcome is ProbeOutcome.LATE


def test_percentiles_are_observed_values() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_back_off_grows_when_reloads_help_only_briefly() -> None:
    """A process that dies of client requests passes every proof in between."""
    target, backoff, record, now, waits = Target(1, "a"), Backoff(2.0, 60.0), ReplicaHistory(), NOW, []
    for _ in range(5):
        record = record.after_proof(target, ProofStatus.PASSED, proof(), candidate=False, now=now, backoff=backoff)
        record = record.after_proof(
            target, ProofStatus.UNRESPONSIVE, proof(), candidate=False, now=now, backoff=backoff
        )
        retry_at = record.failures[target].retry_at
        assert retry_at is not None
        waits.append((retry_at - now).total_seconds())
        now = retry_at
    assert waits == [0, 2, 4, 8, 16]
    assert "5 times within 10 minutes" in record.failures[target].message

    now += timedelta(minutes=11)
    record = record.after_proof(target, ProofStatus.PASSED, proof(), candidate=False, now=now, backoff=backoff)
    record = record.after_proof(target, ProofStatus.UNRESPONSIVE, proof(), candidate=False, now=now, backoff=backoff)
    assert record.failures[target].retry_at == now, "a fault after a long time counts as the first one"

    again = record.wanted_again(target)
    assert again.crashes == {}
