"""HAProxy killed, Triton killed under load, the control plane killed while requests wait."""

import asyncio
import contextlib
import http.client as http_protocol
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from controlplane.settings import GatewaySettings, TritonServerSettings, TritonSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import http_client, ones, until, urls, way
from tests.support.triton import running_triton

pytestmark = [pytest.mark.triton, pytest.mark.long]


def haproxy_pid(api: Api) -> int:
    gateway = api.plane.gateway
    assert gateway is not None
    pid = gateway.haproxy.pid
    assert pid is not None
    return pid


def test_killed_haproxy_restarts_with_its_maps(gateway: Api) -> None:
    """Requests in flight are cut off; new ones wait in the socket, which is ours; the activator gets none."""
    before = gateway.plane.gateway.stats.requests.copy()  # type: ignore[union-attr]
    for _ in range(3):
        pid = haproxy_pid(gateway)
        os.kill(pid, signal.SIGKILL)
        for _ in range(20):  # new connections, from the moment of the kill on
            with http_client(gateway) as client:
                assert client.infer("net", ones(triton_http)).as_numpy("y")[0, 0] == 2.0
        assert haproxy_pid(gateway) != pid
    assert gateway.plane.gateway.stats.requests == before  # type: ignore[union-attr]
    assert gateway.ok(gateway.http.get("/v1/gateway"))["restarts"] >= 3


def test_unresponsive_haproxy_is_killed_and_restarted(gateway: Api) -> None:
    """Nothing changes meanwhile, so only its supervisor sends it commands."""
    hung = haproxy_pid(gateway)
    os.kill(hung, signal.SIGSTOP)
    until("another one", lambda: gateway.plane.gateway.haproxy.pid not in (None, hung))  # type: ignore[union-attr]
    with http_client(gateway) as client:
        assert client.infer("net", ones(triton_http)).as_numpy("y")[0, 0] == 2.0


def test_restarted_haproxy_has_changes_made_while_it_was_down(gateway: Api) -> None:
    gateway.publish("late", onnx_scale(5.0))
    os.kill(haproxy_pid(gateway), signal.SIGSTOP)  # it does not answer its commands either
    stopped = haproxy_pid(gateway)
    assert gateway.deploy("late:1")["state"] == "succeeded"
    with contextlib.suppress(ProcessLookupError):  # its supervisor was quicker
        os.kill(stopped, signal.SIGKILL)
    until("the direct way", lambda: way(gateway, "late") == "direct")
    with http_client(gateway) as client:
        assert client.infer("late", ones(triton_http)).as_numpy("y")[0, 0] == 5.0


def test_route_closed_during_haproxy_start_is_closed_before_unload(gateway: Api) -> None:
    front = gateway.plane.gateway
    assert front is not None

    async def close() -> None:
        os.kill(haproxy_pid(gateway), signal.SIGKILL)
        while front.haproxy.settled.is_set():
            await asyncio.sleep(0.001)
        async with front.closed("embedded", "net"):
            while not front.haproxy.ready:  # one that ended at its start is followed by another
                await asyncio.sleep(0.001)
            found = await front.api._ask("show map models.map")
            assert "net" not in found, found

    until("the direct way", lambda: way(gateway, "net") == "direct")
    loop = gateway.plane.reconciler._loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(close(), loop).result(60)
    until("the direct way again", lambda: way(gateway, "net") == "direct")


def test_haproxy_ends_with_the_control_plane(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path, embedded=True)) as api:
        pid = haproxy_pid(api)
    assert not psutil.pid_exists(pid)


