"""Models that are not loaded: requests wait, are answered, refused within limits, and given up with their client."""

import asyncio
import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from controlplane.errors import TooManyWaitingError
from controlplane.gateway.activator.request_queue import QueueLimits, RequestQueue
from controlplane.settings import GatewaySettings, MemorySettings, ReconcilerSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import grpc_client, http_client, ones, triton_pid, until, urls, way

pytestmark = pytest.mark.triton
MIB = 1 << 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A gateway with room for few waiting requests, before a Triton with room for few models."""
    settings = settings_for(
        tmp_path_factory.mktemp("small"),
        embedded=True,
        gateway=GatewaySettings(
            queue_max_requests_per_model=3, queue_max_bytes_per_model=4 * MIB, load_timeout_seconds=60
        ),
        memory=MemorySettings(minimum_residence_seconds=0.2, poll_interval_seconds=0.2),
        # Who is stopped by a test for a while is not helped meanwhile.
        reconciler=ReconcilerSettings(interval_seconds=0.3, lease_seconds=15, unresponsive_after_seconds=300),
    )
    with serving(settings) as api:
        for name, factor in (("one", 2.0), ("two", 3.0), ("three", 4.0)):
            api.publish(name, onnx_scale(factor))
            api.deploy(f"{name}:1", mode="on-demand", max_batch_size=0)
        yield api


def unload(api: Api, model: str) -> None:
    """Make a model leave: deploy it with no keep-alive, then as it was."""
    api.ok(api.http.put(f"/v1/deployments/{model}", json=_wanted(model, keep_alive_seconds=0.0)), 202)
    until(f"{model} unloaded", lambda: _phase(api, model) == "Unloaded")
    api.ok(api.http.put(f"/v1/deployments/{model}", json=_wanted(model)), 202)
    until(f"{model} settled", lambda: _phase(api, model) == "Unloaded")


def _wanted(model: str, **settings: Any) -> dict[str, Any]:
    return {"reference": f"{model}:1", "settings": {"mode": "on-demand", "max_batch_size": 0, **settings}}


def _phase(api: Api, model: str) -> str:
    status = api.plane.reconciler.status(model)
    return status.phase.value if status else ""


def held(api: Api, model: str) -> int:
    """Requests that wait for a model."""
    gateway = api.plane.gateway
    assert gateway is not None
    return gateway.activator.room.requests[model]


@contextlib.contextmanager
def frozen(api: Api) -> Iterator[None]:
    """Keep loads from coming to their end: Triton's process is stopped meanwhile."""
    pid = triton_pid(api)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("kind", [triton_http, triton_grpc])
def test_first_request_loads_model_and_next_uses_direct_route(small: Api, kind: Any) -> None:
    unload(small, "one")
    assert way(small, "one") == "closed"
    with kind.InferenceServerClient(urls(small)[kind is triton_grpc]) as client:
        assert client.is_model_ready("one")  # it would be answered, and to ask that loads nothing
        assert way(small, "one") == "closed"
        assert client.infer("one", ones(kind)).as_numpy("y").tolist() == [[2.0, 2.0]]
        until("the direct way", lambda: way(small, "one") == "direct")
        before = small.plane.gateway.stats.requests.total()  # type: ignore[union-attr]
        assert client.infer("one", ones(kind)).as_numpy("y").tolist() == [[2.0, 2.0]]
        assert small.plane.gateway.stats.requests.total() == before  # type: ignore[union-attr]


def test_request_is_answered_with_keep_alive_of_0(small: Api) -> None:
    for _ in range(2):
        unload(small, "one")
        small.ok(small.http.put("/v1/deployments/one", json=_wanted("one", keep_alive_seconds=0.0)), 202)
        with grpc_client(small) as client:
            answer = client.infer("one", ones(), client_timeout=60)
        assert answer.as_numpy("y").tolist() == [[2.0, 2.0]]


def test_waiting_request_is_answered_before_qualification(small: Api) -> None:
    small.publish("fresh", onnx_scale(5.0))
    small.deploy("fresh:1", mode="on-demand", max_batch_size=0)
    with grpc_client(small) as client:
        assert client.infer("fresh", ones()).as_numpy("y").tolist() == [[5.0, 5.0]]
    seen = small.ok(small.http.get("/v1/deployments/fresh"))["status"]["servers"][0]["seconds"]
    until("the report", lambda: small.ok(small.http.get("/v1/models/fresh/versions/1/reports"))["items"])
    after = small.ok(small.http.get("/v1/deployments/fresh"))["status"]["servers"][0]["seconds"]
    assert "prove" in seen
    assert after["examine"] > seen.get("examine", 0.0)


def test_metadata_request_loads_model(small: Api) -> None:
    unload(small, "two")
    with grpc_client(small) as client:
        assert client.get_model_metadata("two").inputs[0].name == "x"
    unload(small, "two")
    with http_client(small) as client:
        assert client.get_model_config("two")["name"] == "two"


