"""Tensors on the command line: a spec such as ``x:FP32[-1,16]``, and inputs and outputs as npz, JSON or a table."""

import io
import json
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import ValidationError

from controlplane.domain.arrays import Array
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.domain.validation import invalid_field
from controlplane.errors import InvalidInputError

_SPEC = re.compile(r"(?P<name>.+):(?P<dtype>[A-Za-z0-9]+)(?:\[(?P<shape>[-0-9,?\s]*)\])?")
_NUMPY_NAMES = {
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float": "FP32",
    "float64": "FP64",
    "double": "FP64",
    "str": "BYTES",
    "string": "BYTES",
    "bytes": "BYTES",
}
_SHOWN = 8


def parse_spec(text: str) -> TensorSpec:
    """Parse ``name:DTYPE[shape]``; no brackets means a scalar, ``-1`` or ``?`` a dynamic dimension.

    Raises:
        InvalidInputError: The text has another form, or the type does not exist.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise InvalidInputError(
            f'{text!r} is not a valid tensor spec; use NAME:DTYPE[SHAPE], for example "x:FP32[-1,16]"'
        )
    word = match["dtype"]
    dtype = _NUMPY_NAMES.get(word.lower(), word.upper())
    if dtype not in DataType.__members__:
        raise InvalidInputError(
            f"{text!r}: {word!r} is not a valid element type; use one of {', '.join(DataType.__members__)}"
        )
    sizes = [size.strip() for size in (match["shape"] or "").split(",") if size.strip()]
    shape = tuple(-1 if size in {"?", "-1"} else _size(size, text) for size in sizes)
    return TensorSpec(name=match["name"], dtype=DataType(dtype), shape=shape)


def _size(text: str, spec: str) -> int:
    if not text.isdigit():
        raise InvalidInputError(
            f"{spec!r}: {text!r} is not a valid dimension; use a number, or -1 for a dynamic dimension"
        )
    return int(text)


def parse_signature(inputs: Sequence[str], outputs: Sequence[str], *, batched: bool) -> Signature | None:
    """Parse a signature from ``--input`` and ``--out``; None if neither is given.

    Raises:
        InvalidInputError: Only one side is given, or the specs contradict each other.
    """
    if not inputs and not outputs:
        return None
    if not inputs or not outputs:
        missing = "--out" if inputs else "--input"
        raise InvalidInputError(f"a signature needs inputs and outputs; {missing} is missing")
    try:
        return Signature(
            inputs=tuple(parse_spec(text) for text in inputs),
            outputs=tuple(parse_spec(text) for text in outputs),
            batched=batched,
        )
    except ValidationError as error:
        raise InvalidInputError(f"the signature is invalid: {invalid_field(error)}") from error


def parse_axes(texts: Sequence[str]) -> dict[str, list[int]] | None:
    """Parse ``--dynamic input=0,2``; None if none is given.

    Raises:
        InvalidInputError: An option has another form.
    """
    axes = {}
    for text in texts:
        name, equals, numbers = text.partition("=")
        try:
            axes[name] = [int(number) for number in numbers.split(",")]
        except ValueError:
            equals = ""
        if not equals or not name:
            raise InvalidInputError(f"--dynamic {text!r} is invalid; use INPUT=DIM,…, for example x=0,2")
    return axes or None


def read_tensors(source: str, signature: Signature | None) -> list[dict[str, Any]]:
    """Read inputs from a file (``.npz`` or JSON), stdin (``-``) or a text (JSON), as tensors of the v2 protocol.

    JSON is either the protocol's own (``{"inputs": [{"name", "shape", "datatype", "data"}]}``) or simply ``{"name":
    nested lists}``.

    Raises:
        InvalidInputError: The file has another form, or its names are not the model's.
    """
    label = "stdin" if source == "-" else "the JSON" if source.lstrip().startswith("{") else source.removeprefix("@")
    try:
        if source == "-":
            data = sys.stdin.buffer.read()
        else:
            data = source.encode() if label == "the JSON" else Path(label).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {label}: {error.strerror}", path=label) from error
    tensors = _from_npz(data, label) if data[:2] == b"PK" else _from_json(data, label)
    if signature is not None:
        _check_names([tensor["name"] for tensor in tensors], signature, label)
    return tensors


def _from_npz(data: bytes, label: str) -> list[dict[str, Any]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return [to_protocol(name, arrays[name]) for name in arrays.files]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{label} is not a valid .npz file: {error}", path=label) from error


def _from_json(data: bytes, label: str) -> list[dict[str, Any]]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise InvalidInputError(
            f'{label} is neither .npz nor JSON: {error}; use for example {{"x": [[0.1, 0.2]]}}', path=label
        ) from error
    if not isinstance(document, dict) or not document:
        raise InvalidInputError(f'{label} must be a JSON object, for example {{"x": [[0.1, 0.2]]}}', path=label)
    if isinstance(document.get("inputs"), list):
        return list(document["inputs"])
    return [
        {"name": name, "data": value if isinstance(value, list) else [value]} | _scalar(value)
        for name, value in document.items()
    ]


def _scalar(value: object) -> dict[str, Any]:
    return {} if isinstance(value, list) else {"shape": []}


def _check_names(names: Sequence[str], signature: Signature, label: str) -> None:
    expected = {spec.name for spec in signature.inputs}
    required = {spec.name for spec in signature.inputs if not spec.optional}
    unknown, missing = sorted(set(names) - expected), sorted(required - set(names))
    if unknown or missing:
        parts = [f"missing inputs: {', '.join(missing)}"] if missing else []
        parts += [f"unknown inputs: {', '.join(unknown)}"] if unknown else []
        raise InvalidInputError(
            f"{label} does not match the model: {'; '.join(parts)}. The model's inputs: "
            f"{'; '.join(str(spec) for spec in signature.inputs)}",
            missing=missing,
            unknown=unknown,
        )


def to_protocol(name: str, array: Array) -> dict[str, Any]:
    """Convert an array to a tensor of the v2 protocol's JSON."""
    try:
        dtype = DataType.of(array)
    except ValueError as error:
        raise InvalidInputError(f"{name}: {error}") from error
    flat = array.reshape(-1)
    if dtype is DataType.BYTES:
        data: list[Any] = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in flat]
    elif dtype.is_float:
        data = [value if np.isfinite(value) else _NOT_FINITE[str(value)] for value in flat.tolist()]
    else:
        data = flat.tolist()
    return {"name": name, "datatype": dtype.value, "shape": list(array.shape), "data": data}


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def from_protocol(tensor: Mapping[str, Any]) -> Array:
    """Convert a tensor of the v2 protocol's JSON to an array."""
    dtype = DataType(tensor["datatype"])
    values = tensor["data"]
    if dtype is DataType.BYTES:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(tensor["shape"])
    if dtype.is_float:
        values = [float(value) for value in values]
    return np.asarray(values, dtype=dtype.numpy).reshape(tensor["shape"])


def save_npz(target: BinaryIO, tensors: Sequence[Mapping[str, Any]]) -> None:
    """Write tensors as ``.npz``, strings as unicode arrays, so that reading needs no pickle."""
    arrays: dict[str, Any] = {}
    for tensor in tensors:
        array = from_protocol(tensor)
        arrays[tensor["name"]] = array.astype(str) if array.dtype == object else array
    np.savez(target, **arrays)


def preview(tensor: Mapping[str, Any]) -> str:
    """Return the first elements as text."""
    values = tensor["data"]
    shown = [f"{value:.5g}" if isinstance(value, float) else str(value) for value in values[:_SHOWN]]
    more = f" … {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return " ".join(shown) + more
