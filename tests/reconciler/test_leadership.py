"""One of several control planes on one store acts."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.domain.states import Phase
from tests.reconciler.conftest import Harness, forget, nothing_half_staged, open_registry, running
from tests.support.triton import RunningTriton

pytestmark = [pytest.mark.triton]


@asynccontextmanager
async def replica(triton: RunningTriton, folder: Path, *how: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.reconciler.child", str(folder), triton.server.grpc_url,
        str(triton.repository.root), *how, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        child._transport.close()  # type: ignore[attr-defined]


async def line(child: asyncio.subprocess.Process, wanted: str) -> list[str]:
    """Read the output of a child up to the expected line."""
    said: list[str] = []
    assert child.stdout is not None
    async with asyncio.timeout(60):
        while True:
            text = (await child.stdout.readline()).decode().strip()
            assert text or not child.stdout.at_eof(), f"it ended after {said}"
            said.append(text)
            if text.startswith(wanted):
                return said


async def test_standby_takes_over_from_a_killed_leader(triton: RunningTriton, model: str, tmp_path: Path) -> None:
    registry = open_registry(tmp_path)
    async with replica(triton, tmp_path) as one:
        await line(one, "leading")
        async with running(triton, registry, model, tmp_path) as harness:
            assert not harness.reconciler.leading
            version = harness.publish(1.0)
            status = await harness.deploy(version)
            # The other instance loaded it; this one observed it and ran its own proof.
            assert status.phase is Phase.READY
            assert harness.events("VersionActivated") == []
            assert harness.events("ProofPassed") != []
            one.send_signal(signal.SIGKILL)
            await one.wait()
            second = harness.publish(2.0)
            status = await harness.deploy(second)
            assert harness.reconciler.leading
            assert harness.events("VersionActivated") != []
            assert await harness.answer() == (2.0, second)
    await forget(triton, model)


async def test_leader_that_resumes_after_takeover_does_nothing(
    triton: RunningTriton, model: str, tmp_path: Path
) -> None:
    """It is stopped during a rollout, right before a load, and resumes after another has taken over."""
    registry = open_registry(tmp_path)
    async with running(triton, registry, model, tmp_path) as harness:
        first, second = harness.publish(1.0), harness.publish(2.0)
    Harness(registry, harness.server, harness.reconciler, model, tmp_path).put(f"{model}:{first}")
    async with replica(triton, tmp_path, "stop-before", "2") as sleeper:
        await line(sleeper, "asleep")
        async with running(triton, registry, model, tmp_path, lease_seconds=1.0) as harness:
            status = await harness.until(lambda status: status.phase is Phase.READY)
            assert harness.reconciler.leading, "the lease of the stopped process expired although the process exists"
            status = await harness.deploy(second)
            assert status.phase is Phase.READY
            await nothing_half_staged(harness.server, model)
            sleeper.send_signal(signal.SIGCONT)
            said = await line(sleeper, "following")
            assert "end 2 Load NotLeaderError" in said
            assert not any(text.startswith("end") and text.endswith("NoneType") for text in said), said
            await asyncio.sleep(0.7)
            assert await harness.answer() == (2.0, second)
            assert harness.reconciler.leading
            await nothing_half_staged(harness.server, model)
    await forget(triton, model)
