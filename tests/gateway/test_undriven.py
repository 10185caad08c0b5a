"""A server that no instance drives: said in readiness and events, and refused at the gateway at once."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controlplane.settings import GatewaySettings, StoreSettings, TritonServerSettings, TritonSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import until
from tests.support.processes import free_port

REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}]}


def _server(folder: Path, name: str) -> TritonSettings:
    """A server that is not there: what matters is who has it in the settings."""
    url = f"127.0.0.1:{free_port()}"
    server = TritonServerSettings(name=name, grpc_url=url, http_url=f"http://{url}", repository=folder / name)
    return TritonSettings(embedded=False, servers=(server,))


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An instance that follows, with a server `mine` that the leader does not have; `net` is deployed."""
    folder = tmp_path_factory.mktemp("undriven")
    store = StoreSettings(url=f"file://{folder}/store")
    one = settings_for(folder / "one", embedded=False, store=store, triton=_server(folder, "theirs"))
    two = settings_for(
        folder / "two",
        embedded=False,
        store=store,
        triton=_server(folder, "mine"),
        gateway=GatewaySettings(enabled=True),
    )
    with serving(one) as leader, serving(two) as follower:
        leader.publish("net", onnx_scale(2.0))
        leader.ok(leader.http.put("/v1/deployments/net", json={"reference": "net:1"}), 202)
        assert leader.plane.reconciler.leading
        yield follower


def test_readiness_and_events_name_server_that_no_instance_drives(follower: Api) -> None:
    (server,) = follower.ok(follower.http.get("/v1/servers"))["items"]
    assert not server["driven"]
    assert server["id"] == "mine"
    events = follower.ok(follower.http.get("/v1/events"))["items"]
    (event,) = [event for event in events if event["reason"] == "ServerNotDriven"]
    assert event["subject"] == "mine"
    assert "has no server 'mine' in its settings" in event["message"]
    readiness = follower.http.get("/readyz")
    assert readiness.status_code == 503
    assert [check["ok"] for check in readiness.json()["checks"] if check["name"] == "server mine"] == [False]


def test_gateway_refuses_model_of_undriven_server_at_once(follower: Api) -> None:
    gateway = follower.plane.gateway
    assert gateway is not None
    until("the deployment is known", lambda: follower.plane.reconciler.spec("net"))
    # The limit for a load is 300 s: a request that waited for one would outlast this client.
    answer = httpx.post(f"{gateway.http_url}/v2/models/net/infer", json=REQUEST, timeout=60)
    assert answer.status_code == 503
    assert "net is not loaded and cannot be loaded now: " in answer.json()["error"]
    assert "no instance drives it" in answer.json()["error"]
    problem = follower.http.post("/v1/deployments/net/infer", json=REQUEST)
    assert problem.status_code in {409, 503}
