"""Sends requests for a model outside a key's scope through the gateway's gRPC port, in four ways.

1. A stream to a pinned model, whose second message names the other model.
2. A second field `model_name`: protobuf takes the last one, HAProxy's `protobuf(1)` the first.
3. The same for a model that is not loaded, which the activator reads.
4. `ModelConfig` with two names.

Expected: each is refused, and the plain request as well. The models are made by `tests.support.api.onnx_scale`.

Usage: gateway_grpc_model_scope.py HOST:PORT KEYFILE PINNED_MODEL_OF_THE_KEY OTHER_MODEL LAZY_MODEL_OF_THE_KEY
"""

import queue
import sys
from pathlib import Path
from typing import Any

import grpc
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.support.gateway import ones
from tests.support.hostile import NAME, tensors, text

SERVICE = "/inference.GRPCInferenceService/"


def plain(address: str, key: str, model: str) -> str:
    with triton_grpc.InferenceServerClient(address) as client:
        try:
            client.infer(model, ones(), headers={"authorization": f"Bearer {key}"})
        except InferenceServerException as error:
            return f"refused: {error}"
    return f"ANSWERED by {model}"


def streamed(address: str, key: str, *models: str) -> list[str]:
    answers: queue.Queue[Any] = queue.Queue()
    found = []
    with triton_grpc.InferenceServerClient(address) as client:
        client.start_stream(
            lambda result, error: answers.put(error or result), headers={"authorization": f"Bearer {key}"}
        )
        for model in models:
            client.async_stream_infer(model, ones())
            answer = answers.get(timeout=30)
            refused = isinstance(answer, Exception)
            found.append(f"refused: {answer}" if refused else f"ANSWERED by {answer.get_response().model_name}")
        client.stop_stream()
    return found


def raw(address: str, key: str, call: str, message: bytes) -> str:
    answer: Any = service_pb2.ModelConfigResponse if call == "ModelConfig" else service_pb2.ModelInferResponse
    with grpc.insecure_channel(address) as channel:
        method = channel.unary_unary(SERVICE + call, response_deserializer=answer.FromString)
        try:
            response = method(message, metadata=[("authorization", f"Bearer {key}")], timeout=60)
        except grpc.RpcError as error:
            return f"refused: {error.code().name} {error.details()}"
    return f"ANSWERED by {response.config.name if call == 'ModelConfig' else response.model_name}"


def main(address: str, key: str, pinned: str, other: str, lazy: str) -> dict[str, str]:
    """Return the result of each attempt."""
    second = text(NAME, other.encode())
    mine, theirs = streamed(address, key, pinned, other)
    return {
        "0 plain": plain(address, key, other),
        "1 stream, first message": mine,
        "1 stream, second message": theirs,
        "2 two names, loaded": raw(address, key, "ModelInfer", text(NAME, pinned.encode()) + tensors() + second),
        "3 two names, not loaded": raw(address, key, "ModelInfer", text(NAME, lazy.encode()) + tensors() + second),
        "4 ModelConfig": raw(address, key, "ModelConfig", text(NAME, pinned.encode()) + second),
    }


if __name__ == "__main__":
    for name, outcome in main(sys.argv[1], Path(sys.argv[2]).read_text().strip(), *sys.argv[3:6]).items():
        print(f"{name}: {outcome}")
