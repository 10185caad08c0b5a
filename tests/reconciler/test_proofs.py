"""The proof and the meaning of its results."""

import asyncio
from datetime import UTC, datetime

import numpy as np
import pytest

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching
from controlplane.domain.samples import Sample
from controlplane.domain.states import Phase, Proof
from controlplane.lifecycle.actions import Prove
from controlplane.lifecycle.events import EventLog
from controlplane.lifecycle.executor import Outcome
from controlplane.lifecycle.history import Backoff, ReplicaHistory
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.replica import Replica
from controlplane.lifecycle.state import ProofStatus, Target
from tests.cases.onnx_inputs import mixed_rows
from tests.reconciler.conftest import Harness

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = Target(1, "a")


@pytest.mark.triton
async def test_samples_above_the_batch_limit_are_sent_in_parts(harness: Harness) -> None:
    status = await harness.deploy(harness.publish(1.5), settings=DeploymentSettings(max_batch_size=1))
    assert status.phase is Phase.READY, status
    proof = status.servers[0].proof
    assert proof is not None
    assert proof.samples == 2
    assert [output.output for output in proof.outputs] == ["y"]


@pytest.mark.triton
async def test_dependent_rows_are_not_batched(harness: Harness) -> None:
    x = np.array([[0, 0, 0], [2, 4, 6]], np.float32)
    version = harness.publish(
        1.0,
        width=3,
        content=mixed_rows().SerializeToString(),
        golden=(Sample({"x": x}, {"y": x - x.mean(axis=0)}),),
    )
    status = await harness.deploy(version, settings=DeploymentSettings(dynamic_batching=DynamicBatching()))
    assert status.phase is Phase.FAILED
    assert "a row gets a different answer alone than in a batch of 2 rows" in status.message
    assert (await harness.deploy(version, settings=DeploymentSettings())).phase is Phase.READY


@pytest.mark.triton
async def test_ready_model_is_probed_periodically(harness: Harness) -> None:
    status = await harness.deploy(harness.publish(1.5))
    first = status.servers[0].proof
    assert first is not None

    await harness.until(lambda status: (proof := status.servers[0].proof) is not None and proof.at > first.at)
    assert len(harness.events("ProofPassed")) == 1, "a repeated proof adds no event"


def unit(mark: ProofStatus) -> Replica:
    return Replica(
        "server",
        "m",
        facts=ReplicaObservation(loaded=frozenset({1}), digest="a"),
        record=ReplicaHistory(marks={1: mark}),
    )


def proved(mark: ProofStatus) -> Outcome:
    proof = Proof(
        version=1, agrees=mark is ProofStatus.PASSED, at=NOW, latency_seconds=0.0, samples=1, message=mark.value
    )
    return Outcome(Prove(TARGET, candidate=False, because=""), mark=mark, proof=proof)


async def settle(one: Replica, mark: ProofStatus) -> EventLog:
    events = EventLog(lambda: NOW)
    one.settle(proved(mark), now=NOW, backoff=Backoff(2.0, 60.0), events=events)
    return events


async def test_healthy_version_may_time_out_twice() -> None:
    one = unit(ProofStatus.PASSED)
    for _ in range(2):
        events = await settle(one, ProofStatus.TIMED_OUT)
        assert [event.reason for event in events.after()] == ["ProbeTimedOut"]
        assert one.record.marks[1] is ProofStatus.PASSED
    await settle(one, ProofStatus.TIMED_OUT)
    assert one.record.marks[1] is ProofStatus.UNRESPONSIVE


async def test_timely_answer_resets_the_timeout_count() -> None:
    one = unit(ProofStatus.PASSED)
    for mark in (
        ProofStatus.TIMED_OUT,
        ProofStatus.TIMED_OUT,
        ProofStatus.PASSED,
        ProofStatus.TIMED_OUT,
        ProofStatus.TIMED_OUT,
    ):
        await settle(one, mark)
    assert one.record.marks[1] is ProofStatus.PASSED


async def test_version_that_never_answered_fails_at_the_first_timeout() -> None:
    one = unit(ProofStatus.UNPROVED)
    await settle(one, ProofStatus.TIMED_OUT)
    assert one.record.marks[1] is ProofStatus.UNRESPONSIVE


async def test_broken_version_is_reloaded_at_once_and_then_with_back_off() -> None:
    one = unit(ProofStatus.PASSED)
    await settle(one, ProofStatus.UNRESPONSIVE)
    failure = one.record.failures[TARGET]
    assert not failure.blocks(NOW)
    assert one.facts is None, "a snapshot is taken before it is loaded again"
    one.facts = unit(ProofStatus.UNPROVED).facts
    one.record = ReplicaHistory(marks={1: ProofStatus.UNPROVED}, failures=one.record.failures)
    await settle(one, ProofStatus.UNRESPONSIVE)
    failure = one.record.failures[TARGET]
    assert failure.count == 1
    assert failure.retry_at is not None
    assert (failure.retry_at - NOW).total_seconds() == 2.0


async def test_wrong_answer_is_final() -> None:
    one = unit(ProofStatus.UNPROVED)
    await settle(one, ProofStatus.MISMATCH)
    assert one.record.failures[TARGET].retry_at is None


def test_back_off_grows_and_is_bounded() -> None:
    waits = [(Backoff(2.0, 60.0).until(NOW, count) - NOW).total_seconds() for count in (1, 2, 3, 4, 5, 6, 5000)]
    assert np.array_equal(waits, [2, 4, 8, 16, 32, 60, 60])


async def test_events_are_numbered_bounded_and_awaitable() -> None:
    events = EventLog(lambda: NOW, capacity=3)
    waiting = asyncio.create_task(events.wait(0, 30))
    await asyncio.sleep(0)
    for number in range(5):
        events.add("Normal", "Test", "m", str(number))
    assert [event.id for event in await waiting] == [3, 4, 5]
    assert [event.id for event in events.after(4)] == [5]
    assert events.after(5) == []
    assert await events.wait(5, 0.01) == []
