"""Figures of a real Triton under real traffic, next to what the clients counted."""

import concurrent.futures
import statistics
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.api import Api, onnx_scale

pytestmark = pytest.mark.triton


def metrics(api: Api, model: str, **params: Any) -> dict[str, Any]:
    return api.ok(api.http.get(f"/v1/deployments/{model}/metrics", params=params))


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)
    return found


def triton_url(api: Api) -> str:
    (server,) = api.ok(api.http.get("/v1/servers"))["items"]
    return str(server["http_url"])


def ask(http: httpx.Client, model: str, rows: int) -> float:
    """Ask Triton itself; returns the seconds it took."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": [1.0] * rows * 2}]}
    began = time.perf_counter()
    http.post(f"/v2/models/{model}/infer", json=body).raise_for_status()
    return time.perf_counter() - began


def test_metrics_equal_counts_of_clients(watched: Api) -> None:
    # The proofs before and during the test are requests too, which Triton counts like all others.
    before = metrics(watched, "net")["total"]
    seconds: list[float] = []

    def client(number: int) -> None:
        with httpx.Client(base_url=triton_url(watched), timeout=30) as http:
            seconds.extend(ask(http, "net", rows=number + 1) for _ in range(60))

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(client, range(3)))

    def done() -> dict[str, Any] | None:
        found = metrics(watched, "net")
        counted = {key: found["total"][key] - before[key] for key in ("requests", "inferences")}
        # A proof may be counted before the last requests of the clients.
        return found if counted["requests"] >= 180 and counted["inferences"] >= 360 else None

    found = until(done)
    total = found["total"]
    proofs = total["requests"] - before["requests"] - 180
    assert 0 <= proofs < 90  # by the clock: the slower the machine, the more of them
    assert 60 * (1 + 2 + 3) <= total["inferences"] - before["inferences"] <= 360 + 10 * proofs + 20
    assert total["failures"] == {}
    assert total["failure_share"] == 0
    assert total["request_rate"] == pytest.approx(total["requests"] / total["covered_seconds"])
    latency = total["latency"]
    assert latency["source"] == "summary"
    assert 0 < latency["p50_seconds"] <= latency["p90_seconds"] <= latency["p99_seconds"]
    # Inside Triton it is never slower than for the slowest client, and about as fast as for the others.
    assert latency["p50_seconds"] < max(seconds)
    assert total["request_seconds"] < statistics.mean(seconds) * 2
    assert 0 < total["queue_seconds"] < total["request_seconds"]
    assert 0 < total["compute_seconds"] < total["request_seconds"]
    assert total["batch_size"] == pytest.approx(total["inferences"] / total["executions"])
    assert total["pending_max"] >= total["pending"] == 0
    assert total["cpu_cores"] > 0

    (version,) = found["versions"]
    assert (version["version"], version["server"]) == (1, "embedded")
    assert version["requests"] == total["requests"]
    parts = sum(point["request_rate"] for point in found["points"]) * found["window_seconds"] / len(found["points"])
    assert parts == pytest.approx(total["requests"], rel=0.05)
    (server,) = found["servers"]
    assert server["error"] == ""
    assert 0 <= server["cpu_utilisation"] <= 1


def test_waiting_requests_are_shown(watched: Api) -> None:
    """Triton's batcher holds a request back for half a second: long enough to be looked at."""
    watched.publish("slow", onnx_scale(5))
    batching = {"max_queue_delay_microseconds": 500_000, "preferred_batch_size": [8]}
    watched.deploy("slow", max_batch_size=8, dynamic_batching=batching, bake_seconds=0)

    def ask_one(_: int) -> None:
        with httpx.Client(base_url=triton_url(watched), timeout=30) as http:
            ask(http, "slow", rows=1)

    def asked() -> bool:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(ask_one, range(4)))
        total = metrics(watched, "slow")["total"]
        return bool(total["pending_max"] >= 2 and total["batch_size"] > 1.2 and total["queue_seconds"] > 0.1)

    until(asked)


def test_metrics_survive_a_reload(watched: Api) -> None:
    def asked(times: int, since: float) -> Any:
        for _ in range(times):
            ask(http, "net", rows=1)
        return until(lambda: (found := metrics(watched, "net")["total"])["requests"] >= since + times and found)

    with httpx.Client(base_url=triton_url(watched), timeout=30) as http:
        before = asked(100, metrics(watched, "net")["total"]["requests"])
        watched.operation(watched.ok(watched.http.post("/v1/deployments/net/unload"), 202)["operation_id"])
        loaded = watched.ok(watched.http.post("/v1/deployments/net/load", params={"wait": 60}))
        assert loaded["status"]["phase"] == "Ready"
        after = asked(100, before["requests"])
    # What proved it after the load comes in between; what was counted before is not counted once more.
    assert after["requests"] < before["requests"] + 100 + 90


def test_each_version_has_its_own_metrics(watched: Api) -> None:
    watched.publish("two", onnx_scale(2))
    watched.publish("two", onnx_scale(3))
    watched.deploy("two:1", bake_seconds=60)

    def counted() -> dict[int, float]:
        return {one["version"]: one["requests"] for one in metrics(watched, "two")["versions"]}

    def after(version: int, least: float) -> dict[int, float]:
        served: dict[int, float] = until(lambda: (found := counted()).get(version, 0) >= least and found)
        return served

    with httpx.Client(base_url=triton_url(watched), timeout=30) as http:
        before = counted().get(1, 0)
        for _ in range(15):
            ask(http, "two", rows=1)
        first = after(1, before + 15)
        assert 2 not in first
        # Before it takes over, a new version is timed next to the old one: both are asked, by the control plane.
        watched.deploy("two:2", bake_seconds=60)
        begun = after(2, 1)
        for _ in range(200):
            ask(http, "two", rows=1)
        ended = after(2, begun[2] + 200)
    assert ended[1] - begun[1] < 150, "what version 2 was asked is counted for version 1"


def test_invalid_queries_are_refused(watched: Api) -> None:
    url = "/v1/deployments/net/metrics"
    for window in ("", "soon", "-5m"):
        watched.problem(watched.http.get(url, params={"window": window}), 422, "invalid-input")
    problem = watched.problem(watched.http.get(url, params={"window": "7h"}), 422, "invalid-input")
    assert "6h" in problem["detail"]
    watched.problem(watched.http.get(url, params={"points": 0}), 422, "invalid-request")
    watched.problem(watched.http.get("/v1/deployments/unknown/metrics"), 404, "not-found")
    assert len(metrics(watched, "net", window="6h", points=7)["points"]) <= 7
