"""A gateway as a process of its own, beside a control plane without a gateway, before a Triton that runs elsewhere."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton_grpc

from controlplane.reconciler.leader_election import PREFIX
from controlplane.registry.chain import Chain
from controlplane.registry.gateways import GatewayLog
from controlplane.storage.filesystem import FilesystemStore
from tests.support.api import Api, onnx_scale
from tests.support.cli_forks import Forked
from tests.support.control_process import started
from tests.support.gateway import asking, failures, more, ones, until
from tests.support.triton import RunningTriton, running_triton

pytestmark = [pytest.mark.triton, pytest.mark.long]

MIB = 1 << 20
NAMES = ("one", "two", "three", "four")


class Fleet:
    """A control plane and gateways, as processes, and the Triton that they share."""

    def __init__(self, stack: ExitStack, folder: Path, triton: RunningTriton) -> None:
        self._stack = stack
        self._folder = folder
        self._triton = triton
        self._number = 0
        self.store = FilesystemStore(folder / "store")
        self.environment = {
            "CONTROLPLANE_STORE__URL": f"file://{folder / 'store'}",
            "CONTROLPLANE_MEMORY__BUDGET_BYTES": json.dumps({"host": 260 * MIB}),
            "CONTROLPLANE_MEMORY__MINIMUM_RESIDENCE_SECONDS": "0.3",
            "CONTROLPLANE_MEMORY__POLL_INTERVAL_SECONDS": "0.2",
            "CONTROLPLANE_MEMORY__EVICTION_POLICY": "lru",
            "CONTROLPLANE_RECONCILER__INTERVAL_SECONDS": "0.3",
            "CONTROLPLANE_RECONCILER__LEASE_SECONDS": "3",
            "CONTROLPLANE_GATEWAY__SHUTDOWN_TIMEOUT_SECONDS": "240",
        }

    def start(self, *command: str) -> tuple[Forked, Api]:
        """Start a process; return it and a client of its API, which knows the gateway's addresses if it has one."""
        self._number += 1
        folder = self._folder / f"{command[0]}{self._number}"
        folder.mkdir(mode=0o700)
        process, document = self._stack.enter_context(started(folder, *command, **self.environment))
        http = self._stack.enter_context(httpx.Client(base_url=document["url"], timeout=90))
        plane: Any = SimpleNamespace(gateway=SimpleNamespace(**document["gateway"]) if document["gateway"] else None)
        return process, Api(plane, http, document["url"])

    def leader(self) -> tuple[Forked, Api]:
        server = self._triton.server
        there = f"{server.grpc_url},{server.http_url},{server.metrics_url},{self._triton.repository.root}"
        return self.start("serve", "--triton", f"shared={there}")

    def gateway(self) -> tuple[Forked, Api]:
        there = f"{self._triton.server.grpc_url},{self._triton.server.http_url}"
        ports = ("--http-port", "0", "--grpc-port", "0")
        return self.start("gateway", "serve", "--triton", f"shared={there}", *ports)

    def newest_lease(self) -> tuple[int, Any]:
        """Return the number of the newest revision of the lease, and the process that holds it."""
        head = Chain(self.store, PREFIX, pruned=True).head()
        assert head is not None
        return head.number, head.body.get("pid")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with running_triton(folder / "server") as triton, ExitStack() as stack:
        yield Fleet(stack, folder, triton)


@pytest.fixture(scope="module")
def leader(fleet: Fleet) -> tuple[Forked, Api]:
    """A control plane without a gateway; `net` has two versions, and four models share memory for about two."""
    process, api = fleet.leader()
    for factor in (1.0, 2.0):
        api.publish("net", onnx_scale(factor))
    assert api.deploy("net:1", mode="pinned")["state"] == "succeeded"
    for number, name in enumerate(NAMES):
        api.publish(name, onnx_scale(number + 3.0))
        api.deploy(f"{name}:1", mode="on-demand")
    return process, api


def events(api: Api, reason: str) -> int:
    return sum(one["reason"] == reason for one in api.ok(api.http.get("/v1/events", params={"limit": 500}))["items"])