def test_stream_continues_across_eviction(small: Api) -> None:
    unload(small, "two")
    answers: list[Any] = []
    with grpc_client(small) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer("two", ones())
        until("the first answer", lambda: len(answers) == 1)
        unload(small, "two")  # the stream is open all the time
        client.async_stream_infer("two", ones())
        client.async_stream_infer("three", ones())
        until("the other answers", lambda: len(answers) == 3)
        client.stop_stream()
    assert [answer.as_numpy("y")[0, 0] for answer in answers[:1]] == [3.0]
    assert sorted(answer.as_numpy("y")[0, 0] for answer in answers[1:]) == [3.0, 4.0]


async def test_concurrent_requests_share_one_load(small: Api) -> None:
    await asyncio.to_thread(unload, small, "three")
    loads = [event for event in small.plane.reconciler.events() if event.reason == "Ready" and event.subject == "three"]
    async with triton_grpc_aio.InferenceServerClient(urls(small)[1]) as client:
        answers = await asyncio.gather(*(client.infer("three", ones()) for _ in range(3)))
    assert [answer.as_numpy("y")[0, 0] for answer in answers] == [4.0] * 3
    after = [event for event in small.plane.reconciler.events() if event.reason == "Ready" and event.subject == "three"]
    assert len(after) == len(loads) + 1


