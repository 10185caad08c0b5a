"""Triton's own model control is closed to clients that reach its ports, because a load runs code."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from controlplane.settings import TritonServerSettings, TritonSettings
from controlplane.triton.client import CONTROL_HEADER, CONTROL_METADATA
from controlplane.triton.embedded.server import EmbeddedTriton
from tests.support.api import onnx_scale, serving, settings_for
from tests.support.triton import LoopThread

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def attempts(grpc_url: str, http_url: str) -> dict[str, Callable[[], object]]:
    """Requests that a client without the key may try, over both protocols."""
    grpc = tritonclient.grpc.InferenceServerClient(grpc_url)
    http = tritonclient.http.InferenceServerClient(http_url.removeprefix("http://"))
    wrong = {CONTROL_METADATA: "guessed"}
    evil = {"files": {"file:1/model.py": b"import os"}, "config": '{"backend": "python"}'}
    return {
        "grpc load": lambda: grpc.load_model("net"),
        "grpc load of code": lambda: grpc.load_model("evil", **evil),
        "grpc load with a wrong key": lambda: grpc.load_model("net", headers=wrong),
        "grpc unload": lambda: grpc.unload_model("net"),
        "grpc index": grpc.get_model_repository_index,
        "grpc trace": lambda: grpc.update_trace_settings(settings={"trace_file": "/tmp/anywhere"}),
        "grpc log": lambda: grpc.update_log_settings({"log_file": "/tmp/anywhere"}),
        "http load": lambda: http.load_model("net"),
        "http load of code": lambda: http.load_model("evil", **evil),
        "http load with a wrong key": lambda: http.load_model("net", headers={CONTROL_HEADER: "guessed"}),
        "http unload": lambda: http.unload_model("net"),
        "http index": http.get_model_repository_index,
        "http trace": lambda: http.update_trace_settings(settings={"trace_file": "/tmp/anywhere"}),
        "http log": lambda: http.update_log_settings({"log_file": "/tmp/anywhere"}),
    }


def test_only_the_control_plane_can_load_models(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, embedded=True, triton=TritonSettings(embedded=True, load_timeout_seconds=60))
    assert settings.triton.restrict_control, "what people run is restricted unless they say otherwise"
    with serving(settings) as api:
        api.publish("net", onnx_scale(2))
        assert api.deploy("net")["state"] == "succeeded"
        server = api.ok(api.http.get("/v1/servers/embedded"))
        for what, attempt in attempts(server["grpc_url"], server["http_url"]).items():
            with pytest.raises(InferenceServerException, match="restricted, expecting header"):
                attempt()
            assert what
        # Inference stays direct, and the control plane goes on as ever.
        client = tritonclient.grpc.InferenceServerClient(server["grpc_url"])
        rows = tritonclient.grpc.InferInput("x", [1, 2], "FP32")
        rows.set_data_from_numpy(np.array([[1, 2]], np.float32))
        assert client.infer("net", [rows]).as_numpy("y").tolist() == [[2.0, 4.0]]
        gone = api.ok(api.http.post("/v1/deployments/net/unload"), 202)
        assert api.operation(gone["operation_id"])["state"] == "succeeded"
        # Neither the control plane's secrets nor the store's are in the server's environment.
        looked_at = 0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # the model's process, which has just ended
                if "triton" in process.name():
                    assert not [
                        name for name in process.environ() if name.startswith(("TRITONCTL_", "CONTROLPLANE_", "AWS_"))
                    ]
                    looked_at += 1
        assert looked_at


def test_external_server_requires_its_control_key(tmp_path: Path) -> None:
    loop = LoopThread()
    triton = EmbeddedTriton(tmp_path / "models", tmp_path / "run", TritonSettings(), control_key="c0ntrol-5ecret")
    loop.run(triton.start())
    try:

        def elsewhere(**key: str) -> TritonSettings:
            server = TritonServerSettings.model_validate(
                {"name": "gpu-1", "grpc_url": triton.grpc_url, "repository": triton.repository, **key}
            )
            return TritonSettings(servers=(server,), load_timeout_seconds=60)

        for number, (key, says) in enumerate(
            [
                ({}, "it requires a control key"),
                ({"control_key": "wr0ng-5ecret"}, "it was started with another control key"),
            ]
        ):
            with serving(settings_for(tmp_path / str(number), embedded=False, triton=elsewhere(**key))) as api:
                deadline = time.monotonic() + 60
                while says not in api.http.get("/v1/servers/gpu-1").text:
                    assert time.monotonic() < deadline, api.http.get("/v1/servers/gpu-1").text
                    time.sleep(0.05)
                told = api.http.get("/v1/servers/gpu-1").text + api.http.get("/readyz").text
                assert "control_key of this server" in told
                assert "5ecret" not in told
        right = settings_for(tmp_path / "right", embedded=False, triton=elsewhere(control_key="c0ntrol-5ecret"))
        assert "5ecret" not in repr(right) + right.model_dump_json()
        with serving(right) as api:
            api.publish("net", onnx_scale(3))
            assert api.deploy("net")["state"] == "succeeded"
            assert api.infer("net", [1.0, 2.0]) == ([3.0, 6.0], 1)
    finally:
        loop.run(triton.stop())
        loop.close()
