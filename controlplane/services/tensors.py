"""Conversion of tensors between the JSON of the v2 inference protocol and numpy, with checks of the inputs."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DataType, Signature
from controlplane.errors import InvalidInputError

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input as the client sent it."""

    name: str
    datatype: DataType | None
    shape: Sequence[int] | None
    data: Any


def read_inputs(inputs: Sequence[InputTensor], signature: Signature | None) -> Tensors:
    """Convert the inputs of a request to arrays.

    Raises:
        InvalidInputError: They do not match the signature, or one has values that are not of its type.
    """
    specs = {spec.name: spec for spec in signature.inputs} if signature else {}
    tensors = {}
    for tensor in inputs:
        if tensor.name in tensors:
            raise InvalidInputError(f"input {tensor.name!r} is given twice", input=tensor.name)
        spec = specs.get(tensor.name)
        if signature is not None and spec is None:
            raise InvalidInputError(
                f"unknown input {tensor.name!r}; the inputs are {', '.join(map(str, signature.inputs))}",
                input=tensor.name,
            )
        dtype = tensor.datatype or (spec.dtype if spec else None)
        if dtype is None:
            raise InvalidInputError(f"input {tensor.name!r} needs a datatype", input=tensor.name)
        if spec is not None and dtype is not spec.dtype:
            raise InvalidInputError(
                f"input {tensor.name!r} is {dtype.value}; the model expects {spec}", input=tensor.name
            )
        array = to_array(tensor.name, dtype, tensor.shape, tensor.data)
        if spec is not None and not spec.accepts(array.shape):
            raise InvalidInputError(
                f"input {tensor.name!r} has the shape {list(array.shape)}; the model expects {spec}", input=tensor.name
            )
        if signature is not None and signature.batched and array.shape[0] == 0:
            raise InvalidInputError(
                f"input {tensor.name!r} has no rows: its shape is {list(array.shape)}; send at least one row",
                input=tensor.name,
            )
        tensors[tensor.name] = array
    if missing := [name for name, spec in specs.items() if name not in tensors and not spec.optional]:
        raise InvalidInputError(
            f"input {missing[0]!r} is missing; the model expects {specs[missing[0]]}", input=missing[0]
        )
    return tensors


def to_array(name: str, dtype: DataType, shape: Sequence[int] | None, data: Any) -> Array:
    """Convert one input to an array.

    Args:
        name: The input's name, for messages.
        dtype: Its element type; every element must be a value of it.
        shape: Its shape; None uses the shape of nested ``data``.
        data: Elements, flat in row-major order or nested.

    Raises:
        InvalidInputError: An element is not of the type, rows differ in length, or the shape does not match.
    """
    array = _strings(name, data) if dtype is DataType.BYTES else _numbers(name, dtype, data)
    if shape is None:
        return array
    if math.prod(shape) != array.size:
        raise InvalidInputError(
            f"input {name!r}: the shape {list(shape)} has {math.prod(shape)} elements, the data has {array.size}",
            input=name,
        )
    return array.reshape(tuple(shape))


def from_array(array: Array) -> tuple[str, list[Any]]:
    """Return an output's element type and its elements, flat; values that JSON lacks (NaN, bytes) as strings."""
    dtype = DataType.of(array)
    flat = array.reshape(-1)
    if dtype is DataType.BYTES:
        return dtype.value, [_text(element) for element in flat]
    if dtype.is_float:
        if not np.isfinite(flat).all():
            return dtype.value, [_finite(float(element)) for element in flat]
        if dtype is DataType.FP16:
            flat = flat.astype(np.float32)
    return dtype.value, flat.tolist()


def _numbers(name: str, dtype: DataType, data: Any) -> Array:
    try:
        raw = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"input {name!r}: the data is not a regular array: {error}", input=name) from error
    if raw.size == 0:
        return np.zeros(raw.shape, dtype.numpy)
    if raw.dtype.kind == "U" and dtype.is_float:
        raw = _with_specials(name, raw, data)
    allowed = "b" if dtype is DataType.BOOL else "iuf" if dtype.is_float else "iu"
    if raw.dtype.kind not in allowed:
        raise InvalidInputError(
            f"input {name!r} is {dtype.value}; its data contains {_kind(raw)}", input=name, datatype=dtype.value
        )
    if not dtype.is_float:
        if dtype is not DataType.BOOL:
            limits = np.iinfo(dtype.numpy)
            if int(raw.min()) < limits.min or int(raw.max()) > limits.max:
                raise InvalidInputError(
                    f"input {name!r} is {dtype.value} and accepts {limits.min} to {limits.max}; its data "
                    f"ranges from {int(raw.min())} to {int(raw.max())}",
                    input=name,
                    datatype=dtype.value,
                )
        return raw.astype(dtype.numpy)
    with np.errstate(over="ignore"):
        converted = raw.astype(dtype.numpy)
    if np.isinf(converted).any() and not np.array_equal(np.isinf(converted), np.isinf(raw.astype(np.float64))):
        raise InvalidInputError(f"input {name!r}: a value is too large for {dtype.value}", input=name)
    return converted


def _with_specials(name: str, raw: Array, data: Any) -> Array:
    """Convert numbers that include NaN or an infinity as a string."""
    elements = np.empty(raw.shape, dtype=np.float64)
    nested = np.asarray(data, dtype=object)
    for index, element in np.ndenumerate(nested):
        if isinstance(element, str) and element in _SPECIAL:
            elements[index] = _SPECIAL[element]
        elif isinstance(element, int | float) and not isinstance(element, bool):
            elements[index] = element
        else:
            raise InvalidInputError(f"input {name!r}: {str(element)[:40]!r} is not a number", input=name)
    return elements


def _strings(name: str, data: Any) -> Array:
    nested = np.asarray(data, dtype=object)
    flat = np.empty(nested.size, dtype=object)
    for index, element in enumerate(nested.reshape(-1)):
        if isinstance(element, bytes):  # from a gRPC request; JSON has none
            flat[index] = element
            continue
        if not isinstance(element, str):
            raise InvalidInputError(
                f"input {name!r} is BYTES and needs strings in a regular array, not {type(element).__name__}",
                input=name,
            )
        try:
            flat[index] = element.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"input {name!r}: element {index} is not valid Unicode", input=name) from error
    return flat.reshape(nested.shape)


def _kind(raw: Array) -> str:
    return {"b": "booleans", "f": "fractions", "U": "strings", "i": "integers", "u": "integers"}.get(
        raw.dtype.kind, "values that are not 64-bit numbers"
    )


def _text(element: object) -> str:
    if isinstance(element, bytes):
        try:
            return element.decode()
        except UnicodeDecodeError:
            return "base64:" + base64.b64encode(element).decode()
    return str(element)


def _finite(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
