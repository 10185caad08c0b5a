"""The gateway of a control plane that has just been started: what is deployed is not unknown before it was read."""

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.errors import GatewayError
from controlplane.gateway.haproxy.process import find_haproxy
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.settings import GatewaySettings, GcSettings
from controlplane.storage.factory import open_store
from tests.support.api import serving, settings_for
from tests.support.control_process import running
from tests.support.faultproxy import Action, Fault, fault_proxy
from tests.support.models import publish_affine
from tests.support.s3server import S3Server

pytestmark = pytest.mark.triton


def test_request_waits_until_deployments_are_read(moto: S3Server, tmp_path: Path) -> None:
    stored = moto.settings(moto.new_bucket())
    store = open_store(stored, tmp_path)
    registry = Registry(store, BlobCache(tmp_path / "filling", 1 << 30), head_max_age_seconds=1.0, gc=GcSettings())
    publish_affine(registry, "m", tmp_path / "files", scale=3.0)
    settings = DeploymentSettings.model_validate({"mode": "on-demand"})
    spec = DeploymentSpec(model="m", reference="m", version=1, settings=settings)
    registry.deployments.put(spec, after=None, actor="test", reason="")
    store.close()
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]})
    assert stored.secret_access_key is not None
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(fault_proxy(moto.endpoint_url))
        unread = stack.enter_context(contextlib.ExitStack())
        unread.enter_context(proxy.lasting(Fault(Action.STALL, contains="deployments")))
        environment: dict[str, Any] = {
            "CONTROLPLANE_STORE__URL": stored.url,
            "CONTROLPLANE_STORE__ENDPOINT_URL": proxy.endpoint_url,
            "CONTROLPLANE_STORE__REGION": stored.region or "",
            "CONTROLPLANE_STORE__ACCESS_KEY_ID": stored.access_key_id or "",
            "CONTROLPLANE_STORE__SECRET_ACCESS_KEY": stored.secret_access_key.get_secret_value(),
            "CONTROLPLANE_STORE__TIMEOUT_SECONDS": "120",
        }
        api, gateway = stack.enter_context(running(tmp_path / "data", **environment))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        known, unknown = (
            pool.submit(gateway.post, f"/v2/models/{name}/infer", content=body) for name in ("m", "unknown")
        )
        deadline = time.monotonic() + 60
        while "tritonctl_gateway_waiting_requests 2.0" not in api.http.get("/metrics").text:
            assert time.monotonic() < deadline, "both wait"
            time.sleep(0.05)
        assert not any(one.done() for one in (known, unknown))
        unread.close()
        answer = known.result()
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"][0] == 3.0
        assert unknown.result().status_code == 404


@pytest.mark.parametrize(("ends", "says"), [(1, None), (9, "it ended with status 7")])
def test_haproxy_that_ends_during_start_is_restarted(tmp_path: Path, ends: int, says: str | None) -> None:
    """A program that exits silently a given number of times, and runs HAProxy from then on."""
    real = find_haproxy(None)
    assert real is not None
    program = tmp_path / "haproxy"
    starts = tmp_path / "starts"
    ending = f'echo >> {starts}\n[ "$(wc -l < {starts})" -le {ends} ] && exit 7\n'
    program.write_text(f'#!/bin/sh\n{ending}exec {real} "$@"\n')
    program.chmod(0o755)
    gateway = GatewaySettings(enabled=True, haproxy=program)
    settings = settings_for(tmp_path / "data", embedded=True, gateway=gateway)
    if says is not None:
        with pytest.raises(GatewayError, match=says), serving(settings):
            pass
        assert len(starts.read_text()) == 3
        return
    with serving(settings) as api:
        assert api.plane.gateway is not None
        url = f"{api.plane.gateway.address().http_url}/v2/health/live"
        deadline = time.monotonic() + 60
        while httpx.get(url).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(starts.read_text()) == 2
