"""Three hosts with a Triton, an agent and a disk each, an S3 server, and two control planes with a gateway each.

The hosts are network namespaces, the S3 server is Ceph's, and clients ask through both gateways over HTTP and gRPC.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from controlplane.settings import GatewaySettings, PlacementSettings, ReconcilerSettings, TritonSettings
from tests.agent.test_registration import kill_all, routed, servers
from tests.support.agents import KEY
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import asking, failures, more, until
from tests.support.hosts import Host, HostAgent, Way, hosts, missing, way_to
from tests.support.s3server import S3Server

pytestmark = [pytest.mark.triton, pytest.mark.ceph, pytest.mark.slow]
CONTROL_KEY = "a-key-for-model-control"
ALL = {"h1": "Ready", "h2": "Ready", "h3": "Ready"}


@dataclass(frozen=True)
class Fleet:
    """The hosts, their agents, the ways to the store, and the control planes."""

    hosts: dict[str, Host]
    agents: dict[str, HostAgent]
    ways: dict[str, Way]
    planes: tuple[Api, Api]

    @property
    def leader(self) -> Api:
        until("one leads", lambda: any(one.plane.reconciler.leading for one in self.planes), 120)
        return next(one for one in self.planes if one.plane.reconciler.leading)

    def everywhere(self, model: str, *names: str) -> None:
        """Wait until both gateways send requests for a model to these hosts."""
        for plane in self.planes:
            until(f"{model} on {names}", lambda plane=plane: routed(plane, model) == set(names), 120)


@pytest.fixture(scope="module")
def fleet(ceph: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if why := missing():
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    folder, bucket = tmp_path_factory.mktemp("hosts"), ceph.new_bucket()
    port = urlsplit(ceph.endpoint_url).port
    assert port is not None
    with ExitStack() as stack:
        made = {f"h{number}": host for number, host in enumerate(stack.enter_context(hosts(3)), 1)}
        ways = {name: stack.enter_context(way_to(port, host.gateway)) for name, host in made.items()}
        ways |= {name: stack.enter_context(way_to(port, "127.0.0.1")) for name in ("p1", "p2")}
        agents = {name: agent_on(folder, name, host, ceph, bucket, ways[name]) for name, host in made.items()}
        for agent in agents.values():
            stack.callback(end, agent)
            agent.start()
        planes = []
        for name in ("p1", "p2"):
            settings = settings_for(
                folder / name,
                embedded=False,
                store=ceph.settings(bucket, endpoint_url=ways[name].url),
                triton=TritonSettings(
                    discover=True, discover_seconds=0.5, forget_seconds=600, agent_key=SecretStr(KEY),
                    agent_control_key=SecretStr(CONTROL_KEY), load_timeout_seconds=60,
                ),
                reconciler=ReconcilerSettings(interval_seconds=0.5, lease_seconds=6),
                placement=PlacementSettings(server_down_grace_seconds=2.0),
                gateway=GatewaySettings(enabled=True, drain_timeout_seconds=30, request_timeout_seconds=10),
            )  # fmt: skip
            planes.append(stack.enter_context(serving(settings)))
        found = Fleet(made, agents, ways, (planes[0], planes[1]))
        for plane in planes:
            until("all hosts are there", lambda plane=plane: servers(plane) == ALL, 120)
        for factor in (1.0, 2.0):
            planes[0].publish("net", onnx_scale(factor))
        yield found


def end(agent: HostAgent) -> None:
    if agent.process is not None and agent.process.poll() is None:
        kill_all(agent)


def agent_on(folder: Path, name: str, host: Host, s3: S3Server, bucket: str, way: Way) -> HostAgent:
    settings = s3.settings(bucket, endpoint_url=way.url)
    environment = {
        "CONTROLPLANE_STORE__URL": settings.url,
        "CONTROLPLANE_STORE__ENDPOINT_URL": way.url,
        "CONTROLPLANE_STORE__REGION": "us-east-1",
        "CONTROLPLANE_STORE__ACCESS_KEY_ID": s3.access_key_id,
        "CONTROLPLANE_STORE__SECRET_ACCESS_KEY": s3.secret_access_key,
        "CONTROLPLANE_AGENT__TRITON_CONTROL_KEY": CONTROL_KEY,
        "CONTROLPLANE_AGENT__HEARTBEAT_SECONDS": "0.5",
        "CONTROLPLANE_TRITON__HOST": host.address,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return HostAgent(folder / name, ("--embedded", "--register", f"--name={name}"), environment, host=host)


def test_fleet_survives_restarts_partitions_and_a_change_of_the_leader(fleet: Fleet) -> None:
    first, second = fleet.planes
    assert fleet.leader.deploy("net:1", mode="pinned", min_replicas=3)["state"] == "succeeded"
    fleet.everywhere("net", *ALL)

    # A rolling restart of all hosts: no request is lost.
    with asking(fleet.planes, "net") as seen:
        more(seen)
        for name, agent in fleet.agents.items():
            agent.stop()
            fleet.everywhere("net", *(other for other in ALL if other != name))
            agent.start()
            fleet.everywhere("net", *ALL)
            more(seen)
    assert failures(seen) == []

    # A host loses the bucket: it keeps serving, and gets the new version when the bucket is back.
    with asking(fleet.planes, "net") as seen:
        fleet.ways["h1"].close()
        more(seen, 3)
        body = {"reference": "net:2", "settings": {"mode": "pinned", "min_replicas": 3}}
        fleet.leader.ok(fleet.leader.http.put("/v1/deployments/net", json=body), 202)
        until("the others have it", lambda: versions(fleet.leader, "net") == {"h1": 1, "h2": 2, "h3": 2})
        assert servers(fleet.leader) == ALL, "its Triton answers, so the server stays"
        fleet.ways["h1"].open()
        until("it has it too", lambda: set(versions(fleet.leader, "net").values()) == {2}, 120)
        fleet.everywhere("net", *ALL)
        more(seen)
    assert failures(seen) == []
    assert all(set(found) == {("net", 1.0), ("net", 2.0)} for found in seen), seen

    # A wire is cut: what is in flight there is lost, and nothing else. Then the wire is whole again.
    with asking(fleet.planes, "net") as seen:
        more(seen)
        fleet.hosts["h2"].cut()
        fleet.everywhere("net", "h1", "h3")
        more(seen)
        fleet.hosts["h2"].restore()
        fleet.everywhere("net", *ALL)
        more(seen)
    lost = sum(sum(found[outcome] for outcome in found if isinstance(outcome[1], str)) for found in seen)
    assert lost <= 4, f"{failures(seen)}: each of the four clients has one request in flight"

    # The leader loses the bucket: the other one takes over, and its gateway loses nothing.
    leader, other = fleet.leader, second if fleet.leader is first else first
    with asking([other], "net") as seen:
        fleet.ways["p1" if leader is first else "p2"].close()
        until("the other one leads", lambda: other.plane.reconciler.leading, 120)
        assert other.deploy("net:1", mode="pinned", min_replicas=3)["state"] == "succeeded"
        more(seen)
        fleet.ways["p1" if leader is first else "p2"].open()
        fleet.everywhere("net", *ALL)
        more(seen)
    assert failures(seen) == []
    until("it follows", lambda: versions(leader, "net") == dict.fromkeys(ALL, 1), 120)


def versions(api: Api, model: str) -> dict[str, Any]:
    """The active version on each server."""
    status = api.ok(api.http.get(f"/v1/deployments/{model}"))["status"]
    return {one["server"]: one["serving_version"] for one in status["servers"]}
