"""The front door of a control plane that has just been started: what is deployed is not unknown before it was read."""

import json
import time
from pathlib import Path

import httpx
import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.errors import GatewayError
from controlplane.gateway.process import find_haproxy
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.settings import GatewaySettings, GcSettings
from controlplane.storage.filesystem import FilesystemStore
from tests.support.api import serving, settings_for
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


@pytest.mark.parametrize(("ends", "says"), [(1, None), (9, "it ended with status 7")])
def test_an_haproxy_that_ends_at_its_start_is_started_again(tmp_path: Path, ends: int, says: str | None) -> None:
    """A program that ends without a word as often as it shall, and is HAProxy from then on."""
    real = find_haproxy(None)
    assert real is not None
    program = tmp_path / "haproxy"
    starts = tmp_path / "starts"
    ending = f'echo >> {starts}\n[ "$(wc -l < {starts})" -le {ends} ] && exit 7\n'
    program.write_text(f'#!/bin/sh\n{ending}exec {real} "$@"\n')
    program.chmod(0o755)
    door = GatewaySettings(enabled=True, haproxy=program)
    settings = settings_for(tmp_path / "data", embedded=True, gateway=door)
    if says is not None:
        with pytest.raises(GatewayError, match=says), serving(settings):
            pass
        assert len(starts.read_text()) == 3
        return
    with serving(settings) as api:
        assert api.plane.front_door is not None
        url = f"{api.plane.front_door.address().http_url}/v2/health/live"
        deadline = time.monotonic() + 60
        while httpx.get(url).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(starts.read_text()) == 2
