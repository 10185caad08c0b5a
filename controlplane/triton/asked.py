"""Decoding of clients' inference requests into arrays, so that they can be recorded as samples."""

import json
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from controlplane.domain.arrays import Array
from controlplane.domain.signature import DataType
from controlplane.errors import InvalidInputError
from controlplane.triton.wire import deserialise

_CONTENTS = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.BYTES: "bytes_contents",
}


def inputs_from_grpc(message: bytes) -> dict[str, Array]:
    """Return the inputs of a ``ModelInferRequest``.

    Raises:
        InvalidInputError: The message cannot be read.
    """
    try:
        request = service_pb2.ModelInferRequest.FromString(message)
        found, raw = {}, list(request.raw_input_contents)
        for tensor in request.inputs:
            dtype = DataType(tensor.datatype)
            if raw:
                flat = deserialise(raw.pop(0), dtype)
            else:
                flat = _flat(list(getattr(tensor.contents, _CONTENTS[dtype])), dtype)
            found[tensor.name] = flat.reshape(tuple(tensor.shape))
    except (DecodeError, ValueError, KeyError) as error:
        raise InvalidInputError(f"the request cannot be read: {error!r}") from error
    return found


def inputs_from_http(body: bytes, head_bytes: int | None) -> dict[str, Array]:
    """Return the inputs of an HTTP request.

    Args:
        body: The body, not compressed.
        head_bytes: Length of its JSON head; None if the whole body is JSON.

    Raises:
        InvalidInputError: The request cannot be read.
    """
    at = len(body) if head_bytes is None else head_bytes
    found = {}
    try:
        for tensor in json.loads(body[:at])["inputs"]:
            dtype, shape = DataType(tensor["datatype"]), tuple(tensor["shape"])
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                found[str(tensor["name"])] = _flat(tensor["data"], dtype).reshape(shape)
            else:
                found[str(tensor["name"])] = deserialise(body[at : at + size], dtype).reshape(shape)
                at += size
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"the request cannot be read: {error!r}") from error
    return found


def _flat(data: Any, dtype: DataType) -> Array:
    """Return elements, flat or nested, as an array of one dimension."""
    if dtype is DataType.BYTES:
        elements = list(_leaves(data))
        flat = np.empty(len(elements), dtype=object)
        flat[:] = [element if isinstance(element, bytes) else str(element).encode() for element in elements]
        return flat
    return np.asarray(data, dtype=dtype.numpy).reshape(-1)


def _leaves(data: Any) -> Any:
    for element in data:
        if isinstance(element, list):
            yield from _leaves(element)
        else:
            yield element
