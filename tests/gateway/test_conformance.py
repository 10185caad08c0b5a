"""The same list of calls to the gateway and to Triton itself: the same answers, the same errors."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support.api import Api
from tests.support.gateway import direct_urls, ones, urls

pytestmark = pytest.mark.triton

Call = Callable[[Any, Any], Any]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return plain(call())
    except InferenceServerException as error:
        return said(error)


def said(error: InferenceServerException) -> tuple[str, Any, str]:
    """An error; HAProxy takes blanks from the end of a gRPC status message, which is a header."""
    return "error", error.status(), error.message().strip()


def plain(value: Any) -> Any:
    """An answer as something to compare, without what differs from call to call."""
    if isinstance(value, (triton_grpc.InferResult, triton_http.InferResult)):
        response = value.get_response()
        if not isinstance(response, dict):
            response = _head(response)
        names = [one["name"] for one in response["outputs"]]
        return {**response, "outputs": {name: value.as_numpy(name).tolist() for name in names}}
    return value


def _head(response: Any) -> dict[str, Any]:
    return {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "outputs": [{"name": one.name} for one in response.outputs],
    }


def strings(kind: Any) -> list[Any]:
    x = kind.InferInput("x", [2], "BYTES")
    x.set_data_from_numpy(np.array([b"one", "zwölf".encode()], dtype=object))
    return [x]


def large(kind: Any) -> list[Any]:
    """More than one buffer of HAProxy's."""
    x = kind.InferInput("x", [40_000, 2], "FP32")
    x.set_data_from_numpy(np.arange(80_000, dtype=np.float32).reshape(40_000, 2))
    return [x]


def wrong(kind: Any) -> list[Any]:
    x = kind.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.ones((1, 3), np.float32))
    return [x]


BOTH: dict[str, Call] = {
    "infer": lambda client, kind: client.infer("net", ones(kind), request_id="7"),
    "infer a version": lambda client, kind: client.infer("net", ones(kind), model_version="1"),
    "infer named outputs": lambda client, kind: client.infer(
        "net", ones(kind), outputs=[kind.InferRequestedOutput("y")]
    ),
    "infer strings": lambda client, kind: client.infer("text", strings(kind)),
    "infer much": lambda client, kind: client.infer("net", large(kind)),
    "infer with parameters": lambda client, kind: client.infer("net", ones(kind), priority=1, timeout=10_000_000),
    "wrong shape": lambda client, kind: client.infer("net", wrong(kind)),
    "wrong output": lambda client, kind: client.infer("net", ones(kind), outputs=[kind.InferRequestedOutput("no")]),
    "unknown model": lambda client, kind: client.infer("unknown", ones(kind)),
    "unknown version": lambda client, kind: client.infer("net", ones(kind), model_version="9"),
    "live": lambda client, kind: client.is_server_live(),
    "ready": lambda client, kind: client.is_server_ready(),
    "server": lambda client, kind: client.get_server_metadata(),
    "model ready": lambda client, kind: client.is_model_ready("net"),
    "version ready": lambda client, kind: client.is_model_ready("net", "1"),
    "version not ready": lambda client, kind: client.is_model_ready("net", "9"),
    "unknown not ready": lambda client, kind: client.is_model_ready("unknown"),
    "metadata": lambda client, kind: client.get_model_metadata("net"),
    "metadata of a version": lambda client, kind: client.get_model_metadata("net", "1"),
    "metadata of unknown": lambda client, kind: client.get_model_metadata("unknown"),
    "metadata of no version": lambda client, kind: client.get_model_metadata("net", "9"),
    "config": lambda client, kind: client.get_model_config("net"),
    "config of unknown": lambda client, kind: client.get_model_config("unknown"),
    "statistics of unknown": lambda client, kind: client.get_inference_statistics("unknown"),
}
HTTP: dict[str, Call] = {
    "as JSON": lambda client, kind: client.infer("net", as_json(kind), outputs=[kind.InferRequestedOutput("y", False)]),
    "gzip": lambda client, kind: client.infer(
        "net", ones(kind), request_compression_algorithm="gzip", response_compression_algorithm="gzip"
    ),
    "deflate": lambda client, kind: client.infer(
        "net", large(kind), request_compression_algorithm="deflate", response_compression_algorithm="deflate"
    ),
}
GRPC: dict[str, Call] = {
    "gzip": lambda client, kind: client.infer("net", large(kind), compression_algorithm="gzip"),
    "deadline": lambda client, kind: client.infer("net", ones(kind), client_timeout=30.0),
}