def test_requests_above_queue_limit_are_refused(small: Api) -> None:
    unload(small, "one")
    outcomes: Counter[str] = Counter()
    with frozen(small):
        threads = [threading.Thread(target=_ask, args=(small, "one", outcomes), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        until("three wait", lambda: held(small, "one") == 3)
        refused = httpx.post(f"http://{urls(small)[0]}/v2/models/one/infer", content=b"{}", timeout=10)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "the request queue is full (limit: 3 requests for this model)" in refused.json()["error"]
        with grpc.insecure_channel(urls(small)[1]) as channel:
            method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as error:
                method(service_pb2.ModelInferRequest(model_name="one").SerializeToString(), timeout=10)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert ("retry-after", "1") in error.value.trailing_metadata()
    for thread in threads:
        thread.join(60)
    assert outcomes == {"answered": 3}


def _ask(api: Api, model: str, outcomes: Counter[str]) -> None:
    with grpc_client(api) as client:
        try:
            client.infer(model, ones())
            outcomes["answered"] += 1
        except InferenceServerException as error:
            outcomes[str(error)] += 1


def test_bytes_above_queue_limit_are_refused(small: Api) -> None:
    unload(small, "one")
    x = np.zeros((1_000_000, 2), np.float32)  # 8 MB
    with http_client(small) as client:
        tensor = triton_http.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        with pytest.raises(InferenceServerException, match="limit: 4 MiB of requests for this model"):
            client.infer("one", [tensor])
        assert _phase(small, "one") == "Unloaded"
        assert client.infer("one", ones(triton_http)).as_numpy("y")[0, 0] == 2.0
        until("the direct way", lambda: way(small, "one") == "direct")
        assert client.infer("one", [tensor]).as_numpy("y").shape == x.shape  # nothing is held of what need not wait


def test_request_of_disconnected_client_leaves_queue(small: Api) -> None:
    unload(small, "two")
    with frozen(small):
        with httpx.Client(timeout=httpx.Timeout(10, read=0.5)) as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"http://{urls(small)[0]}/v2/models/two/infer", content=b"{}")
        until("the HTTP client is forgotten", lambda: held(small, "two") == 0)
        with grpc_client(small) as client, pytest.raises(InferenceServerException, match="Deadline"):
            client.infer("two", ones(), client_timeout=0.5)
        until("the gRPC client is forgotten", lambda: held(small, "two") == 0)
    until("the load's end", lambda: _phase(small, "two") in {"Ready", "Unloaded"})


def test_failed_load_is_answered_with_its_reason(small: Api) -> None:
    small.publish("broken", onnx_scale(2.0))
    small.deploy(
        "broken:1",
        mode="on-demand",
        parameters={"intra_op_thread_count": "many"},  # known to Triton's backend alone
    )
    reason = "must be a number of threads"
    with http_client(small) as client, pytest.raises(InferenceServerException, match=reason) as error:
        client.infer("broken", ones(triton_http))
    assert error.value.status() == "503"
    with grpc_client(small) as client:
        with pytest.raises(InferenceServerException, match=reason) as refused:
            client.infer("broken", ones())
        assert refused.value.status() == "StatusCode.UNAVAILABLE"
        answers: list[Any] = []
        client.start_stream(lambda result, error: answers.append(error or result))
        client.async_stream_infer("broken", ones(), request_id="11")
        client.async_stream_infer("one", ones())
        until("two answers", lambda: len(answers) == 2)
        client.stop_stream()
    assert any(reason in str(answer) for answer in answers)
    assert any(not isinstance(answer, Exception) for answer in answers)


def test_request_does_not_load_model_that_was_unloaded(small: Api) -> None:
    small.publish("resting", onnx_scale(2.0))
    small.deploy("resting:1")
    small.ok(small.http.post("/v1/deployments/resting/unload", json={}), 202)
    until("resting unloaded", lambda: _phase(small, "resting") == "Unloaded")
    with grpc_client(small) as client:
        assert not client.is_model_ready("resting")
        with pytest.raises(InferenceServerException, match="says unloaded"):
            client.infer("resting", ones())


@pytest.mark.long
def test_evictions_under_load_lose_no_request(tmp_path: Path) -> None:
    """Five models where about two fit, and clients that never stop: every request is answered, over both protocols."""
    settings = settings_for(
        tmp_path,
        embedded=True,
        memory=MemorySettings(
            budget_bytes={"host": 260 * MIB},
            minimum_residence_seconds=0.3,
            poll_interval_seconds=0.2,
            eviction_policy="lru",
        ),
    )
    names = [f"m{number}" for number in range(5)]
    with serving(settings) as api:
        for number, name in enumerate(names):
            api.publish(name, onnx_scale(number + 1.0))
            api.deploy(f"{name}:1", mode="on-demand")
        outcomes: Counter[str] = Counter()
        stop = threading.Event()
        kinds = (triton_http, triton_grpc, triton_http, triton_grpc)
        threads = [
            threading.Thread(target=_hammer, args=(api, kind, names[number:] + names[:number], stop, outcomes))
            for number, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()

        def evictions() -> int:
            return sum(event.reason == "Evicted" for event in api.plane.reconciler.events())

        try:
            until("a dozen evictions", lambda: evictions() >= 12, seconds=120)
        finally:
            stop.set()
            for thread in threads:
                thread.join(120)
        assert set(outcomes) == {"answered"}, outcomes
        assert outcomes["answered"] > 100


def _hammer(api: Api, kind: Any, names: list[str], stop: threading.Event, outcomes: Counter[str]) -> None:
    patience = {} if kind is triton_grpc else {"network_timeout": 120.0}
    with kind.InferenceServerClient(urls(api)[kind is triton_grpc], **patience) as client:
        while not stop.is_set():
            for name in names:
                for _ in range(40):
                    try:
                        (value,) = set(client.infer(name, ones(kind)).as_numpy("y").flatten().tolist())
                        right = value == float(name[1:]) + 1.0
                        outcomes["answered" if right else f"wrong: {value} of {name}"] += 1
                    except InferenceServerException as error:
                        outcomes[f"{kind.__name__} {name}: {error}"] += 1
                if stop.is_set():
                    return


def test_a_switch_under_load_loses_no_request(small: Api) -> None:
    small.publish("switched", onnx_scale(1.0))
    small.publish("switched", onnx_scale(2.0))
    small.deploy("switched:1", bake_seconds=0)
    outcomes: Counter[Any] = Counter()
    stop = threading.Event()

    def run(kind: Any) -> None:
        with kind.InferenceServerClient(urls(small)[kind is triton_grpc]) as client:
            while not stop.is_set():
                try:
                    outcomes[float(client.infer("switched", ones(kind)).as_numpy("y")[0, 0])] += 1
                except InferenceServerException as error:
                    outcomes[str(error)] += 1

    threads = [threading.Thread(target=run, args=(kind,)) for kind in (triton_http, triton_grpc)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 1, 2):
            assert small.deploy(f"switched:{version}", bake_seconds=0)["state"] == "succeeded"
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert set(outcomes) == {1.0, 2.0}, outcomes
    fast = [
        line
        for line in small.http.get("/metrics").text.splitlines()
        if line.startswith("tritonctl_gateway_model_requests_total{")
        and 'model="switched"' in line
        and 'way="direct"' in line
    ]
    for version in (1, 2):
        for protocol in ("http", "grpc"):
            told = [line for line in fast if f'version="{version}"' in line and f'protocol="{protocol}"' in line]
            assert sum(float(line.rpartition(" ")[2]) for line in told) > 0, fast


def test_queue_limits_count_only_waiting_requests() -> None:
    room = RequestQueue(QueueLimits(requests_per_model=2, requests=3, bytes_per_model=100, bytes=150))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(room.place("a", 60))
        with pytest.raises(TooManyWaitingError):
            room.hold(first, 41)
        stack.enter_context(room.place("a", 40))
        with pytest.raises(TooManyWaitingError), room.place("a"):
            pass
        stack.enter_context(room.place("b", 50))
        with pytest.raises(TooManyWaitingError), room.place("c"):
            pass
        assert (room.requests.total(), room.held.total()) == (3, 150)
    assert not room.requests
    assert not room.held
