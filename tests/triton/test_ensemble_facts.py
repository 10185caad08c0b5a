"""What we rely on for ensembles, each as a test on the real server. docs/internals/triton.md lists them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient

from controlplane.errors import InferenceError, LoadRefusedError
from controlplane.triton.config_json import to_pbtxt
from tests.support.triton_models import ModelFiles, scale
from tests.support.triton_serving import Serving

pytestmark = pytest.mark.triton
ONE = {"x": np.ones((1, 3), np.float32)}


class Ensemble:
    """An ensemble of one member with the versions 1 (x 2) and 2 (x 3), all staged."""

    def __init__(self, serving: Serving, folder: Path) -> None:
        self.serving, self.member, self.name = serving, serving.name("member"), serving.name("ensemble")
        self.model: ModelFiles = scale(folder / "m.onnx", 2.0)
        serving.stage(self.member, 1, self.model)
        serving.stage(self.member, 2, scale(folder / "2.onnx", 3.0))
        (serving.repository.root / self.name / "1").mkdir(parents=True)
        (serving.repository.root / self.name / "config.pbtxt").write_text(to_pbtxt(self.config(-1)))

    def config(self, version: int, **fields: Any) -> dict[str, Any]:
        step = {"model_name": self.member, "model_version": version, "input_map": {"x": "x"}, "output_map": {"y": "y"}}
        tensor = {"data_type": "TYPE_FP32", "dims": [3]}
        return {
            "name": self.name,
            "platform": "ensemble",
            "max_batch_size": 8,
            "version_policy": {"specific": {"versions": [1]}},
            "input": [{"name": "x", **tensor}],
            "output": [{"name": "y", **tensor}],
            "ensemble_scheduling": {"step": [step]},
            **fields,
        }

    async def load(self, version: int) -> None:
        await self.serving.client.load(self.name, self.config(version))

    async def members(self, *versions: int) -> None:
        await self.serving.load(self.member, self.model, versions)

    async def answer(self) -> float | None:
        """The factor; None if the ensemble is not loaded."""
        try:
            outputs, _ = await self.serving.client.infer(self.name, ONE)
        except InferenceError:
            return None
        return float(outputs["y"][0, 0])

    async def ready(self, name: str) -> bool:
        async with InferenceServerClient(self.serving.server.grpc_url) as client:
            return bool(await client.is_model_ready(name))

    async def unload(self, name: str) -> None:
        async with InferenceServerClient(self.serving.server.grpc_url) as client:
            await client.unload_model(name)


@pytest.fixture
async def ensemble(serving: Serving, tmp_path: Path) -> Ensemble:
    return Ensemble(serving, tmp_path)


async def test_load_of_an_ensemble_loads_its_members_and_its_unload_leaves_them(ensemble: Ensemble) -> None:
    await ensemble.load(-1)
    assert await ensemble.ready(ensemble.member)
    before = ensemble.serving.server.processes_of(ensemble.member)
    await ensemble.load(-1)
    await ensemble.unload(ensemble.name)
    assert await ensemble.ready(ensemble.member)
    assert not await ensemble.ready(ensemble.name)
    await ensemble.load(-1)
    assert ensemble.serving.server.processes_of(ensemble.member) == before


async def test_ensemble_runs_with_the_pinned_version(ensemble: Ensemble) -> None:
    await ensemble.members(1)
    await ensemble.load(1)
    await ensemble.members(1, 2)
    assert await ensemble.answer() == 2.0
    await ensemble.load(2)
    assert await ensemble.answer() == 3.0
    ensemble.serving.repository.renew(ensemble.member, [2])
    before = ensemble.serving.server.processes_of(ensemble.member, 2)
    await ensemble.members(1, 2)
    assert ensemble.serving.server.processes_of(ensemble.member, 2) != before
    assert await ensemble.answer() == 3.0


async def test_member_takes_its_ensemble_down_and_brings_it_back(ensemble: Ensemble) -> None:
    await ensemble.members(1, 2)
    await ensemble.load(1)
    await ensemble.members(2)
    assert await ensemble.answer() is None
    await ensemble.members(1, 2)
    assert await ensemble.answer() == 2.0
    await ensemble.unload(ensemble.member)
    assert await ensemble.answer() is None


async def test_refused_reload_of_an_ensemble_unloads_it(ensemble: Ensemble) -> None:
    await ensemble.members(1)
    await ensemble.load(1)
    with pytest.raises(LoadRefusedError, match="whose required version 2 is not loaded"):
        await ensemble.load(2)
    assert await ensemble.answer() is None


@pytest.mark.parametrize("field", [{"backend": "python"}, {"instance_group": [{"count": 1, "kind": "KIND_CPU"}]}])
async def test_ensemble_has_no_instances(ensemble: Ensemble, field: dict[str, Any]) -> None:
    with pytest.raises(LoadRefusedError):
        await ensemble.serving.client.load(ensemble.name, ensemble.config(1, **field))
