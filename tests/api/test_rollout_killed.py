"""A control plane that is killed in the middle of a rollout, and the one that goes on with it."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api import Api, onnx_scale
from tests.support.control_process import running

pytestmark = [pytest.mark.triton, pytest.mark.long]

STEPS = [{"weight_percent": 30, "seconds": 0}, {"weight_percent": 60, "seconds": 600}]
CANARY = {"kind": "canary", "steps": STEPS, "minimum_requests": 20}


def ask(gateway: httpx.Client) -> str:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
    answer = gateway.post("/v2/models/net/infer", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_version"])


def rollout(api: Api) -> dict[str, Any]:
    return api.ok(api.http.get("/v1/rollouts/net"))


def test_rollout_continues_after_the_control_plane_is_killed(tmp_path: Path) -> None:
    with running(tmp_path) as (api, gateway):
        for scale in (1.0, 2.0):
            api.publish("net", onnx_scale(scale))
        assert api.deploy("net:1")["state"] == "succeeded"
        api.deploy("net:2", rollout=CANARY)
        end = time.monotonic() + 120
        while (before := rollout(api))["step"] < 2:
            assert time.monotonic() < end, before
            ask(gateway)
    with running(tmp_path) as (api, gateway):
        end = time.monotonic() + 120
        while not (after := rollout(api))["ready"]:
            assert time.monotonic() < end, after
            time.sleep(0.05)
        assert (after["step"], after["phase"]) == (2, "running")
        assert after["began_at"] == before["began_at"]
        assert after["step_ends_at"] == before["step_ends_at"]
        while "2" not in {ask(gateway) for _ in range(20)}:
            assert time.monotonic() < end
        aborted = api.ok(api.http.post("/v1/rollouts/net/abort"))
        assert aborted["phase"] == "aborted"
        assert aborted["new"]["requests"] > 0
        assert {ask(gateway) for _ in range(50)} == {"1"}
