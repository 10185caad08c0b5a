"""Two instances on one store, each with an embedded Triton: each drives its own server and serves all deployments."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api import Api, onnx_scale
from tests.support.processes import tied_to_us

pytestmark = [pytest.mark.triton, pytest.mark.long]

LEASE_SECONDS = 3
UNATTENDED_SECONDS = 4
_PATIENCE_SECONDS = 90


@dataclass(frozen=True)
class Instance:
    """A `tritonctl up` in a process of its own.

    Attributes:
        api: Its API.
        gateway: A client of its gateway.
        process: The control plane itself, without its Triton and its HAProxy.
        server: Its server, as `up.json` describes it.
    """

    api: Api
    gateway: httpx.Client
    process: subprocess.Popen[bytes]
    server: dict[str, Any]

    def ask(self) -> tuple[int, float | str]:
        """Send a request for `net` to the gateway; return the status, and the answer or the error."""
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}]}
        answer = self.gateway.post("/v2/models/net/infer", json=body)
        document = answer.json()
        return answer.status_code, document["outputs"][0]["data"][0] if answer.is_success else document["error"]

    def leads(self) -> bool:
        """Return whether it holds the leader's lease."""
        return "tritonctl_leader 1.0" in self.api.http.get("/metrics").text

    def checks(self) -> dict[str, bool]:
        """Return the checks of its readiness."""
        return {check["name"]: check["ok"] for check in self.api.http.get("/readyz").json()["checks"]}


@contextlib.contextmanager
def up(folder: Path, name: str) -> Iterator[Instance]:
    data, ready = folder / name, folder / name / "up.json"
    command = [
        *(str(Path(sys.executable).with_name("tritonctl")), "up", "--data-dir", str(data)),
        *("--store", f"file://{folder}/store", "--port", "0", "--http-port", "0", "--grpc-port", "0"),
    ]
    environment = {
        **os.environ,
        "CONTROLPLANE_RECONCILER__LEASE_SECONDS": str(LEASE_SECONDS),
        "CONTROLPLANE_RECONCILER__INTERVAL_SECONDS": "0.5",
        "CONTROLPLANE_GATEWAY__UNATTENDED_SECONDS": str(UNATTENDED_SECONDS),
    }
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(tied_to_us(command), env=environment, stdout=log, stderr=log)
    try:
        eventually(lambda: ready.exists() or process.poll() is not None, f"{name} is up")
        assert process.poll() is None, (folder / f"{name}.log").read_text()
        document = json.loads(ready.read_text())
        with (
            httpx.Client(base_url=document["url"], timeout=_PATIENCE_SECONDS) as http,
            httpx.Client(base_url=document["gateway"]["http_url"], timeout=_PATIENCE_SECONDS) as gateway,
        ):
            api = Api(None, http, document["url"])  # type: ignore[arg-type]
            yield Instance(api, gateway, process, document["servers"][0])
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it never came to this: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, Instance]]:
    """The leader and a follower on one store, with version 1 (y = 3 x) of `net` deployed."""
    folder = tmp_path_factory.mktemp("two")
    with up(folder, "a") as a, up(folder, "b") as b:
        a.api.publish("net", onnx_scale(3.0))
        a.api.publish("net", onnx_scale(4.0))
        assert a.api.deploy("net:1")["state"] == "succeeded"
        yield a, b


def test_each_instance_drives_its_own_server(both: tuple[Instance, Instance]) -> None:
    a, b = both
    assert a.leads()
    assert not b.leads()
    assert a.server["name"] == b.server["name"] == "embedded"
    assert a.server["id"] != b.server["id"], "the ids differ"
    for instance in both:
        assert instance.ask() == (200, 3.0)
        assert all(instance.checks().values()), instance.checks()
        (server,) = instance.api.ok(instance.api.http.get("/v1/servers"))["items"]
        assert server["id"] == instance.server["id"]


def test_resumed_leader_gives_no_stale_answers(both: tuple[Instance, Instance]) -> None:
    a, b = both
    if not a.leads():
        a, b = b, a
    assert a.leads()
    a.process.send_signal(signal.SIGSTOP)
    eventually(b.leads, "the other instance leads")
    assert b.api.deploy("net:2")["state"] == "succeeded"
    eventually(lambda: b.ask() == (200, 4.0), "the new version answers")
    eventually(lambda: a.ask()[0] == 503, "the gateway of the paused instance refuses requests")
    assert "control plane behind this gateway does not answer" in str(a.ask()[1])
    a.process.send_signal(signal.SIGCONT)
    refusals: list[tuple[int, float | str]] = []

    def answers_again() -> bool:
        status, answer = a.ask()
        if status == 200:
            assert answer == 4.0, f"after {len(refusals)} refusals"
            return True
        refusals.append((status, answer))
        return False

    eventually(answers_again, "the resumed instance answers")
    assert {status for status, _ in refusals} <= {503}, refusals
    assert not a.leads()
    eventually(lambda: all(a.checks().values()), "it is ready again")
    deployment = a.api.ok(a.api.http.get("/v1/deployments/net"))
    assert deployment["status"]["servers"][0]["serving_version"] == 2
    events = a.api.ok(a.api.http.get("/v1/events"))["items"]
    assert [event["reason"] for event in events if event["reason"] == "Paused"] == ["Paused"]
