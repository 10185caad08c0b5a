"""Servers that come and go: agents with Tritons of their own register, leave, die and return under requests."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from controlplane.settings import (
    GatewaySettings,
    PlacementSettings,
    ReconcilerSettings,
    StoreSettings,
    TritonSettings,
)
from tests.support.agents import KEY, Agent
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import asking, failures, more, until, way

pytestmark = [pytest.mark.triton, pytest.mark.slow]
CONTROL_KEY = "a-key-for-model-control"


def agent(folder: Path, name: str, **environment: str) -> Agent:
    """An agent with a Triton of its own, not started."""
    settings = {
        "CONTROLPLANE_STORE__URL": f"file://{folder / 'store'}",
        "CONTROLPLANE_AGENT__TRITON_CONTROL_KEY": CONTROL_KEY,
        "CONTROLPLANE_AGENT__HEARTBEAT_SECONDS": "0.5",
        "CONTROLPLANE_AGENT__DRAIN_SECONDS": "60",
        **environment,
    }
    return Agent(folder / name, ("--embedded", "--register", f"--name={name}"), settings)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A control plane with a gateway and without a server in its settings."""
    settings = settings_for(
        tmp_path / "plane",
        embedded=False,
        store=StoreSettings(url=f"file://{tmp_path / 'store'}"),
        triton=TritonSettings(
            discover=True,
            discover_seconds=0.5,
            forget_seconds=3.0,
            agent_key=SecretStr(KEY),
            agent_control_key=SecretStr(CONTROL_KEY),
            load_timeout_seconds=60,
        ),
        reconciler=ReconcilerSettings(interval_seconds=0.3, lease_seconds=15),
        placement=PlacementSettings(server_down_grace_seconds=1.0),
        gateway=GatewaySettings(enabled=True, drain_timeout_seconds=60),
    )
    with serving(settings) as running:
        yield running


@contextlib.contextmanager
def started(*agents: Agent) -> Iterator[None]:
    try:
        for one in agents:
            one.start()
        yield
    finally:
        for one in agents:
            if one.process is not None and one.process.poll() is None:
                kill_all(one)  # an agent whose models have no other server waits for them


def servers(api: Api) -> dict[str, str]:
    """The state of each server, by name."""
    return {one["name"]: one["state"] for one in api.ok(api.http.get("/v1/servers"))["items"]}


def routed(api: Api, model: str) -> set[str]:
    for route in api.ok(api.http.get("/v1/gateway"))["models"]:
        if route["model"] == model:
            return set(route["servers"])
    return set()


def refusals(api: Api) -> list[str]:
    found = api.plane.reconciler.events()
    return [f"{event.subject}: {event.message}" for event in found if event.reason == "AgentRefused"]


def kill_all(one: Agent) -> None:
    """Kill an agent with its Triton, as a machine that loses its power does."""
    assert one.process is not None
    for process in (*psutil.Process(one.process.pid).children(recursive=True), psutil.Process(one.process.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
    one.process.wait(30)


def test_servers_join_leave_and_return_under_requests(tmp_path: Path, api: Api) -> None:
    assert servers(api) == {}
    for factor in (1.0, 2.0):
        api.publish("net", onnx_scale(factor))
    one, two = agent(tmp_path, "one"), agent(tmp_path, "two")
    with started(one, two):
        until("both servers are there", lambda: servers(api) == {"one": "Ready", "two": "Ready"})
        assert api.deploy("net:1", min_replicas=2, mode="pinned")["state"] == "succeeded"
        until("both answer", lambda: routed(api, "net") == {"one", "two"})
        assert way(api, "net") == "direct", "HAProxy has spare servers for those that join"
        with asking([api], "net") as seen:
            more(seen)
            # One leaves: its models are on the other server before it ends.
            one.stop()
            until("it left", lambda: servers(api) == {"two": "Ready"})
            assert routed(api, "net") == {"two"}
            more(seen)
            # It returns on other ports, and gets its replica again.
            one.start()
            until("it is there again", lambda: servers(api) == {"two": "Ready", "one": "Ready"})
            until("both answer", lambda: routed(api, "net") == {"one", "two"})
            more(seen)
            assert api.deploy("net:2", min_replicas=2, mode="pinned")["state"] == "succeeded"
            more(seen)
        assert failures(seen) == []
        assert all({("net", 1.0), ("net", 2.0)} == set(found) for found in seen), seen

        # A machine dies. Requests go to the other one, and in the end it is forgotten.
        kill_all(one)
        until("requests go to the other one", lambda: routed(api, "net") == {"two"})
        assert api.infer("net", [1.0, 1.0]) == ([2.0, 2.0], 2)
        until("it is forgotten", lambda: servers(api) == {"two": "Ready"})
        one.start()
        until("both answer", lambda: routed(api, "net") == {"one", "two"})


def test_agent_with_a_taken_name_or_another_key_gets_no_models(tmp_path: Path, api: Api) -> None:
    one = agent(tmp_path, "one")
    stranger = agent(tmp_path, "stranger", CONTROLPLANE_AGENT__KEY="another-control-key")
    with started(one, stranger):
        until("it is there", lambda: servers(api) == {"one": "Ready"})
        until("the other is refused", lambda: refusals(api))
        assert refusals(api) == ["stranger: the registration is signed with another key than triton.agent_key"]
        second = agent(tmp_path, "second")
        made = subprocess.run(
            second.command("--name=one"), capture_output=True, text=True, timeout=120, env=second.settings, check=False
        )
        assert made.returncode == 5, made
        assert f"another agent that is alive is registered as one at {one.url}" in made.stderr
        assert servers(api) == {"one": "Ready"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--register", "--triton-grpc=localhost:8001", "--name=a/b"), "the agent cannot register as 'a/b'"),
        (("--register",), "the agent cannot register without the address of its Triton"),
        (("--register", "--triton-grpc=x:1", "--host=0.0.0.0"), "set --advertise-host"),
    ],
)
def test_registration_that_cannot_work_is_refused_at_the_start(
    tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    one = Agent(tmp_path / "agent", options)
    made: Any = subprocess.run(
        one.command(), capture_output=True, text=True, timeout=120, env=one.settings, check=False
    )
    assert made.returncode == 6, made
    assert expected in made.stderr
