"""Cordon and drain of real Tritons: API, command line, and requests through the gateway all the while."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from controlplane.settings import GatewaySettings, Settings, StoreSettings, TritonServerSettings, TritonSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import asking, failures, more, until, urls
from tests.support.triton import RunningTriton, running_triton
from tests.triton_format import directories
from tests.triton_format.conftest import publish

pytestmark = pytest.mark.triton
SERVERS = ("a", "b")


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Fleet:
    """Two Tritons, and the settings of control planes for them."""

    folder: Path
    tritons: dict[str, RunningTriton]

    def settings(self, name: str) -> Settings:
        servers = tuple(
            TritonServerSettings(
                name=one,
                grpc_url=triton.server.grpc_url,
                http_url=triton.server.http_url,
                repository=triton.server.repository,
                labels={"name": one},
            )
            for one, triton in self.tritons.items()
        )
        return settings_for(
            self.folder / name,
            embedded=False,
            store=StoreSettings(url=f"file://{self.folder / 'store'}"),
            triton=TritonSettings(servers=servers, load_timeout_seconds=60),
            gateway=GatewaySettings(enabled=True, drain_timeout_seconds=60, sequence_timeout_seconds=600),
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("cordons")
    with ExitStack() as stack:
        yield Fleet(folder, {name: stack.enter_context(running_triton(folder / name)) for name in SERVERS})


@pytest.fixture(scope="module")
def api(fleet: Fleet) -> Iterator[Api]:
    with serving(fleet.settings("plane")) as running:
        for factor in (1.0, 2.0):
            running.publish("net", onnx_scale(factor))
        running.publish("bound", onnx_scale(5.0))
        publish(running, "sums", directories.counting(1.0))
        yield running


@pytest.fixture(autouse=True)
def _uncordoned(api: Api) -> Iterator[None]:
    yield
    for name in SERVERS:
        api.http.delete(f"/v1/servers/{name}/cordon")
    for model in ("net", "bound", "sums"):
        api.http.delete(f"/v1/deployments/{model}")
    until("all models are unloaded", lambda: not any(on(api, name) for name in SERVERS))


def cordon(api: Api, server: str, **body: Any) -> dict[str, Any]:
    return api.ok(api.http.put(f"/v1/servers/{server}/cordon", json=body))


def server_of(api: Api, name: str) -> dict[str, Any]:
    return api.ok(api.http.get(f"/v1/servers/{name}"))


def on(api: Api, name: str) -> set[str]:
    """The models that Triton itself has ready on a server, as last observed."""
    return {one["model"] for one in server_of(api, name)["models"] if one["state"] == "READY"}


def places(api: Api, model: str) -> list[str]:
    placement = api.ok(api.http.get(f"/v1/deployments/{model}/explanation"))["placement"]
    return [one["server"] for one in placement["assignments"]]


def routed(api: Api, model: str) -> set[str]:
    """The servers that new requests for a model are sent to."""
    routes = api.ok(api.http.get("/v1/gateway"))["models"]
    return {server for route in routes if route["model"] == model for server in route["servers"]}


def drained(api: Api, name: str) -> bool:
    found = server_of(api, name)["cordon"]
    return bool(found and found["drain"]) and found["remaining"] == [] and on(api, name) == set()


def events(api: Api, subject: str) -> list[str]:
    return [event.reason for event in api.plane.reconciler.events() if event.subject == subject]


def tritonctl(api: Api, *arguments: str) -> Result:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITONCTL_", "CONTROLPLANE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", "--url", api.url, *arguments],
        capture_output=True, text=True, timeout=120, env=kept, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def test_cordoned_server_keeps_its_models_and_takes_no_new_ones(api: Api) -> None:
    assert api.deploy("bound:1", node_selector={"name": "a"})["state"] == "succeeded"
    made = tritonctl(api, "cordon", "a", "--reason", "new driver")
    assert (made.code, made.out) == (0, "a is cordoned: it takes no new replicas\n")
    until("it is cordoned", lambda: server_of(api, "a")["cordon"])
    assert server_of(api, "a")["cordon"]["reason"] == "new driver"
    assert api.deploy("net:1", min_replicas=1)["state"] == "succeeded"
    assert places(api, "net") == ["b"]
    assert places(api, "bound") == ["a"], "replicas that are there stay"
    assert api.deploy("net:1", min_replicas=2)["state"] == "succeeded", "one replica is less than desired, but ready"
    why = api.ok(api.http.get("/v1/deployments/net/explanation"))["placement"]["unplaced"]
    assert why == "2 replicas need different servers, and only 1 can run it (a: it is cordoned: new driver)"
    assert "Ready, cordoned" in tritonctl(api, "servers").out
    assert 'tritonctl_server_cordoned{server="a"} 1.0' in api.http.get("/metrics").text
    assert tritonctl(api, "uncordon", "a").code == 0
    until("both replicas", lambda: places(api, "net") == ["a", "b"] or places(api, "net") == ["b", "a"])
    records = api.ok(api.http.get("/v1/audit"))["items"]
    assert [(one["actor"], one["reason"]) for one in records if one["kind"] == "server"][-2:] == [
        (records[-1]["actor"], "cordon server a: new driver"),
        (records[-1]["actor"], "uncordon server a"),
    ]


def test_drain_names_what_no_other_server_can_have_and_force_unloads_it(api: Api) -> None:
    assert api.deploy("bound:1", node_selector={"name": "a"})["state"] == "succeeded"
    assert api.deploy("net:1", min_replicas=2)["state"] == "succeeded"
    plan = tritonctl(api, "drain", "a", "--dry-run", "-o", "json")
    assert plan.code == 0, plan
    found = json.loads(plan.out)
    no_server = "no suitable server takes new replicas (a: it is being drained)"
    assert found["stays"] == [
        {"model": "bound", "why": no_server},
        {"model": "net", "why": "2 replicas need different servers, and only 1 can run it (a: it is being drained)"},
    ]
    assert server_of(api, "a")["cordon"] is None, "a dry run changes nothing"

    stuck = tritonctl(api, "drain", "a", "--timeout", "60")
    assert stuck.code == 7, stuck
    assert f"2 models have no place on another server and stay on a: bound: {no_server}" in stuck.err
    assert "tritonctl drain a --force" in stuck.err
    assert on(api, "a") == {"bound", "net"}, "nothing is unloaded without force"
    assert server_of(api, "a")["cordon"]["remaining"] == ["bound", "net"]

    forced = tritonctl(api, "drain", "a", "--force", "--timeout", "60")
    assert forced.code == 0, forced
    assert "a is drained" in forced.out
    until("Triton has nothing left", lambda: on(api, "a") == set())
    status = api.ok(api.http.get("/v1/deployments/bound"))["status"]
    assert (status["phase"], status["message"]) == ("Failed", no_server)
    assert api.infer("net", [1.0, 1.0]) == ([1.0, 1.0], 1)
    assert tritonctl(api, "uncordon", "a").code == 0
    until("it comes back", lambda: on(api, "a") == {"bound", "net"})


def test_drain_waits_for_open_sequences_and_its_timeout_only_ends_the_wait(api: Api) -> None:
    assert api.deploy("sums:1")["state"] == "succeeded"
    (old,) = places(api, "sums")
    (new,) = set(SERVERS) - {old}

    def step(client: Any, sequence: int, *, start: bool = False, end: bool = False) -> float:
        tensor = triton_grpc.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([1], np.float32))
        answer = client.infer("sums", [tensor], sequence_id=sequence, sequence_start=start, sequence_end=end)
        return float(answer.as_numpy("y")[0])

    with closing(triton_grpc.InferenceServerClient(urls(api)[1])) as client:
        assert step(client, 7, start=True) == 1.0
        late = tritonctl(api, "drain", old, "--timeout", "0")
        assert late.code == 8, late
        assert "the drain continues" in late.err
        until("new sequences go to the other server", lambda: routed(api, "sums") == {new})
        assert step(client, 8, start=True) == 1.0
        assert [step(client, 7), step(client, 8)] == [2.0, 2.0]
        assert "sums" in on(api, old), "an open sequence keeps its replica"
        until("only it remains", lambda: server_of(api, old)["cordon"]["remaining"] == ["sums"])
        assert step(client, 7, end=True) == 3.0
        until("it is unloaded", lambda: drained(api, old))
        assert step(client, 8, end=True) == 3.0
    until("both are reported", lambda: events(api, old)[-2:] == ["Draining", "Drained"])


@pytest.mark.slow
def test_rolling_drain_of_all_servers_loses_no_request(api: Api) -> None:
    assert api.deploy("net:1", mode="pinned")["state"] == "succeeded"
    assert api.deploy("bound:1", mode="on-demand")["state"] == "succeeded"
    with asking([api], "net", "bound") as seen:
        more(seen)
        for name in SERVERS * 2:
            cordon(api, name, drain=True)
            until(f"{name} is drained", lambda name=name: drained(api, name))
            more(seen)
            api.http.delete(f"/v1/servers/{name}/cordon").raise_for_status()
        # A version is switched while its server is being drained.
        (here,) = places(api, "net")
        cordon(api, here, drain=True)
        assert api.deploy("net:2", mode="pinned")["state"] == "succeeded"
        until("it is drained", lambda: drained(api, here))
        more(seen)
    assert failures(seen) == []
    assert all({("net", 1.0), ("net", 2.0), ("bound", 5.0)} == set(found) for found in seen), seen


@pytest.mark.slow
def test_drain_continues_after_the_instance_that_began_it_is_gone(fleet: Fleet, api: Api) -> None:
    """Two instances on the bucket; the drain is requested at the one that does not lead."""
    assert api.deploy("net:1")["state"] == "succeeded"
    (old,) = places(api, "net")
    with serving(fleet.settings("other")) as other:
        cordon(other, old, drain=True)
        until("the leader moves it", lambda: drained(api, old))
        until("both see it", lambda: drained(other, old))
    with serving(fleet.settings("third")) as third:
        until("a new instance knows it", lambda: (server_of(third, old)["cordon"] or {}).get("drain"))
        third.http.delete(f"/v1/servers/{old}/cordon").raise_for_status()
        until("the leader takes it over", lambda: server_of(api, old)["cordon"] is None)


def test_bad_requests_are_refused_with_the_reason(api: Api) -> None:
    found = api.problem(api.http.put("/v1/servers/nowhere/cordon", json={}), 404, "not-found")
    assert found["detail"] == "unknown server 'nowhere'; the servers are: a, b"
    found = api.problem(api.http.get("/v1/servers/nowhere/drain-plan"), 404, "not-found")
    assert found["detail"] == "unknown server 'nowhere'; the servers are: a, b"
    found = api.problem(api.http.delete("/v1/servers/a/cordon"), 404, "not-found")
    assert found["detail"] == "the server 'a' is not cordoned"
    found = api.problem(api.http.put("/v1/servers/a/cordon", json={"force": True}), 422, "invalid-request")
    assert "force needs drain" in found["detail"]
    made = tritonctl(api, "drain", "nowhere")
    assert (made.code, "unknown server 'nowhere'" in made.err) == (3, True), made
