"""The proof itself, and what its results mean."""

import asyncio
from datetime import UTC, datetime

import numpy as np
import pytest

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching
from controlplane.domain.samples import Sample
from controlplane.domain.states import Phase, Proof
from controlplane.reconciler.actions import Prove
from controlplane.reconciler.events import EventLog
from controlplane.reconciler.executor import Outcome
from controlplane.reconciler.facts import Facts
from controlplane.reconciler.record import Backoff, ModelRecord
from controlplane.reconciler.types import Mark, Target
from controlplane.reconciler.units import Unit
from tests.cases.onnx_inputs import mixed_rows
from tests.reconciler.conftest import Room

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = Target(1, "a")


@pytest.mark.triton
async def test_samples_larger_than_the_largest_batch_are_sent_in_parts(room: Room) -> None:
    status = await room.deploy(room.publish(1.5), settings=DeploymentSettings(max_batch_size=1))
    assert status.phase is Phase.READY, status
    proof = status.servers[0].proof
    assert proof is not None
    assert proof.samples == 2
    assert [output.output for output in proof.outputs] == ["y"]


@pytest.mark.triton
async def test_rows_that_depend_on_each_other_are_not_put_together(room: Room) -> None:
    x = np.array([[0, 0, 0], [2, 4, 6]], np.float32)
    version = room.publish(
        1.0,
        width=3,
        content=mixed_rows().SerializeToString(),
        golden=(Sample({"x": x}, {"y": x - x.mean(axis=0)}),),
    )
    status = await room.deploy(version, settings=DeploymentSettings(dynamic_batching=DynamicBatching()))
    assert status.phase is Phase.FAILED
    assert "a row gets another answer alone than among 2" in status.message
    assert (await room.deploy(version, settings=DeploymentSettings())).phase is Phase.READY


@pytest.mark.triton
async def test_a_ready_model_is_asked_again_from_time_to_time(room: Room) -> None:
    status = await room.deploy(room.publish(1.5))
    first = status.servers[0].proof
    assert first is not None

    await room.until(lambda status: (proof := status.servers[0].proof) is not None and proof.at > first.at)
    assert len(room.events("Proved")) == 1, "a repeated proof is no news"


def unit(mark: Mark) -> Unit:
    return Unit("server", "m", facts=Facts(loaded=frozenset({1}), digest="a"), record=ModelRecord(marks={1: mark}))


def proved(mark: Mark) -> Outcome:
    proof = Proof(version=1, agrees=mark is Mark.PASSED, at=NOW, latency_seconds=0.0, samples=1, message=mark.value)
    return Outcome(Prove(TARGET, candidate=False, because=""), mark=mark, proof=proof)


async def settle(one: Unit, mark: Mark) -> EventLog:
    events = EventLog(lambda: NOW)
    one.settle(proved(mark), now=NOW, backoff=Backoff(2.0, 60.0), events=events)
    return events


async def test_a_healthy_version_may_be_late_twice() -> None:
    one = unit(Mark.PASSED)
    for _ in range(2):
        events = await settle(one, Mark.LATE)
        assert [event.reason for event in events.after()] == ["Slow"]
        assert one.record.marks[1] is Mark.PASSED
    await settle(one, Mark.LATE)
    assert one.record.marks[1] is Mark.BROKEN


async def test_an_answer_in_time_ends_the_count() -> None:
    one = unit(Mark.PASSED)
    for mark in (Mark.LATE, Mark.LATE, Mark.PASSED, Mark.LATE, Mark.LATE):
        await settle(one, mark)
    assert one.record.marks[1] is Mark.PASSED


async def test_a_version_that_never_answered_gets_no_such_patience() -> None:
    one = unit(Mark.UNPROVED)
    await settle(one, Mark.LATE)
    assert one.record.marks[1] is Mark.BROKEN


async def test_a_broken_version_is_loaded_again_at_once_and_then_with_back_off() -> None:
    one = unit(Mark.PASSED)
    await settle(one, Mark.BROKEN)
    failure = one.record.failures[TARGET]
    assert not failure.blocks(NOW)
    assert one.facts is None, "somebody looks before it is loaded again"
    one.facts = unit(Mark.UNPROVED).facts
    one.record = ModelRecord(marks={1: Mark.UNPROVED}, failures=one.record.failures)
    await settle(one, Mark.BROKEN)
    failure = one.record.failures[TARGET]
    assert failure.count == 1
    assert failure.retry_at is not None
    assert (failure.retry_at - NOW).total_seconds() == 2.0


async def test_a_wrong_answer_is_final() -> None:
    one = unit(Mark.UNPROVED)
    await settle(one, Mark.WRONG)
    assert one.record.failures[TARGET].retry_at is None


def test_back_off_grows_and_is_bounded() -> None:
    waits = [(Backoff(2.0, 60.0).until(NOW, count) - NOW).total_seconds() for count in (1, 2, 3, 4, 5, 6, 5000)]
    assert np.array_equal(waits, [2, 4, 8, 16, 32, 60, 60])


async def test_events_are_numbered_bounded_and_waited_for() -> None:
    events = EventLog(lambda: NOW, capacity=3)
    waiting = asyncio.create_task(events.wait(0, 30))
    await asyncio.sleep(0)
    for number in range(5):
        events.add("Normal", "Test", "m", str(number))
    assert [event.id for event in await waiting] == [3, 4, 5]
    assert [event.id for event in events.after(4)] == [5]
    assert events.after(5) == []
    assert await events.wait(5, 0.01) == []