def metric(api: Api, name: str) -> float:
    """Return the sum of a metric's samples."""
    lines = [line for line in api.http.get("/metrics").text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def post(api: Api, model: str) -> httpx.Response:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
    gateway: Any = api.plane.gateway
    return httpx.post(f"{gateway.http_url}/v2/models/{model}/infer", json=body, timeout=240)


def test_rollback_and_evictions_lose_no_request(fleet: Fleet, leader: tuple[Forked, Api]) -> None:
    _, api = leader
    _, gateway = fleet.gateway()
    assert len(GatewayLog(fleet.store).gateways().present) == 1
    with asking((gateway,), "net") as seen:
        more(seen)
        assert api.deploy("net:2", mode="pinned", bake_seconds=3600)["state"] == "succeeded"
        more(seen)
        back = api.ok(api.http.post("/v1/deployments/net/rollback", json={}), 202)
        assert api.operation(back["operation_id"])["state"] == "succeeded"
        more(seen)
    with asking((gateway,), *NAMES) as loaded_for:
        until("a few evictions", lambda: events(api, "Evicted") >= 4, seconds=200)
        more(loaded_for, 1)
    assert failures(seen) == failures(loaded_for) == []
    assert seen[0]["net", 1.0]
    assert seen[0]["net", 2.0]
    assert set(loaded_for[0]) == {(name, number + 3.0) for number, name in enumerate(NAMES)}


def test_offers_health_and_metrics_and_no_api(fleet: Fleet, leader: tuple[Forked, Api]) -> None:
    _, gateway = fleet.gateway()
    assert 'tritonctl_wanted_servers{pool="default"} 1.0' in leader[1].http.get("/metrics").text
    assert "tritonctl_pool_queue_seconds_total" in leader[1].http.get("/metrics").text
    assert gateway.http.get("/healthz").status_code == 200
    until("it is ready", lambda: gateway.http.get("/readyz").status_code == 200)
    assert metric(gateway, "tritonctl_gateway_up") == 1
    assert "tritonctl_leader" not in gateway.http.get("/metrics").text
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/info"),
        ("PUT", "/v1/deployments/net"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ):
        assert gateway.http.request(method, path).status_code == 404, path


def test_sigterm_finishes_requests_in_flight(fleet: Fleet, leader: tuple[Forked, Api]) -> None:
    """Two requests wait for a load, which cannot happen before the leader, which is stopped, continues."""
    control_plane, api = leader
    process, gateway = fleet.gateway()
    api.publish("late", onnx_scale(3.0))
    api.deploy("late:1", mode="on-demand", keep_alive_seconds=0.0)
    until("it is not loaded", lambda: api.ok(api.http.get("/v1/deployments/late"))["status"]["phase"] == "Unloaded")
    ready = f"{gateway.plane.gateway.http_url}/v2/models/late/ready"  # type: ignore[union-attr]
    until("the gateway knows it", lambda: httpx.get(ready).status_code == 200)
    control_plane.send_signal(signal.SIGSTOP)
    answers: dict[str, Any] = {}

    def ask_grpc() -> None:
        with triton_grpc.InferenceServerClient(gateway.plane.gateway.grpc_url) as client:  # type: ignore[union-attr]
            answers["grpc"] = client.infer("late", ones(), client_timeout=240).as_numpy("y")[0, 0]

    asks = [
        threading.Thread(
            target=lambda: answers.__setitem__("http", post(gateway, "late").json()["outputs"][0]["data"])
        ),
        threading.Thread(target=ask_grpc),
    ]
    try:
        for ask in asks:
            ask.start()
        until("both wait", lambda: metric(gateway, "tritonctl_gateway_waiting_requests") == 2)
        process.terminate()

        def refuses() -> bool:
            try:
                post(gateway, "net")
            except httpx.ConnectError:
                return True
            return False

        until("it accepts no more connections", refuses)
        assert gateway.http.get("/readyz").status_code == 503
        assert process.poll() is None
    finally:
        control_plane.send_signal(signal.SIGCONT)
    for ask in asks:
        ask.join(240)
    assert answers == {"http": [3.0, 6.0], "grpc": 3.0}
    assert process.wait(60) == 0


def test_never_leads_and_learns_keys_from_the_bucket(fleet: Fleet, leader: tuple[Forked, Api]) -> None:
    control_plane, api = leader
    _, gateway = fleet.gateway()
    until("`net` is answered", lambda: post(gateway, "net").status_code == 200)
    control_plane.kill()
    control_plane.wait()
    before = fleet.newest_lease()
    assert before[1] == control_plane.pid
    reads = metric(gateway, "tritonctl_store_operations_total")
    until("it reads the lease", lambda: metric(gateway, "tritonctl_store_operations_total") > reads + 30)
    assert fleet.newest_lease() == before
    assert post(gateway, "net").status_code == 200
    _, api = fleet.leader()
    until("another control plane leads", lambda: fleet.newest_lease()[0] > before[0])
    assert api.deploy("net:2", mode="pinned")["state"] == "succeeded"
    until("the gateway knows", lambda: post(gateway, "net").json()["outputs"][0]["data"] == [2.0, 4.0])

    secret = api.ok(api.http.post("/v1/keys", json={"name": "root", "scopes": ["admin"]}), 201)["secret"]
    until("a key is required", lambda: post(gateway, "net").status_code == 401)
    assert gateway.http.get("/metrics").status_code == 401
    assert gateway.http.get("/healthz").status_code == 200
    headers = {"authorization": f"Bearer {secret}"}
    assert gateway.http.get("/metrics", headers=headers).status_code == 200