def test_killed_server_fails_only_its_requests_in_flight(tmp_path: Path) -> None:
    """The other server answers; only requests in flight on the killed one fail."""
    with (
        running_triton(tmp_path / "a") as first,
        running_triton(tmp_path / "b") as second,
    ):
        servers = tuple(
            TritonServerSettings(
                name=name,
                grpc_url=one.server.grpc_url,
                http_url=one.server.http_url,
                metrics_url=one.server.metrics_url,
                repository=one.server.repository,
            )
            for name, one in (("a", first), ("b", second))
        )
        settings = settings_for(
            tmp_path / "plane",
            embedded=False,
            triton=TritonSettings(servers=servers, request_timeout_seconds=2.0),
            gateway=GatewaySettings(enabled=True),
        )
        with serving(settings) as api:
            api.publish("net", onnx_scale(2.0))
            assert api.deploy("net:1", min_replicas=2)["state"] == "succeeded"
            until(
                "both servers",
                lambda: [r["servers"] for r in api.http.get("/v1/gateway").json()["models"]] == [["a", "b"]],
            )
            outcomes: Counter[str] = Counter()
            stop = threading.Event()
            threads = [
                threading.Thread(target=_hammer, args=(api, kind, stop, outcomes))
                for kind in (triton_http, triton_grpc, triton_http, triton_grpc)
            ]
            for thread in threads:
                thread.start()
            try:
                until("traffic", lambda: outcomes["answered"] > 200)
                pid = first.server.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                killed_at = outcomes["answered"]
                until("traffic on the other one", lambda: outcomes["answered"] > killed_at + 500)
                until(
                    "the first is back",
                    lambda: [r["servers"] for r in api.http.get("/v1/gateway").json()["models"]] == [["a", "b"]],
                )
            finally:
                stop.set()
                for thread in threads:
                    thread.join(60)
            failed = sum(count for outcome, count in outcomes.items() if outcome != "answered")
            # Each client has at most one request in flight on the server that dies.
            assert failed <= len(threads), outcomes


def _hammer(api: Api, kind: Any, stop: threading.Event, outcomes: Counter[str]) -> None:
    with kind.InferenceServerClient(urls(api)[kind is triton_grpc]) as client:
        while not stop.is_set():
            try:
                client.infer("net", ones(kind))
                outcomes["answered"] += 1
            except (InferenceServerException, HTTPConnectionClosed) as error:
                # HAProxy closes a connection in use where the server's breaks off: the client's to try again.
                outcomes[f"{kind.__name__}: {error}"] += 1


_RUN = """
import sys
from pathlib import Path
from controlplane.process import run
from controlplane.settings import ApiSettings, Settings, TritonSettings
run(Settings(data_dir=Path(sys.argv[1]), api=ApiSettings(port=0), triton=TritonSettings(embedded=True)))
"""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any]]]:
    """A control plane as a process, killed at the end of the block."""
    ready = folder / "up.json"
    ready.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(folder)])
    try:
        until("the control plane", lambda: ready.exists() or process.poll() is not None)
        yield process, json.loads(ready.read_text())
    finally:
        process.kill()
        process.wait()


def test_killed_control_plane_ends_500_waiting_requests(tmp_path: Path) -> None:
    """Every client gets an error at once, no process is left, and the next control plane answers."""
    with serving(settings_for(tmp_path, embedded=True)) as api:
        api.publish("lazy", onnx_scale(3.0))
        api.deploy("lazy:1", mode="on-demand")
    outcomes: Counter[str] = Counter()
    with running(tmp_path) as (process, up):
        children = psutil.Process(process.pid).children(recursive=True)
        triton = next(child for child in children if child.name() == "tritonserver")
        triton.suspend()  # so that no load comes to its end
        base = up["gateway"]["http_url"]
        body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 1.0]}]})

        # Plain connections: a client of httpx each would take the processor longer than the requests may wait.
        place = httpx.URL(base)
        connections = [http_protocol.HTTPConnection(place.host, place.port, timeout=120) for _ in range(500)]
        for connection in connections:
            connection.request("POST", "/v2/models/lazy/infer", body)
        with httpx.Client(base_url=up["url"], timeout=30) as http:
            until("500 wait", lambda: http.get("/v1/gateway").json()["waiting_requests"] == 500)
        process.kill()
        for connection in connections:
            try:
                outcomes[str(connection.getresponse().status)] += 1
            except (http_protocol.HTTPException, OSError) as error:
                outcomes[type(error).__name__] += 1
            finally:
                connection.close()
        assert outcomes.total() == 500
        assert "200" not in outcomes
        psutil.wait_procs(children, timeout=15)
        assert not [child for child in children if child.is_running()]
    with running(tmp_path) as (_, up):
        answer = httpx.post(f"{up['gateway']['http_url']}/v2/models/lazy/infer", content=body, timeout=60)
        assert answer.json()["outputs"][0]["data"] == [3.0, 3.0]
