"""A control plane whose server has an agent: deployments through it, with a real Triton that the agent supervises."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from controlplane.settings import StoreSettings, TritonServerSettings, TritonSettings
from tests.support.agents import KEY, Agent, running_agent
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.processes import free_port

TRITON_KEY = "a-key-for-model-control"


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.triton
@pytest.mark.slow
def test_deploys_rolls_back_and_unloads_through_an_agent(tmp_path: Path) -> None:
    store = StoreSettings(url=f"file://{tmp_path}/store")
    ports = {name: str(free_port()) for name in ("GRPC", "HTTP", "METRICS")}
    environment = {
        "CONTROLPLANE_TRITON__EMBEDDED": "true",
        "CONTROLPLANE_AGENT__TRITON_CONTROL_KEY": TRITON_KEY,
        **{f"CONTROLPLANE_TRITON__{name}_PORT": port for name, port in ports.items()},
    }
    with running_agent(tmp_path / "agent", f"--store={store.url}", **environment) as agent:
        server = TritonServerSettings(
            name="gpu-1",
            grpc_url=f"127.0.0.1:{ports['GRPC']}",
            metrics_url=f"http://127.0.0.1:{ports['METRICS']}/metrics",
            control_key=SecretStr(TRITON_KEY),
            agent_url=agent.url,
            agent_key=SecretStr(KEY),
        )
        settings = settings_for(
            tmp_path / "plane",
            embedded=False,
            store=store,
            triton=TritonSettings(servers=(server,), load_timeout_seconds=60),
        )
        with serving(settings) as api:
            _story(api, agent, settings.data_dir)


def _story(api: Api, agent: Agent, plane: Path) -> None:
    for factor in (2, 3):
        api.publish("scale", onnx_scale(factor))
    assert api.deploy("scale:1")["state"] == "succeeded"
    assert api.infer("scale", [1.0, 2.0]) == ([2.0, 4.0], 1)
    assert (agent.repository / "scale" / "1" / "model.onnx").exists()
    # The bytes went from the bucket to the agent; the control plane has neither a repository nor the blobs.
    assert not list(plane.rglob("model.onnx"))
    (device, *_) = api.ok(api.http.get("/v1/devices"))["items"]
    assert device["server"] == "gpu-1"
    copies = api.ok(api.http.get("/v1/models/scale/versions/1/signatures"))["staged"]
    assert [(copy["server"], copy["intact"]) for copy in copies] == [("gpu-1", True)]

    assert api.deploy("scale:2")["state"] == "succeeded"
    assert api.infer("scale", [1.0, 2.0]) == ([3.0, 6.0], 2)
    back = api.ok(api.http.post("/v1/deployments/scale/rollback", json={}), 202)
    assert api.operation(back["operation_id"])["state"] == "succeeded"
    assert api.infer("scale", [1.0, 2.0]) == ([2.0, 4.0], 1)

    api.ok(api.http.post("/v1/deployments/scale/unload", json={}), 202)
    until(lambda: api.ok(api.http.get("/v1/deployments/scale"))["status"]["phase"] == "Unloaded")
    gone = api.ok(api.http.delete("/v1/deployments/scale"), 202)
    assert api.operation(gone["operation_id"])["state"] == "succeeded"
    until(lambda: not (agent.repository / "scale").exists())


@pytest.mark.triton
@pytest.mark.slow
def test_models_stay_while_the_agent_is_away(tmp_path: Path, triton) -> None:
    store = StoreSettings(url=f"file://{tmp_path}/store")
    root = triton.server.repository
    options = (f"--store={store.url}", f"--repository={root}", f"--triton-grpc={triton.server.grpc_url}")
    with running_agent(tmp_path / "agent", *options) as agent:
        server = TritonServerSettings(
            name="gpu-1", grpc_url=triton.server.grpc_url, agent_url=agent.url, agent_key=SecretStr(KEY)
        )
        settings = settings_for(
            tmp_path / "plane",
            embedded=False,
            store=store,
            triton=TritonSettings(servers=(server,), load_timeout_seconds=60),
        )
        with serving(settings) as api:
            api.publish("stays", onnx_scale(2))
            api.publish("stays", onnx_scale(5))
            assert api.deploy("stays:1")["state"] == "succeeded"
            agent.kill()
            until(lambda: _agent_answers(api) == "False")
            assert api.infer("stays", [1.0, 2.0]) == ([2.0, 4.0], 1)
            status = api.ok(api.http.get("/v1/deployments/stays"))["status"]
            assert status["phase"] == "Ready"
            # A deployment waits for the agent, and is done once it is back.
            started = api.ok(api.http.put("/v1/deployments/stays", json={"reference": "stays:2"}), 202)
            time.sleep(1)
            agent.start()
            assert api.operation(started["operation_id"])["state"] == "succeeded"
            until(lambda: _agent_answers(api) == "True")
            assert api.infer("stays", [1.0, 2.0]) == ([5.0, 10.0], 2)
            gone = api.ok(api.http.delete("/v1/deployments/stays"), 202)
            assert api.operation(gone["operation_id"])["state"] == "succeeded"
    assert not (root / "stays").exists()


def _agent_answers(api: Api) -> str:
    (server,) = api.ok(api.http.get("/v1/servers"))["items"]
    return next(one["status"] for one in server["conditions"] if one["type"] == "AgentAvailable")
