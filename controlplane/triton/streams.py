"""Requests to models that take part in sequences, or that answer with any number of responses (decoupled)."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from controlplane.domain.arrays import Array
from controlplane.errors import InferenceError
from controlplane.triton.shapes import Config
from controlplane.triton.tensors import from_response

_IDLE_MICROSECONDS = 1_000_000
"""Triton's default of ``max_sequence_idle_microseconds`` (model_config.proto)."""


def decoupled(config: Config) -> bool:
    """Return whether a request may get any number of responses, so that only a stream can carry it."""
    return bool(config.get("model_transaction_policy", {}).get("decoupled"))


def sequence_idle_seconds(config: Config) -> float | None:
    """Return after how long without a request Triton ends a sequence of a model; None without sequence batching."""
    batching = config.get("sequence_batching")
    if batching is None:
        return None
    return int(batching.get("max_sequence_idle_microseconds", 0) or _IDLE_MICROSECONDS) / 1e6


def as_sequence(request: service_pb2.ModelInferRequest, config: Config) -> None:
    """Make a request a sequence of its own, if the model's scheduler is for sequences."""
    batching = config.get("sequence_batching")
    if batching is None:
        return
    controls = [control for item in batching.get("control_input", ()) for control in item.get("control", ())]
    named = any(
        control.get("kind") == "CONTROL_SEQUENCE_CORRID" and control.get("data_type") == "TYPE_STRING"
        for control in controls
    )
    identifier = uuid.uuid4()
    if named:
        request.parameters["sequence_id"].string_param = str(identifier)
    else:
        # A correlation id may be 32 bits wide in the model, and must not be 0.
        request.parameters["sequence_id"].int64_param = identifier.int % (2**31 - 1) + 1
    request.parameters["sequence_start"].bool_param = True
    request.parameters["sequence_end"].bool_param = True


class StreamFailedError(Exception):
    """Triton answered a request on a stream with an error."""


async def stream(service: Any, request: service_pb2.ModelInferRequest, seconds: float) -> list[Any]:
    """Send a request over a stream of its own, and return the responses until its end.

    Raises:
        StreamFailedError: A response was an error.
    """

    async def requests() -> AsyncIterator[service_pb2.ModelInferRequest]:
        yield request

    responses = []
    async for message in service.ModelStreamInfer(requests(), timeout=seconds):
        if message.error_message:
            raise StreamFailedError(message.error_message)
        responses.append(message.infer_response)
    return responses


def joined(answer: Any, config: Config, model: str) -> tuple[dict[str, Array], int]:
    """Return the outputs of a response, or of all responses of a decoupled model, and the version that answered.

    Each output of several responses is joined by its first dimension, in the order of the responses.

    Raises:
        InferenceError: The outputs of the responses have shapes that cannot be joined.
    """
    responses = answer if isinstance(answer, list) else [answer]
    found: dict[str, list[Array]] = {}
    for response in responses:
        for name, array in from_response(response, config).items():
            found.setdefault(name, []).append(array)
    try:
        outputs = {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in found.items()}
    except ValueError as error:
        raise InferenceError(
            f"the responses of the decoupled model {model} have shapes that cannot be joined to one", model=model
        ) from error
    return outputs, max((int(response.model_version or 0) for response in responses), default=0)
