"""The leader is another process, with a gateway or without, and in the end it is killed in the middle of an unload.

Clients ask through the gateway of the instance that follows and is there to the end. None of their requests may fail.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.reconciler.leader_election import Lease
from controlplane.registry.gateways import DrainRequest, GatewayLog
from controlplane.settings import GatewaySettings, MemorySettings, StoreSettings, TritonServerSettings, TritonSettings
from controlplane.storage.filesystem import FilesystemStore
from tests.support.api import onnx_scale, serving, settings_for
from tests.support.gateway import asking, failures, more, until, way
from tests.support.processes import tied_to_us
from tests.support.triton import RunningTriton, running_triton

pytestmark = [pytest.mark.triton, pytest.mark.long]

NAMES = ("one", "two")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A separate server: the session's server has other tests' models."""
    with running_triton(tmp_path_factory.mktemp("server")) as running:
        yield running


def beside(triton: RunningTriton, folder: Path) -> dict[str, Any]:
    """Settings that instances have in common."""
    server = TritonServerSettings(
        name="shared",
        grpc_url=triton.server.grpc_url,
        http_url=triton.server.http_url,
        metrics_url=triton.server.metrics_url,
        repository=triton.repository.root,
    )
    return {
        "store": StoreSettings(url=f"file://{folder / 'store'}"),
        "triton": TritonSettings(servers=(server,), load_timeout_seconds=60),
        "memory": MemorySettings(minimum_residence_seconds=0.3, poll_interval_seconds=0.2),
    }


@contextmanager
def leader(folder: Path, **groups: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A control plane as a process, that leads."""
    settings = settings_for(folder, embedded=False, **groups)
    process = subprocess.Popen(
        tied_to_us([sys.executable, "-m", "tests.gateway.leader_child", settings.model_dump_json()])
    )
    try:
        until("it runs", lambda: (folder / "up.json").exists() or process.poll() is not None, seconds=120)
        yield process
    finally:
        process.kill()
        process.wait()


def unloads(http: httpx.Client, url: str) -> int:
    """How often a control plane has unloaded a model."""
    events = http.get(f"{url}/v1/events", params={"limit": 1000}).json()["items"]
    return sum(event["reason"] == "Unloaded" for event in events)


@pytest.mark.parametrize("with_gateway", [False, True])
def test_no_request_fails_when_other_leader_unloads_or_is_killed(
    triton: RunningTriton, tmp_path: Path, with_gateway: bool
) -> None:
    """Models that leave as soon as they are not asked for a moment, and come back with the next request."""
    common = beside(triton, tmp_path)
    gateway = GatewaySettings(enabled=with_gateway)
    with leader(tmp_path / "leader", **common, gateway=gateway) as process:
        settings = settings_for(tmp_path / "follower", embedded=False, **common, gateway=GatewaySettings(enabled=True))
        with serving(settings) as api, httpx.Client() as http:
            url = json.loads((tmp_path / "leader" / "up.json").read_text())["url"]
            log = GatewayLog(api.plane.registry.store)
            assert not api.plane.reconciler.leading
            assert len(log.gateways().present) == 1 + with_gateway
            for number, name in enumerate(NAMES):
                api.publish(name, onnx_scale(number + 3.0))
                api.deploy(f"{name}:1", mode="on-demand", keep_alive_seconds=0.0)
            with asking((api,), *NAMES) as seen:
                until("the leader unloads", lambda: unloads(http, url) >= 3, seconds=120)
                more(seen, 5)
                (tmp_path / "leader" / "die").touch()
                assert process.wait(60) == -signal.SIGKILL
                left = json.loads((tmp_path / "leader" / "left.json").read_text())
                assert any(left.values()), "the leader had waited for the other gateway"
                until("the other one leads", lambda: api.plane.reconciler.leading)
                until("it removes what was left", lambda: not left.keys() & log.gateways().withdrawals)
                more(seen, 8)
                until("it unloads", lambda: unloads(http, api.url) >= 2, seconds=120)
            for name in NAMES:
                api.ok(api.http.delete(f"/v1/deployments/{name}"), 202)
            until("all are gone", lambda: {way(api, name) for name in NAMES} == {"closed"})
    assert failures(seen) == []
    assert set(seen[0]) == {(name, number + 3.0) for number, name in enumerate(NAMES)}


def test_starting_gateway_keeps_draining_route_closed(triton: RunningTriton, tmp_path: Path) -> None:
    common = beside(triton, tmp_path)
    with serving(settings_for(tmp_path / "before", embedded=False, **common)) as api:
        api.publish("net", onnx_scale(2.0))
        assert api.deploy("net:1", mode="pinned")["state"] == "succeeded"
    store = FilesystemStore(tmp_path / "store")
    # The leader says that it drives the server, so that the follower sends requests there; it does nothing more.
    lease, log = Lease(store, seconds=600, servers={"shared": triton.server.grpc_url}), GatewayLog(store)
    lease.attempt()
    assert lease.held
    log.announce("0" * 32, DrainRequest("shared", "net", 600.0))
    settings = settings_for(tmp_path / "after", embedded=False, **common, gateway=GatewaySettings(enabled=True))
    with serving(settings) as api:
        until("it has proved the model itself", lambda: "net" in api.plane.reconciler.routes())
        until("it acknowledges the drain", lambda: log.gateways().acknowledged)
        time.sleep(2.0)  # the gateway goes by the routes at least once a second
        assert way(api, "net") == "closed"
        log.over("0" * 32, set())
        until("the route is open", lambda: way(api, "net") == "direct")
