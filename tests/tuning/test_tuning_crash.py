"""A control plane is killed while it tunes on a server that goes on: the next one removes what it left."""

import asyncio
import sys
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.names import tuning_name
from controlplane.domain.tuning import Trial, TrialState
from controlplane.errors import ConflictError, TritonUnavailableError
from controlplane.servers.server import ManagedServer
from controlplane.services.tuning.load_generator import Load, generate
from controlplane.services.tuning.service import TuneCommand
from controlplane.services.tuning.trial_model import LOCK, alone_on, sweep
from controlplane.triton.client import TritonClient
from controlplane.triton.repository import ModelRepository
from tests.support.models import affine_samples, publish_affine
from tests.support.processes import free_port
from tests.support.triton import RunningTriton
from tests.tuning.child import plane_on

pytestmark = [pytest.mark.triton, pytest.mark.long]

MODEL = "killed-while-tuned"
COPY = tuning_name(MODEL)


async def state_of(client: TritonClient, name: str) -> set[str]:
    return {entry.state for entry in await client.index() if entry.model == name}


async def test_tuned_copy_is_removed_from_a_running_server_after_a_kill(triton: RunningTriton, tmp_path: Path) -> None:
    where = (triton.server.grpc_url, triton.repository.root)
    client = triton.client()
    plane = plane_on(tmp_path, *where)
    await plane.start()
    publish_affine(plane.registry, MODEL, tmp_path, scale=2.0)
    # A deployment that is not loaded can be tuned, too.
    spec = DeploymentSpec(model=MODEL, reference=f"{MODEL}:1", version=1, loaded=False)
    plane.registry.deployments.put(spec, after=None, actor="test", reason="")
    await plane.stop()

    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.tuning.child", str(tmp_path), *map(str, where), MODEL,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        while await state_of(client, COPY) != {"READY"}:
            assert child.returncode is None
            await asyncio.sleep(0.05)
    server = ManagedServer("elsewhere", client, triton.repository)
    assert await sweep(server), "who tunes at this moment is left alone"
    assert await state_of(client, COPY) == {"READY"}
    with pytest.raises(ConflictError, match="another tuning"):
        async with alone_on(server):
            pass
    child.kill()
    await child.wait()
    assert await state_of(client, COPY) == {"READY"}
    assert triton.repository.staged()[COPY] == {1}

    plane = plane_on(tmp_path, *where)
    await plane.start()
    try:
        async with asyncio.timeout(30):
            while COPY in triton.repository.staged() or triton.server.processes_of(COPY):
                await asyncio.sleep(0.05)
            while (triton.repository.root / LOCK).exists():
                await asyncio.sleep(0.05)
        assert "READY" not in await state_of(client, COPY)
        # From here its processes cannot be seen, so there is nothing to hold a limit against.
        command = TuneCommand(
            actor="test",
            asker=None,
            model=MODEL,
            clients=(1,),
            window_seconds=0.1,
            max_settings=1,
            memory_limit_bytes=1,
        )
        operation = await plane.services.operations.wait((await plane.services.tunings.start(command)).id, 60)
        assert operation.result is not None, operation
        trials = [Trial.model_validate(one) for one in operation.result["trials"]]  # type: ignore[union-attr]
        assert [(trial.state, trial.memory_bytes) for trial in trials] == [(TrialState.MEASURED, None)]
        assert COPY not in triton.repository.staged()
    finally:
        await plane.stop()
        await client.close()


async def test_unreachable_server_is_cleaned_up_later(tmp_path: Path) -> None:
    client = TritonClient("away", f"127.0.0.1:{free_port()}")
    (tmp_path / COPY / "1").mkdir(parents=True)
    server = ManagedServer("away", client, ModelRepository(tmp_path))
    assert not await sweep(server)
    assert (tmp_path / COPY).exists(), "it may be loaded there"
    load = Load(clients=3, warmup_seconds=0, window_seconds=1, timeout_seconds=5)
    requests = [sample.inputs for sample in affine_samples(scale=1.0)]
    config = {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}], "max_batch_size": 8}
    with pytest.raises(TritonUnavailableError):
        await generate(client, "m", requests, load, version=1, config=config)
    await client.close()
