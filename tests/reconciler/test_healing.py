"""Unhealthy models on a real Triton: found, reloaded, backed off, with the evidence."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.domain.conditions import Condition
from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.health import ProbeOutcome
from controlplane.domain.report import Verdict, VersionReport
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import InferenceError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import MemorySettings, TritonSettings
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.metrics_scraper import MetricsScraper
from controlplane.triton.repository import ModelRepository
from tests.reconciler.conftest import Harness, settings
from tests.support.faulty_triton import FaultyTriton, faulty_triton

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@dataclass
class FaultyHarness(Harness):
    """A harness with its own server that can be made unhealthy."""

    triton: FaultyTriton

    def condition(self, kind: str) -> Condition:
        status = self.reconciler.status(self.model)
        assert status is not None
        (found,) = [one for one in status.conditions if one.type == kind]
        return found

    async def ask(self) -> None:
        with contextlib.suppress(InferenceError):
            await self.server.client.infer(self.model, {"x": np.ones((1, 4), np.float32)}, timeout=5)

    def processes(self) -> list[int]:
        return self.triton.server.processes_of(self.model)


@contextlib.asynccontextmanager
async def faulty_harness(
    registry: Registry, model: str, folder: Path, *, load_seconds: float = 60.0, **changes: Any
) -> AsyncIterator[FaultyHarness]:
    triton = faulty_triton(folder, TritonSettings())
    await triton.server.start()
    client = TritonClient(
        "own",
        triton.server.grpc_url,
        timeouts=TritonTimeouts(load_seconds=load_seconds, request_seconds=5.0),
        processes=triton.server.processes_of,
        log_tail=triton.server.log_tail,
    )
    server = ManagedServer(
        "own",
        client,
        ModelRepository(triton.server.repository),
        triton.server,
        page=MetricsScraper(triton.server.metrics_url),
    )
    memory = MemorySettings(poll_interval_seconds=0.2)
    reconciler = Reconciler(registry, [server], settings(**changes), memory=memory)
    await reconciler.start()
    try:
        yield FaultyHarness(registry, server, reconciler, model, folder, triton)
    finally:
        await reconciler.stop()
        await client.close()
        await triton.server.stop()


@pytest.fixture
async def faulty(registry: Registry, model: str, tmp_path: Path) -> AsyncIterator[FaultyHarness]:
    async with faulty_harness(registry, model, tmp_path, probe_interval_seconds=300.0) as faulty:
        yield faulty


async def test_killed_process_is_found_before_the_next_probe_and_reloaded(
    faulty: FaultyHarness, record_property: Callable[[str, object], None]
) -> None:
    """The probe interval is five minutes: the process table gives the signal and a probe confirms it."""
    version = faulty.publish(1.5)
    await faulty.deploy(version)
    await faulty.until(lambda status: bool(faulty.reconciler.servers()[0].models))
    (process,) = faulty.processes()
    await asyncio.sleep(0.5)  # for a look at the process table, which shows the missing process
    os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    assert await faulty.server.client.ready(faulty.model, version), "Triton still reports READY"
    await faulty.until(lambda _: faulty.condition("Healthy").status == "False")
    found = time.monotonic() - began
    await faulty.until(lambda status: status.phase is Phase.READY and faulty.condition("Healthy").status == "True")
    record_property("find_seconds", round(found, 2))
    record_property("heal_seconds", round(time.monotonic() - began, 2))
    assert await faulty.answer() == (1.5, version)
    status = faulty.reconciler.status(faulty.model)
    assert status is not None
    health = status.servers[0].health
    assert health is not None
    assert health.heals == 1
    assert health.last_failure is not None
    assert health.last_failure.outcome is ProbeOutcome.UNANSWERED
    assert "not healthy" in health.last_failure.message
    assert [message for message in faulty.events("Unhealthy") if "not healthy" in message]


async def test_one_dead_process_of_two_is_found_while_the_other_answers(faulty: FaultyHarness) -> None:
    version = faulty.publish(1.5)
    await faulty.deploy(version, settings=DeploymentSettings(instance_count=2))
    await asyncio.sleep(0.5)
    processes = faulty.processes()
    assert len(processes) == 2
    os.kill(processes[0], signal.SIGKILL)
    await faulty.until(lambda _: bool(faulty.events("Unhealthy")))
    await faulty.until(lambda status: status.phase is Phase.READY and len(faulty.processes()) == 2)
    assert processes[0] not in faulty.processes()


async def test_crashes_by_requests_back_off_and_then_fail_with_evidence(
    faulty: FaultyHarness,
) -> None:
    """Every reload helps until the next request; reloads must not repeat endlessly."""
    version = faulty.publish(1.0)
    await faulty.deploy(version, settings=faulty.triton.settings("die", switched=True))
    faulty.triton.on()
    await faulty.ask()
    await faulty.until(lambda _: len(faulty.events("Unhealthy")) >= 2)
    await faulty.until(lambda status: status.phase is Phase.FAILED)
    status = faulty.reconciler.status(faulty.model)
    assert status is not None
    assert "not healthy" in status.message
    assert status.servers[0].retry_at is not None
    assert faulty.condition("Ready").status == "False"
    assert faulty.condition("Healthy").reason == "ProbeNotAnswered"
    faulty.triton.off()
    await faulty.until(lambda status: status.phase is Phase.READY)
    assert await faulty.answer() == (1.0, version)


async def test_drifting_answers_are_found_and_version_stops_serving(
    registry: Registry, model: str, tmp_path: Path
) -> None:
    async with faulty_harness(registry, model, tmp_path, probe_interval_seconds=0.5) as faulty:
        good = faulty.publish(1.0)
        await faulty.deploy(good)
        bad = faulty.publish(2.0)
        await faulty.deploy(bad, settings=faulty.triton.settings("drift", switched=True))
        assert await faulty.answer() == (2.0, bad)
        faulty.triton.on()
        status = await faulty.until(lambda status: status.phase is Phase.DEGRADED)
        assert status.servers[0].serving_version == good
        assert await faulty.answer() == (1.0, good)
        assert faulty.condition("Degraded").status == "True"
        assert "answer differs from the recorded one" in faulty.condition("Ready").message


async def test_crashing_version_is_rolled_back_once_with_evidence(faulty: FaultyHarness) -> None:
    """`auto_rollback`: the leader commits the rollback, the previous version serves, and no second switch follows."""
    good = faulty.publish(1.0)
    await faulty.deploy(good)
    bad = faulty.publish(2.0)
    faulty.put(f"{faulty.model}:{bad}", settings=faulty.triton.settings("die", auto_rollback=True))
    faulty.reconciler.wake(faulty.model)

    def rolled_back(status: DeploymentStatus) -> bool:
        return status.revision == 3 and status.phase is Phase.READY

    await faulty.until(rolled_back, 60)
    head, *_ = faulty.registry.deployments.history(faulty.model)
    assert head.actor == "reconciler"
    assert head.reason.startswith(
        f"automatic rollback to revision 1 ({faulty.model}:{good}): version {bad} failed on own"
    )
    assert "not healthy" in head.reason
    assert head.spec.version == good
    assert await faulty.answer() == (1.0, good)
    assert faulty.events("RolledBack")

    # The restored version fails as well: there is no rollback to the version that failed before.
    for process in faulty.processes():
        os.kill(process, signal.SIGKILL)
    await faulty.until(lambda _: bool(faulty.events("Unhealthy")))
    await faulty.until(lambda status: status.phase is Phase.READY)
    assert len(list(faulty.registry.deployments.history(faulty.model))) == 3


async def test_slower_version_is_rejected_only_with_a_latency_bound(faulty: FaultyHarness) -> None:
    fast = faulty.publish(1.0)
    await faulty.deploy(fast)
    slow = faulty.publish(2.0)
    settings = faulty.triton.settings("slow:0.05", max_latency_ratio=3.0)
    status = await faulty.deploy(slow, settings=settings)
    assert status.phase is Phase.DEGRADED
    assert "times that of version 1" in status.message
    assert await faulty.answer() == (1.0, fast)
    assert faulty.events("Regressed")

    async def reports(version: int, count: int) -> list[VersionReport]:
        async with asyncio.timeout(20):
            while True:
                found = faulty.registry.reports.history(faulty.model, version, limit=10)
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.05)

    (report,) = await reports(slow, 1)
    checks = {check.name: check for check in report.checks}
    assert report.verdict is Verdict.FAILED
    assert {name: check.verdict.value for name, check in checks.items()} == {
        "artifact": "passed",
        "configuration": "passed",
        "numbers": "passed",
        "performance": "failed",
    }
    figures = checks["performance"].details
    assert figures["version"]["p50_seconds"] > 3 * figures["previous"]["p50_seconds"]  # type: ignore[index,call-overload,operator]
    assert figures["version"]["process_bytes"] > 2**20  # type: ignore[index,call-overload,operator]
    (first,) = await reports(fast, 1)
    assert first.verdict is Verdict.PASSED

    # Without the bound the latency is measured and reported, and the version becomes active.
    await faulty.deploy(slow, settings=faulty.triton.settings("slow:0.05"))
    assert await faulty.answer() == (2.0, slow)
    newest, before = await reports(slow, 2)
    assert newest.verdict is Verdict.PASSED
    assert before == report, "a stored report never changes"
