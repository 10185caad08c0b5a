"""Two control planes on one bucket, each with a gateway, before the same Triton; either one may lead.

Clients ask through both gateways all the while, over HTTP and gRPC. No request may fail when a version is switched,
rolled back, rolled out by evidence, or evicted; the one that leads unloads, and the other one's HAProxy has to stop
asking in time.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.settings import GatewaySettings, MemorySettings, StoreSettings, TritonServerSettings, TritonSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import asking, failures, more, until, way

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Api]]:
    """The leader, whose Triton it is, and a follower."""
    folder = tmp_path_factory.mktemp("two-gateways")
    common: dict[str, Any] = {
        "store": StoreSettings(url=f"file://{folder / 'store'}"),
        "gateway": GatewaySettings(enabled=True, max_sampled_requests_per_second=0),
        "memory": MemorySettings(
            budget_bytes={"host": 260 * MIB},
            minimum_residence_seconds=0.3,
            poll_interval_seconds=0.2,
            eviction_policy="lru",
        ),
    }
    with serving(settings_for(folder / "leader", embedded=True, **common)) as leader:
        until("it leads", lambda: leader.plane.reconciler.leading)
        (triton,) = leader.plane.reconciler.servers()
        server = TritonServerSettings(
            name=triton.name,
            grpc_url=triton.grpc_url,
            http_url=triton.http_url,
            metrics_url=triton.metrics_url,
            repository=folder / "leader" / "model_repository",
        )
        elsewhere = {**common, "triton": TritonSettings(servers=(server,), load_timeout_seconds=60)}
        with serving(settings_for(folder / "follower", embedded=False, **elsewhere)) as follower:
            for factor in (1.0, 2.0):
                leader.publish("net", onnx_scale(factor))
            assert leader.deploy("net:1", mode="pinned")["state"] == "succeeded"
            until("both gateways are open", lambda: way(leader, "net") == way(follower, "net") == "direct")
            yield leader, follower


@pytest.mark.triton
def test_switch_and_rollback_lose_no_request_on_either_gateway(planes: tuple[Api, Api]) -> None:
    leader, _ = planes
    with asking(planes, "net") as seen:
        more(seen)
        assert leader.deploy("net:2", mode="pinned", bake_seconds=3600)["state"] == "succeeded"
        more(seen)
        back = leader.ok(leader.http.post("/v1/deployments/net/rollback", json={}), 202)
        assert leader.operation(back["operation_id"])["state"] == "succeeded"
        more(seen)
        assert leader.deploy("net:2", mode="pinned", bake_seconds=0)["state"] == "succeeded"
        more(seen)
        assert leader.deploy("net:1", mode="pinned", bake_seconds=0)["state"] == "succeeded"
        more(seen)
    assert failures(seen) == []
    assert all(found["net", 1.0] and found["net", 2.0] for found in seen), seen


@pytest.mark.triton
def test_evictions_by_leader_lose_no_request_on_either_gateway(planes: tuple[Api, Api]) -> None:
    """Five models where about two fit: each answer evicts another, while both gateways ask."""
    leader, _ = planes
    names = ("one", "two", "three", "four")
    for number, name in enumerate(names):
        leader.publish(name, onnx_scale(number + 3.0))
        leader.deploy(f"{name}:1", mode="on-demand")

    def evictions() -> int:
        return sum(event.reason == "Evicted" for event in leader.plane.reconciler.events())

    with asking(planes, *names) as seen:
        until("a few evictions", lambda: evictions() >= 5, seconds=200)
        more(seen, 1)
    for name in names:
        leader.ok(leader.http.delete(f"/v1/deployments/{name}"), 202)
    assert failures(seen) == []
    assert all(set(found) == {(name, number + 3.0) for number, name in enumerate(names)} for found in seen), seen


def measured(api: Api, gateway: Api | None = None) -> int:
    """Requests that were measured for the rollout: as one gateway counted them, or as the rollout reports for both."""
    if gateway is not None:
        requests = gateway.plane.gateway.stats.requests  # type: ignore[union-attr]
        return sum(count for kind, count in requests.items() if (kind.model, kind.way) == ("net", "canary"))
    found = api.ok(api.http.get("/v1/rollouts/net"))
    return int(found["old"]["requests"] + found["new"]["requests"])


@pytest.mark.triton
def test_both_gateways_draw_same_share_and_leader_has_their_results(planes: tuple[Api, Api]) -> None:
    leader, follower = planes
    strategy = {"kind": "canary", "steps": [{"weight_percent": 20, "seconds": 600}], "error": 1e-12}
    body = {"reference": "net:2", "settings": {"mode": "pinned", "rollout": {**strategy, "latency_tolerance": 100}}}
    with asking(planes, "net") as seen:
        leader.ok(leader.http.put("/v1/deployments/net", json=body), 202)
        until("both split", lambda: way(leader, "net") == way(follower, "net") == "split")
        more(seen, 100)
        for api in planes:
            (route,) = [one for one in api.ok(api.http.get("/v1/gateway"))["models"] if one["model"] == "net"]
            assert route["measured_share"] == 0.4
            assert measured(leader, api) > 0
        # Aborted at the one that does not lead; the other one hears of it by the bucket.
        follower.ok(follower.http.post("/v1/rollouts/net/abort"))
        until("both are whole again", lambda: way(leader, "net") == way(follower, "net") == "direct")
        more(seen)
    assert failures(seen) == []
    assert all(found["net", 2.0] for found in seen), seen


@pytest.mark.triton
def test_leader_adds_measurements_of_both_gateways(planes: tuple[Api, Api]) -> None:
    leader, follower = planes
    before = [measured(leader, api) for api in planes]
    strategy = {"kind": "canary", "steps": [{"weight_percent": 20, "seconds": 600}], "error": 1e-12}
    body = {"reference": "net:2", "settings": {"mode": "pinned", "rollout": {**strategy, "latency_tolerance": 100}}}
    leader.ok(leader.http.put("/v1/deployments/net", json=body), 202)
    until("both split", lambda: way(leader, "net") == way(follower, "net") == "split")
    with asking(planes, "net") as seen:
        more(seen, 100)

    def counts() -> list[int]:
        return [measured(leader, api) - count for api, count in zip(planes, before, strict=True)]

    assert min(counts()) > 0
    until("the leader knows both", lambda: measured(leader) == sum(counts()))
    leader.ok(leader.http.post("/v1/rollouts/net/abort"))
    assert failures(seen) == []
