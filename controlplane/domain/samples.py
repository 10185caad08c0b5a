"""Golden samples: inputs, with the outputs that the original model gave.

They are stored as one ``.npz`` (numpy's own format, read with ``allow_pickle=False``). BYTES tensors, which numpy could
only pickle, are stored as in the v2 protocol: each element as a 4-byte little-endian length and its bytes.
"""

import io
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.signature import DataType, Signature
from controlplane.errors import InvalidInputError

Tensors = Mapping[str, Array]

UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions that zipfile, zlib, numpy and this module's own reader raise for malicious or malformed bytes."""

MAX_SAMPLES_BYTES = 256 * 1024 * 1024
"""Maximum unpacked size. Samples are probes, not data sets."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and its recorded outputs: arrays by tensor name, including the batch dimension."""

    inputs: Tensors
    outputs: Tensors


def encode_samples(samples: tuple[Sample, ...]) -> bytes:
    """Write samples as ``.npz`` bytes; equal samples give equal bytes."""
    arrays: dict[str, Array] = {}
    index: list[dict[str, dict[str, dict[str, object]]]] = []
    for number, sample in enumerate(samples):
        entry: dict[str, dict[str, dict[str, object]]] = {}
        for side, tensors in (("inputs", sample.inputs), ("outputs", sample.outputs)):
            entry[side] = {}
            for position, (name, array) in enumerate(tensors.items()):
                key = f"{number}.{side}.{position}"
                is_bytes = DataType.of(array) is DataType.BYTES
                arrays[key] = _pack_bytes(array) if is_bytes else np.ascontiguousarray(array)
                entry[side][name] = {"key": key, "shape": list(array.shape), "bytes": is_bytes}
        index.append(entry)
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    write_array: Any = np.lib.format.write_array  # without types in NumPy 1
    # Not np.savez: it writes the current time into the archive, and these bytes are content-addressed.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            entry_bytes = io.BytesIO()
            write_array(entry_bytes, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), entry_bytes.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def too_large(what: str) -> str:
    """Return the message for samples that are too large, with the remedy."""
    return (
        f"{what} more than {MAX_SAMPLES_BYTES >> 20} MiB; give fewer or smaller samples (one row of a batch is "
        "enough), or publish without golden samples (`tritonctl push --no-golden`)"
    )


def decode_samples(data: bytes) -> tuple[Sample, ...]:
    """Read samples written by `encode_samples`.

    Raises:
        InvalidInputError: The bytes are not such an archive, or unpack to more than `MAX_SAMPLES_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_SAMPLES_BYTES:
                raise InvalidInputError(too_large("the samples unpack to"))
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            index = json.loads(arrays["index"].tobytes())
            return tuple(Sample(_read(arrays, entry["inputs"]), _read(arrays, entry["outputs"])) for entry in index)
    except UNREADABLE as error:
        raise InvalidInputError(f"the golden samples cannot be read: {error}") from error


def check_samples(samples: tuple[Sample, ...], signature: Signature, *, outputs: bool = True) -> None:
    """Check the names, types and shapes of samples against a signature.

    Raises:
        InvalidInputError: A sample does not match; the message names the sample, the tensor and the mismatch.
    """
    for number, sample in enumerate(samples):
        sides = [("input", sample.inputs, signature.inputs)]
        if outputs:
            sides.append(("output", sample.outputs, signature.outputs))
        for side, tensors, specs in sides:
            expected = {spec.name for spec in specs}
            required = {spec.name for spec in specs if not spec.optional}
            if not required <= set(tensors) <= expected:
                raise InvalidInputError(
                    f"sample {number} has the {side}s {sorted(tensors)}, but the signature has {sorted(expected)}"
                )
            for spec in specs:
                array = tensors.get(spec.name)
                if array is None:
                    continue  # an optional input
                dtype = DataType.of(array)
                same = dtype == spec.dtype or (spec.dtype is DataType.BF16 and dtype is DataType.FP32)
                if not same or not spec.accepts(array.shape):
                    raise InvalidInputError(
                        f"sample {number}: {side} {spec.name!r} is {dtype}{list(array.shape)}, but the signature "
                        f"requires {spec}"
                    )


def _read(arrays: Mapping[str, Array], entries: dict[str, dict[str, object]]) -> dict[str, Array]:
    tensors = {}
    for name, entry in entries.items():
        array = arrays[str(entry["key"])]
        shape = tuple(int(size) for size in entry["shape"])  # type: ignore[attr-defined]
        tensors[name] = _unpack_bytes(array.tobytes(), shape) if entry["bytes"] else array.reshape(shape)
    return tensors


def _pack_bytes(array: Array) -> Array:
    parts = []
    for element in array.reshape(-1):
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts.append(struct.pack("<I", len(raw)) + raw)
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def _unpack_bytes(data: bytes, shape: tuple[int, ...]) -> Array:
    elements, offset = [], 0
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset)
        elements.append(data[offset + 4 : offset + 4 + length])
        offset += 4 + length
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
