"""A control plane that is killed at any step of a deploy reaches the desired state after a restart."""

import asyncio
import sys
from pathlib import Path

import pytest

from controlplane.domain.states import Phase
from tests.reconciler.conftest import Harness, answer, forget, nothing_half_staged, open_registry, running
from tests.support.triton import RunningTriton

pytestmark = [pytest.mark.triton, pytest.mark.long]

# Stage, load, prove and unload the candidate; stage, load, prove; clean up.
FORWARD = [("kill-before", step) for step in range(1, 9)] + [("kill-during", 2), ("kill-during", 6)]
# Stage, load, prove.
FIRST = [("kill-before", step) for step in range(1, 4)] + [("kill-during", 2)]
# Switch, prove.
BACK = [("kill-before", 1), ("kill-before", 2), ("kill-during", 1)]
DEADLINE = 180.0
"""Seconds until one process is killed, and until the next has finished: all of a journey run at once."""


@pytest.mark.parametrize(("journey", "crashes"), [("first", FIRST), ("forward", FORWARD), ("back", BACK)])
async def test_reaches_desired_state_after_kill_at_any_step(
    triton: RunningTriton, tmp_path: Path, journey: str, crashes: list[tuple[str, int]]
) -> None:
    async def one(how: str, step: int) -> None:
        folder, model = tmp_path / f"{how}-{step}", f"crash-{journey}-{how}-{step}"
        registry = open_registry(folder)
        async with running(triton, registry, model, folder) as harness:
            first, second = harness.publish(1.0), harness.publish(2.0)
            if journey != "first":
                await harness.deploy(first)
            if journey == "back":
                await harness.deploy(second)
                await nothing_half_staged(harness.server, model)
        Harness(registry, harness.server, harness.reconciler, model, folder).put(
            f"{model}:{second if journey == 'forward' else first}"
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.reconciler.child", str(folder), triton.server.grpc_url,
            str(triton.repository.root), how, str(step), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(child.communicate(), DEADLINE)
        assert child.returncode == -9, output
        async with running(triton, registry, model, folder) as harness:
            # Wait for more than a settled state: the journeys share one model repository, and each one's first clean-up
            # can remove what another is writing. With one store this cannot happen, because only the leader cleans up.
            await harness.until(lambda status: status.phase is Phase.READY, DEADLINE)
            expected = (2.0, second) if journey == "forward" else (1.0, first)
            assert await answer(harness.server.client, model) == expected, (how, step)
            await nothing_half_staged(harness.server, model)
            assert len(registry.deployments.history(model)) == {"first": 1, "forward": 2, "back": 3}[journey]
        await forget(triton, model)

    async with asyncio.TaskGroup() as group:
        for how, step in crashes:
            group.create_task(one(how, step))
