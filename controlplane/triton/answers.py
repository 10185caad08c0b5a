"""Decoding of Triton's inference responses into arrays, so that two responses can be compared.

The binary tensor extension of the HTTP protocol: a JSON head of ``Inference-Header-Content-Length`` bytes, followed by
the elements of those outputs that have a ``binary_data_size``, in order
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
"""

import json
import math
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from controlplane.domain.arrays import Array
from controlplane.domain.signature import DataType
from controlplane.errors import InferenceError
from controlplane.triton.wire import deserialise


def from_grpc(message: bytes) -> dict[str, Array]:
    """Return the outputs of a ``ModelInferResponse``.

    Raises:
        InferenceError: The message is not a ``ModelInferResponse``.
    """
    try:
        response = service_pb2.ModelInferResponse.FromString(message)
        return {
            output.name: deserialise(raw, DataType(output.datatype)).reshape(tuple(output.shape))
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=False)
        }
    except (DecodeError, ValueError) as error:
        raise InferenceError(f"the answer cannot be read: {error}") from error


def from_http(body: bytes, head_bytes: int | None) -> dict[str, Array]:
    """Return the outputs of an HTTP response.

    Args:
        body: The body, decompressed.
        head_bytes: Length of its JSON head; None if the whole body is JSON.

    Raises:
        InferenceError: The response cannot be read.
    """
    at = len(body) if head_bytes is None else head_bytes
    found = {}
    try:
        for output in json.loads(body[:at])["outputs"]:
            dtype, shape = DataType(output["datatype"]), tuple(output["shape"])
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                found[output["name"]] = _from_json(output["data"], dtype).reshape(shape)
            else:
                found[output["name"]] = deserialise(body[at : at + size], dtype).reshape(shape)
                at += size
    except (ValueError, KeyError, TypeError) as error:
        raise InferenceError(f"the answer cannot be read: {error!r}") from error
    return found


def _from_json(data: list[Any], dtype: DataType) -> Array:
    if dtype is DataType.BYTES:
        flat = np.empty(len(data), dtype=object)
        flat[:] = [str(element).encode() for element in data]
        return flat
    # Triton writes values that JSON cannot represent as null.
    return np.asarray([math.nan if element is None else element for element in data], dtype=dtype.numpy)
