"""The front door of a control plane that has just been started: what is deployed is not unknown before it was read."""

import json
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.filesystem import FilesystemStore
from tests.support.control_process import running
from tests.support.models import publish_affine

pytestmark = pytest.mark.triton

MODELS = 150
"""So many that reading them all takes longer than opening the door."""


def test_a_request_that_comes_before_the_deployments_were_read_waits_for_that(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path / "data" / "store")
    registry = Registry(store, BlobCache(tmp_path / "filling", 1 << 30), head_max_age_seconds=1.0, gc=GcSettings())
    for number in range(MODELS):
        publish_affine(registry, f"m{number}", tmp_path / "files", scale=number + 2.0)
        settings = DeploymentSettings.model_validate({"mode": "on-demand"})
        spec = DeploymentSpec(model=f"m{number}", reference=f"m{number}", version=1, settings=settings)
        registry.deployments.put(spec, after=None, actor="test", reason="")
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
    with running(tmp_path / "data") as (_, door):
        answer = door.post(f"/v2/models/m{MODELS - 1}/infer", content=json.dumps(body))
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"][0] == MODELS + 1.0
        assert door.post("/v2/models/nobody/infer", content=json.dumps(body)).status_code == 404