def as_json(kind: Any) -> list[Any]:
    x = kind.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.ones((1, 2), np.float32), binary_data=False)
    return [x]


@pytest.mark.parametrize("name", [*BOTH, *HTTP])
def test_http_calls_answer_as_triton_does(gateway: Api, name: str) -> None:
    call = {**BOTH, **HTTP}[name]
    outcomes = []
    for url in (direct_urls(gateway)[0], urls(gateway)[0]):
        with triton_http.InferenceServerClient(url) as client:
            outcomes.append(outcome(lambda client=client: call(client, triton_http)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", [*BOTH, *GRPC])
def test_grpc_calls_answer_as_triton_does(gateway: Api, name: str) -> None:
    call = {**BOTH, **GRPC}[name]
    outcomes = []
    for url in (direct_urls(gateway)[1], urls(gateway)[1]):
        with triton_grpc.InferenceServerClient(url) as client:
            outcomes.append(outcome(lambda client=client: call(client, triton_grpc)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("clients", "kind", "which"), [(triton_http_aio, triton_http, 0), (triton_grpc_aio, triton_grpc, 1)]
)
async def test_asyncio_calls_answer_as_triton_does(gateway: Api, clients: Any, kind: Any, which: int) -> None:
    outcomes: list[dict[str, Any]] = []
    for url in (direct_urls(gateway)[which], urls(gateway)[which]):
        async with clients.InferenceServerClient(url) as client:
            found = {}
            for name, call in BOTH.items():
                try:
                    found[name] = plain(await call(client, kind))
                except InferenceServerException as error:
                    found[name] = said(error)
            outcomes.append(found)
    assert outcomes[0] == outcomes[1]


def streamed(url: str, requests: list[tuple[str, str]]) -> list[Any]:
    answers: queue.Queue[Any] = queue.Queue()
    found = []
    with triton_grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for model, number in requests:
            client.async_stream_infer(model, ones(), request_id=number)
        for _ in requests:
            answer: Any = answers.get(timeout=60)
            found.append(("error", answer.message()) if isinstance(answer, InferenceServerException) else plain(answer))
        client.stop_stream()
    return found


def test_stream_answers_as_triton_does(gateway: Api) -> None:
    requests = [("net", "1"), ("net", "2"), ("unknown", "3"), ("net", "4")]
    direct, through = (sorted(streamed(url, requests), key=str) for url in (direct_urls(gateway)[1], urls(gateway)[1]))
    assert direct == through


async def test_asyncio_stream_answers_as_triton_does(gateway: Api) -> None:
    async def ask(url: str) -> list[Any]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(3):
                yield {"model_name": "text", "inputs": strings(triton_grpc), "request_id": str(number)}

        async with triton_grpc_aio.InferenceServerClient(url) as client:
            return [plain(result) async for result, error in client.stream_infer(requests()) if error is None]

    direct, through = await asyncio.gather(ask(direct_urls(gateway)[1]), ask(urls(gateway)[1]))
    assert len(direct) == 3
    assert direct == through


def test_messages_of_any_size_are_routed_by_model_name(gateway: Api) -> None:
    """The name is read from the first bytes of a message, whatever its size and however it is cut into frames."""
    with triton_grpc.InferenceServerClient(urls(gateway)[1]) as client:
        before = gateway.plane.gateway.stats.requests.total()  # type: ignore[union-attr]
        for rows in (1, 10, 1_000, 2_000, 8_000, 8_192, 100_000, 2_097_152):  # up to 16 MiB
            assert client.infer("net", ones(rows=rows)).as_numpy("y").shape == (rows, 2)
        assert gateway.plane.gateway.stats.requests.total() == before  # type: ignore[union-attr]


def test_statistics_are_those_of_the_server(gateway: Api) -> None:
    with triton_http.InferenceServerClient(urls(gateway)[0]) as client:
        (mine,) = client.get_inference_statistics("net")["model_stats"]
        assert mine["name"] == "net"
        assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} >= {"net", "text"}
    with triton_grpc.InferenceServerClient(urls(gateway)[1]) as client:
        assert client.get_inference_statistics("net").model_stats[0].name == "net"


REFUSED: dict[str, Call] = {
    "index": lambda client, kind: client.get_model_repository_index(),
    "load": lambda client, kind: client.load_model("net"),
    "unload": lambda client, kind: client.unload_model("net"),
    "system memory": lambda client, kind: client.register_system_shared_memory("region", "/key", 16),
    "system memory status": lambda client, kind: client.get_system_shared_memory_status(),
    "cuda memory": lambda client, kind: client.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 16),
    "trace": lambda client, kind: client.update_trace_settings(settings={"trace_level": ["OFF"]}),
    "logging": lambda client, kind: client.update_log_settings({"log_verbose_level": 1}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_server_administration_calls_are_refused(gateway: Api, name: str) -> None:
    with triton_http.InferenceServerClient(urls(gateway)[0]) as client:
        with pytest.raises(InferenceServerException, match="the gateway does not serve this path") as error:
            REFUSED[name](client, triton_http)
        assert error.value.status() == "403"
    with (
        triton_grpc.InferenceServerClient(urls(gateway)[1]) as client,
        pytest.raises(InferenceServerException, match="the gateway does not serve this path"),
    ):
        REFUSED[name](client, triton_grpc)


def test_other_spellings_of_refused_paths_are_refused(gateway: Api) -> None:
    base = f"http://{urls(gateway)[0]}"
    for path in (
        *("/v2//repository/index", "/v2/./repository/index", "/v2/%72epository/index", "/V2/repository/index"),
        *("/v2/models/net/../../repository/index", "/v2/models/net%2f..%2f..%2frepository/index"),
        *("/v2/repository/models/net/unload", "/v2/repository/models/net/load", "/metrics", "/"),
        *("/v2/models/net/trace/setting", "/v2/models/net/versions/1/trace/setting", "/v2/models//infer"),
    ):
        # By hand: a client of HTTP would make the path a tidy one first.
        connection = httpx.Client(base_url=base)
        request = connection.build_request("POST", "/x", content=b"{}")
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = connection.send(request)
        assert answer.status_code in (403, 404), f"{path}: {answer.status_code} {answer.text}"
        connection.close()
    assert gateway.plane.reconciler.status("net").phase.value == "Ready"  # type: ignore[union-attr]
    names = ("RepositoryModelLoad", "RepositoryModelUnload", "NoSuchCall")
    with grpc.insecure_channel(urls(gateway)[1]) as channel:
        for name in names:
            method = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
            with pytest.raises(grpc.RpcError) as error:
                method(b"")
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_standard_grpc_health_service_answers(gateway: Api) -> None:
    for url in (direct_urls(gateway)[1], urls(gateway)[1]):
        with grpc.insecure_channel(url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"") == b"\x08\x01"  # HealthCheckResponse(status=SERVING)


@pytest.mark.parametrize("kind", [triton_http, triton_grpc])
def test_alias_works_as_model_name(gateway: Api, kind: Any) -> None:
    with kind.InferenceServerClient(urls(gateway)[kind is triton_grpc]) as client:
        answer = client.infer("net@champion", ones(kind))
        assert answer.as_numpy("y").tolist() == [[2.0, 2.0]]
        assert client.is_model_ready("net@champion")
        metadata = client.get_model_metadata("net@champion")
        assert (metadata["name"] if isinstance(metadata, dict) else metadata.name) == "net"
        with pytest.raises(InferenceServerException, match="unknown model: 'net@unknown'"):
            client.infer("net@unknown", ones(kind))
