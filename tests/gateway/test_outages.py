"""A server that lost its models or is unreachable: clients get an answer at once that allows a retry."""

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from controlplane.domain.rollout.strategy import StrategyKind
from controlplane.errors import ModelUnavailableError
from controlplane.gateway.lost import LOST
from controlplane.gateway.rollout.grpc import GrpcRequest, ask_grpc
from controlplane.gateway.rollout.http import HttpRequest, ask_http
from controlplane.settings import GatewaySettings, ReconcilerSettings, TritonServerSettings, TritonSettings
from tests.gateway.test_splitting import split
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import grpc_client, http_client, ones, until, urls, way
from tests.support.hostile import NAME, tensors, text
from tests.support.triton import RunningTriton, running_triton

pytestmark = pytest.mark.triton

INFER = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 1.0]}]}


@pytest.fixture
def external(tmp_path: Path) -> Iterator[RunningTriton]:
    """A Triton that the control plane does not supervise."""
    with running_triton(tmp_path / "triton") as server:
        yield server


def settings(tmp_path: Path, external: RunningTriton, *, interval: float, outage: float) -> Iterator[Api]:
    server = external.server
    one = TritonServerSettings(
        name="one",
        grpc_url=server.grpc_url,
        http_url=server.http_url,
        metrics_url=server.metrics_url,
        repository=server.repository,
    )
    with serving(
        settings_for(
            tmp_path / "plane",
            embedded=False,
            triton=TritonSettings(servers=(one,), request_timeout_seconds=2.0),
            gateway=GatewaySettings(enabled=True, outage_timeout_seconds=outage),
            reconciler=ReconcilerSettings(interval_seconds=interval, lease_seconds=15, probe_interval_seconds=3600),
        )
    ) as api:
        api.publish("net", onnx_scale(2.0))
        assert api.deploy("net:1")["state"] == "succeeded"
        until("the direct way", lambda: way(api, "net") == "direct")
        yield api


@pytest.fixture
def unobserved(tmp_path: Path, external: RunningTriton) -> Iterator[Api]:
    """A control plane that observes its server once a minute."""
    yield from settings(tmp_path, external, interval=60.0, outage=30.0)


@pytest.fixture
def impatient(tmp_path: Path, external: RunningTriton) -> Iterator[Api]:
    """A control plane whose requests wait one second for an unreachable server."""
    yield from settings(tmp_path, external, interval=0.3, outage=1.0)


async def test_model_that_triton_lost_is_unavailable_not_unknown(unobserved: Api, external: RunningTriton) -> None:
    base = f"http://{urls(unobserved)[0]}/v2/models"
    # Other things that Triton does not find are the client's mistake, and no reason to try again.
    region = {"shared_memory_region": "nothere", "shared_memory_byte_size": 8}
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": region}]}
    assert "region" in httpx.post(f"{base}/net/infer", json=body).json()["error"]
    client = external.client()
    await client.unload("net")
    await client.close()
    for path in ("net", "%6eet"):  # directly from HAProxy, and through the activator, which reads what is escaped
        answer = httpx.post(f"{base}/{path}/infer", json=INFER)
        assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, {"error": LOST}, "1")
    with grpc_client(unobserved) as client:
        for compression in (None, "gzip"):
            with pytest.raises(InferenceServerException, match=LOST) as caught:
                client.infer("net", ones(triton_grpc), compression_algorithm=compression)
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
        # A version that the client names may be unknown for good.
        assert httpx.post(f"{base}/net/versions/9/infer", json=INFER).status_code == 404
        with pytest.raises(InferenceServerException, match="version 9 is not found"):
            client.infer("net", ones(triton_grpc), model_version="9")


def test_requests_wait_for_absent_server_until_outage_timeout(impatient: Api, external: RunningTriton) -> None:
    pid = external.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it is not restarted, as a killed one is
    try:
        url = f"http://{urls(impatient)[0]}/v2/models/net/infer"
        until("the server is away", lambda: way(impatient, "net") == "closed")
        answer = httpx.post(url, json=INFER, timeout=60)
        assert answer.status_code == 503
        assert "net cannot be served: none of its Triton servers has been reachable for" in answer.json()["error"]
        assert external.server.grpc_url not in answer.json()["error"], "clients of models see no addresses"
        assert answer.headers["retry-after"] == "1"
        with (
            grpc_client(impatient) as client,
            pytest.raises(InferenceServerException, match="none of its Triton servers has been reachable") as caught,
        ):
            client.infer("net", ones(triton_grpc))
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
    finally:
        os.kill(pid, signal.SIGCONT)
    with http_client(impatient, network_timeout=60.0) as client:

        def answered() -> bool:
            try:
                return float(client.infer("net", ones(triton_http)).as_numpy("y")[0, 0]) == 2.0
            except InferenceServerException:
                return False

        until("the server is back", answered)


class AnyServer:
    """Finds the one server at once."""

    @asynccontextmanager
    async def acquire(self, model: str, size: int) -> AsyncIterator[str]:
        yield "a"


@pytest.mark.parametrize("kind", [StrategyKind.CANARY, StrategyKind.SHADOW])
async def test_lost_active_version_is_not_measured_in_a_rollout(triton: RunningTriton, kind: StrategyKind) -> None:
    """Triton knows neither version: its errors say nothing about the active one."""
    rollout = split(kind, percent=1e-6)
    seen: list[Any] = []
    async with httpx.AsyncClient(base_url=triton.server.http_url) as http:
        request = HttpRequest("", "", [], json.dumps(INFER).encode(), 1_000_000)
        for _ in range(5):
            with pytest.raises(ModelUnavailableError, match=LOST):
                await ask_http(rollout, request, AnyServer(), {"a": http}, seen.append)
    async with grpc.aio.insecure_channel(triton.server.grpc_url) as channel:
        message = text(NAME, b"m") + tensors()
        for _ in range(5):
            with pytest.raises(ModelUnavailableError, match=LOST):
                await ask_grpc(
                    rollout, GrpcRequest(message, "", [], None, 1_000_000), AnyServer(), {"a": channel}, seen.append
                )
    evidence = rollout.meter.evidence()
    assert (evidence.old.requests, evidence.new.requests, seen) == (0, 0, [])
