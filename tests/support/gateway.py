"""Helpers for tests of the gateway."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.support.api import Api


def onnx_join() -> bytes:
    """Strings in, the same strings out, as an ONNX file."""
    x = helper.make_tensor_value_info("x", TensorProto.STRING, [2])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "join", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def ones(kind: Any = triton_grpc, rows: int = 1, value: float = 1.0) -> list[Any]:
    """Return the input of a model made by `onnx_scale`, for a client of one of tritonclient's modules."""
    x = kind.InferInput("x", [rows, 2], "FP32")
    x.set_data_from_numpy(np.full((rows, 2), value, np.float32))
    return [x]


def urls(api: Api) -> tuple[str, str]:
    """Return host:port of the gateway, for HTTP and gRPC."""
    gateway = api.plane.gateway
    assert gateway is not None
    return gateway.http_url.partition("://")[2], gateway.grpc_url


def direct_urls(api: Api) -> tuple[str, str]:
    """Return host:port of Triton itself, for HTTP and gRPC."""
    server = api.plane.reconciler.servers()[0]
    return server.http_url.partition("://")[2], server.grpc_url


def grpc_client(api: Api) -> triton_grpc.InferenceServerClient:
    return triton_grpc.InferenceServerClient(urls(api)[1])


def http_client(api: Api, **options: Any) -> triton_http.InferenceServerClient:
    return triton_http.InferenceServerClient(urls(api)[0], **options)


def way(api: Api, model: str) -> str:
    """Return the route of requests for a model."""
    for route in api.ok(api.http.get("/v1/gateway"))["models"]:
        if route["model"] == model:
            return str(route["way"])
    return "closed"


def until(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)
    return found


def triton_pid(api: Api) -> int:
    """Return the process id of the embedded Triton."""
    port = f"--grpc-port={direct_urls(api)[1].rpartition(':')[2]}"
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # another test's, that has just ended
            command = child.cmdline()
            if port in command and command[0].endswith("tritonserver"):
                return int(child.pid)
    raise AssertionError(f"no tritonserver with {port}")


@contextmanager
def asking(gateways: Sequence[Api], *models: str) -> Iterator[list[Counter[Any]]]:
    """Ask models made by `onnx_scale` through gateways, over both protocols; yields answers and errors, by door."""
    seen = [Counter[Any]() for _ in gateways]
    stop = threading.Event()

    def run(api: Api, kind: Any, found: Counter[Any]) -> None:
        patience = {} if kind is triton_grpc else {"network_timeout": 120.0}
        with kind.InferenceServerClient(urls(api)[kind is triton_grpc], **patience) as client:
            while not stop.is_set():
                for model in models:
                    try:
                        found[model, float(client.infer(model, ones(kind)).as_numpy("y")[0, 0])] += 1
                    except InferenceServerException as error:
                        found[model, f"{kind.__name__}: {error}"] += 1
                    stop.wait(0.003)  # the processor is for what is tested

    threads = [
        threading.Thread(target=run, args=(api, kind, found))
        for api, found in zip(gateways, seen, strict=True)
        for kind in (triton_http, triton_grpc)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)


def failures(seen: list[Counter[Any]]) -> list[Any]:
    return [outcome for found in seen for outcome in found if isinstance(outcome[1], str)]


def more(seen: list[Counter[Any]], count: int = 30) -> None:
    """Wait until all doors have answered some more."""
    before = [found.total() for found in seen]
    until("more answers", lambda: all(one.total() >= begun + count for one, begun in zip(seen, before, strict=True)))
