"""Tensors in JSON: what is accepted is exactly what the element type can hold."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidInputError
from controlplane.services.tensors import InputTensor, from_array, read_inputs, to_array


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "expected"),
    [
        ("FP32", [1, 2], [0.5, 1.5], [[0.5, 1.5]]),
        ("FP32", None, [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("FP64", None, [1.0, "NaN", "-Infinity"], [1.0, math.nan, -math.inf]),
        ("INT8", [2], [-128, 127], [-128, 127]),
        ("UINT64", None, [2**64 - 1], [2**64 - 1]),
        ("INT64", None, [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("BOOL", [2], [True, False], [True, False]),
        ("BYTES", [2, 1], ["a", "ü"], [[b"a"], ["ü".encode()]]),
        ("FP32", [0, 3], [], np.zeros((0, 3))),
        ("INT32", [], [5], 5),
    ],
)
def test_valid_data_becomes_an_array(dtype: str, shape: list[int] | None, data: Any, expected: Any) -> None:
    array = to_array("x", DataType(dtype), shape, data)
    assert array.dtype == DataType(dtype).numpy
    np.testing.assert_array_equal(array, np.asarray(expected, dtype=array.dtype))


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("INT8", None, [128]),
        ("UINT8", None, [-1]),
        ("INT32", None, [1.5]),
        ("INT64", None, [2**63]),
        ("INT64", None, [True]),
        ("BOOL", None, [1]),
        ("FP32", None, ["1.0"]),
        ("FP32", None, [1e39]),
        ("FP16", None, [70000]),
        ("FP32", None, [[1], [1, 2]]),
        ("FP32", None, [None]),
        ("FP32", None, {"a": 1}),
        ("FP32", [3], [1, 2]),
        ("BYTES", None, [1]),
        ("BYTES", None, [["a"], ["b", "c"]]),
    ],
)
def test_invalid_data_is_rejected(dtype: str, shape: list[int] | None, data: Any) -> None:
    with pytest.raises(InvalidInputError, match="x"):
        to_array("x", DataType(dtype), shape, data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    ),
    st.sampled_from(list(DataType)),
)
def test_any_json_value_becomes_an_array_or_a_clear_error(data: Any, dtype: DataType) -> None:
    try:
        array = to_array("x", dtype, None, data)
    except InvalidInputError:
        return
    name, elements = from_array(array)
    assert name == ("FP32" if dtype is DataType.BF16 else dtype.value)
    assert len(elements) == array.size


def test_nan_infinity_and_binary_are_written_as_strings() -> None:
    assert from_array(np.array([1.0, np.nan, np.inf], dtype=np.float16)) == ("FP16", [1.0, "NaN", "Infinity"])
    assert from_array(np.array([b"ok", b"\xff"], dtype=object)) == ("BYTES", ["ok", "base64:/w=="])


@pytest.mark.parametrize("shape", [(-1,), (-1, -1)])
def test_request_without_rows_is_rejected_for_a_batched_model(shape: tuple[int, ...]) -> None:
    tensor = TensorSpec(name="text", dtype=DataType.BYTES, shape=shape)
    signature = Signature(inputs=(tensor,), outputs=(tensor,), batched=True)
    with pytest.raises(InvalidInputError, match=r"'text' has no rows: .* send at least one row"):
        read_inputs([InputTensor("text", None, [0] * len(shape), [])], signature)
    single = Signature(inputs=(tensor,), outputs=(tensor,))
    assert read_inputs([InputTensor("text", None, [0] * len(shape), [])], single)["text"].size == 0
