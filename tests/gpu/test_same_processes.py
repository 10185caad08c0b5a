"""A change of the version policy keeps the processes of the versions that stay, on a server with stand-in GPUs."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.rollout.rollback import rollback_target
from controlplane.domain.states import Phase
from controlplane.registry.registry import Registry
from tests.gpu.test_within_a_server import Site, is_ready, kinds, plane
from tests.reconciler.conftest import forget, open_registry
from tests.support.gpu_triton import GpuTriton, gpu_triton
from tests.support.model_processes import processes_of
from tests.support.nvml import Machine
from tests.support.nvml_reading import Reader
from tests.support.triton import RunningTriton

pytestmark = [pytest.mark.triton, pytest.mark.slow]
Planes = Callable[[bool], contextlib.AbstractAsyncContextManager[Site]]
MODEL = "on-gpus"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(tmp_path)


@pytest.fixture
async def gpus(triton: RunningTriton, machine: Machine) -> AsyncIterator[GpuTriton]:
    async with gpu_triton(triton.server, machine) as endpoint:
        yield endpoint
        await forget(triton, MODEL)


@pytest.fixture
def planes(gpus: GpuTriton, registry: Registry, tmp_path: Path, reader: Callable[..., Reader]) -> Planes:
    """Starts control planes over the same server, with or without a reader of its GPUs."""
    return lambda told: plane(registry, gpus, gpus.url, tmp_path, reader() if told else None)


def sent(gpus: GpuTriton) -> dict[str, Any]:
    """Return what the newest load sent, without its version policy."""
    return {key: value for key, value in gpus.loads[MODEL][-1].items() if key != "version_policy"}


@pytest.mark.parametrize(
    ("settings", "told", "groups"),
    [
        pytest.param({}, False, [("KIND_AUTO", [])], id="gpus-left-to-triton"),
        pytest.param(
            {"gpus": (1,), "instance_count": 2, "warmup": True},
            True,
            [("KIND_GPU", [1])],
            id="two-instances-on-one-gpu",
        ),
    ],
)
async def test_deploy_and_rollback_keep_processes_across_restart(
    planes: Planes,
    gpus: GpuTriton,
    triton: RunningTriton,
    settings: dict[str, Any],
    told: bool,
    groups: list[tuple[str, list[int]]],
) -> None:
    wanted = {"bake_seconds": 600, **settings}
    async with planes(told) as site:
        await site.ready(MODEL, 2.0, **wanted)
        # A process of the test before, whose model this load replaced, may take a moment to end.
        await site.until(lambda: len(processes_of(triton.server, MODEL, 1)) == 2)
        before, first = processes_of(triton.server, MODEL, 1), sent(gpus)
        assert kinds(first["instance_group"]) == groups
        await site.ready(MODEL, 3.0, new=True, **wanted)
        assert sent(gpus) == first
    async with planes(told) as site:
        await site.until(lambda: is_ready(site, MODEL))
        history = site.registry.deployments.history(MODEL)
        revision = site.registry.deployments.put(rollback_target(history), after=history[0], actor="test", reason="")
        site.reconciler.wake(MODEL)
        status = await site.reconciler.wait_settled(MODEL, revision.number, 60)
        assert status.phase is Phase.READY, status
        assert gpus.loads[MODEL][-1]["version_policy"] == {"specific": {"versions": [1]}}
        assert sent(gpus) == first
        assert processes_of(triton.server, MODEL, 1) == before
