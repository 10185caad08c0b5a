"""Tensor elements in the v2 protocol's format: row-major, little-endian, strings with their length.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md (raw tensor
contents). tritonclient's own functions are not used, because their BF16 input type changed between releases.
"""

import struct

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.signature import DataType

HEAD_LENGTH = "inference-header-content-length"
"""HTTP header with the number of JSON bytes in a body, if tensors follow them."""


def serialise(array: Array, datatype: DataType) -> bytes:
    """Write the elements of an array whose dtype is `datatype.numpy`."""
    if datatype is DataType.BYTES:
        parts = []
        for element in array.reshape(-1):
            raw = element if isinstance(element, bytes) else str(element).encode()
            parts.append(struct.pack("<I", len(raw)) + raw)
        return b"".join(parts)
    if datatype is DataType.BF16:
        return _to_bf16(np.ascontiguousarray(array, dtype=np.float32)).tobytes()
    return np.ascontiguousarray(array, dtype=datatype.numpy).tobytes()


def deserialise(raw: bytes, datatype: DataType) -> Array:
    """Read elements into a new, writable array of one dimension."""
    if datatype is DataType.BYTES:
        elements, offset = [], 0
        while offset < len(raw):
            (length,) = struct.unpack_from("<I", raw, offset)
            elements.append(raw[offset + 4 : offset + 4 + length])
            offset += 4 + length
        strings = np.empty(len(elements), dtype=object)
        strings[:] = elements
        return strings
    if datatype is DataType.BF16:
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype=datatype.numpy).copy()


def _to_bf16(array: Array) -> Array:
    """Return the upper half of each float32, rounded to nearest even as hardware does; a NaN stays a NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype("<u2")
