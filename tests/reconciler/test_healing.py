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
from tests.reconciler.conftest import Room, settings
from tests.support.faulty_triton import FaultyTriton, faulty_triton

pytestmark = pytest.mark.triton


@dataclass
class Ward(Room):
    """A room with its own server that can be made unhealthy."""

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
async def ward_of(
    registry: Registry, model: str, folder: Path, *, load_seconds: float = 60.0, **changes: Any
) -> AsyncIterator[Ward]:
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
        yield Ward(registry, server, reconciler, model, folder, triton)
    finally:
        await reconciler.stop()
        await client.close()
        await triton.server.stop()


@pytest.fixture
async def ward(registry: Registry, model: str, tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward_of(registry, model, tmp_path, probe_interval_seconds=300.0) as ward:
        yield ward


async def test_killed_process_is_found_before_the_next_probe_and_reloaded(
    ward: Ward, record_property: Callable[[str, object], None]
) -> None:
    """The probe interval is five minutes: the process table gives the signal and a probe confirms it."""
    version = ward.publish(1.5)
    await ward.deploy(version)
    await ward.until(lambda status: bool(ward.reconciler.servers()[0].models))
    (process,) = ward.processes()
    await asyncio.sleep(0.5)  # for a look at the process table, which shows the missing process
    os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    assert await ward.server.client.ready(ward.model, version), "Triton goes on saying READY"
    await ward.until(lambda _: ward.condition("Healthy").status == "False")
    found = time.monotonic() - began
    await ward.until(lambda status: status.phase is Phase.READY and ward.condition("Healthy").status == "True")
    record_property("find_seconds", round(found, 2))
    record_property("heal_seconds", round(time.monotonic() - began, 2))
    assert await ward.answer() == (1.5, version)
    status = ward.reconciler.status(ward.model)
    assert status is not None
    health = status.servers[0].health
    assert health is not None
    assert health.heals == 1
    assert health.last_failure is not None
    assert health.last_failure.outcome is ProbeOutcome.UNANSWERED
    assert "not healthy" in health.last_failure.message
    assert [message for message in ward.events("Unhealthy") if "not healthy" in message]


async def test_one_dead_process_of_two_is_found_while_the_other_answers(ward: Ward) -> None:
    version = ward.publish(1.5)
    await ward.deploy(version, settings=DeploymentSettings(instance_count=2))
    await asyncio.sleep(0.5)
    processes = ward.processes()
    assert len(processes) == 2
    os.kill(processes[0], signal.SIGKILL)
    await ward.until(lambda _: bool(ward.events("Unhealthy")))
    await ward.until(lambda status: status.phase is Phase.READY and len(ward.processes()) == 2)
    assert processes[0] not in ward.processes()


async def test_crashes_by_requests_back_off_and_then_fail_with_evidence(
    ward: Ward,
) -> None:
    """Every reload helps until the next request; reloads must not repeat endlessly."""
    version = ward.publish(1.0)
    await ward.deploy(version, settings=ward.triton.settings("die", switched=True))
    ward.triton.on()
    await ward.ask()
    await ward.until(lambda _: len(ward.events("Unhealthy")) >= 2)
    await ward.until(lambda status: status.phase is Phase.FAILED)
    status = ward.reconciler.status(ward.model)
    assert status is not None
    assert "not healthy" in status.message
    assert status.servers[0].retry_at is not None
    assert ward.condition("Ready").status == "False"
    assert ward.condition("Healthy").reason == "ProbeNotAnswered"
    ward.triton.off()
    await ward.until(lambda status: status.phase is Phase.READY)
    assert await ward.answer() == (1.0, version)


async def test_drifting_answers_are_found_and_version_stops_serving(
    registry: Registry, model: str, tmp_path: Path
) -> None:
    async with ward_of(registry, model, tmp_path, probe_interval_seconds=0.5) as ward:
        good = ward.publish(1.0)
        await ward.deploy(good)
        bad = ward.publish(2.0)
        await ward.deploy(bad, settings=ward.triton.settings("drift", switched=True))
        assert await ward.answer() == (2.0, bad)
        ward.triton.on()
        status = await ward.until(lambda status: status.phase is Phase.DEGRADED)
        assert status.servers[0].serving_version == good
        assert await ward.answer() == (1.0, good)
        assert ward.condition("Degraded").status == "True"
        assert "answer differs from the recorded one" in ward.condition("Ready").message


async def test_crashing_version_is_rolled_back_once_with_evidence(ward: Ward) -> None:
    """`auto_rollback`: the leader commits the rollback, the previous version serves, and no second switch follows."""
    good = ward.publish(1.0)
    await ward.deploy(good)
    bad = ward.publish(2.0)
    ward.put(f"{ward.model}:{bad}", settings=ward.triton.settings("die", auto_rollback=True))
    ward.reconciler.wake(ward.model)

    def rolled_back(status: DeploymentStatus) -> bool:
        return status.revision == 3 and status.phase is Phase.READY

    await ward.until(rolled_back, 60)
    head, *_ = ward.registry.deployments.history(ward.model)
    assert head.actor == "reconciler"
    assert head.reason.startswith(
        f"automatic rollback to revision 1 ({ward.model}:{good}): version {bad} failed on own"
    )
    assert "not healthy" in head.reason
    assert head.spec.version == good
    assert await ward.answer() == (1.0, good)
    assert ward.events("RolledBack")

    # The restored version fails as well: there is no rollback to the version that failed before.
    for process in ward.processes():
        os.kill(process, signal.SIGKILL)
    await ward.until(lambda _: bool(ward.events("Unhealthy")))
    await ward.until(lambda status: status.phase is Phase.READY)
    assert len(list(ward.registry.deployments.history(ward.model))) == 3


async def test_slower_version_is_rejected_only_with_a_latency_bound(ward: Ward) -> None:
    fast = ward.publish(1.0)
    await ward.deploy(fast)
    slow = ward.publish(2.0)
    settings = ward.triton.settings("slow:0.05", max_latency_ratio=3.0)
    status = await ward.deploy(slow, settings=settings)
    assert status.phase is Phase.DEGRADED
    assert "times that of version 1" in status.message
    assert await ward.answer() == (1.0, fast)
    assert ward.events("Regressed")

    async def reports(version: int, count: int) -> list[VersionReport]:
        async with asyncio.timeout(20):
            while True:
                found = ward.registry.reports.history(ward.model, version, limit=10)
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
    await ward.deploy(slow, settings=ward.triton.settings("slow:0.05"))
    assert await ward.answer() == (2.0, slow)
    newest, before = await reports(slow, 2)
    assert newest.verdict is Verdict.PASSED
    assert before == report, "a record that was kept never changes"
