"""Answers as Triton writes them, read into arrays: gRPC, JSON, and JSON with binary tensors behind it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tritonclient.grpc import service_pb2

from controlplane.domain.arrays import Array
from controlplane.domain.signature import DataType
from controlplane.errors import InferenceError
from controlplane.triton.answers import from_grpc, from_http
from controlplane.triton.wire import serialise

tensors = st.one_of(
    arrays(np.float32, array_shapes(max_dims=3, max_side=4), elements=st.floats(width=32)),
    arrays(np.int64, array_shapes(max_dims=3, max_side=4)),
    arrays(np.bool_, array_shapes(max_dims=2, max_side=4)),
)


@given(st.lists(tensors, min_size=1, max_size=3), st.booleans())
def test_all_three_formats_give_same_outputs(outputs: list[Array], binary: bool) -> None:
    response = service_pb2.ModelInferResponse(model_name="m")
    head: dict[str, list[dict[str, object]]] = {"outputs": []}
    tail = b""
    for number, array in enumerate(outputs):
        dtype, raw = DataType.of(array), serialise(array, DataType.of(array))
        response.outputs.add(name=f"y{number}", datatype=str(dtype), shape=list(array.shape))
        response.raw_output_contents.append(raw)
        one: dict[str, object] = {"name": f"y{number}", "datatype": str(dtype), "shape": list(array.shape)}
        if binary:
            one["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            flat = array.reshape(-1).tolist()
            one["data"] = [None if isinstance(value, float) and value != value else value for value in flat]
        head["outputs"].append(one)
    text = json.dumps(head).encode()
    for found in (
        from_grpc(response.SerializeToString()),
        from_http(text + tail, len(text) if binary else None),
    ):
        assert list(found) == [f"y{number}" for number in range(len(outputs))]
        for array, read in zip(outputs, found.values(), strict=True):
            assert read.dtype == array.dtype
            assert np.array_equal(read, array, equal_nan=array.dtype.kind == "f")


def test_strings_are_bytes_in_all_formats() -> None:
    array = np.array([b"one", b"zwei"], dtype=object)
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="y", datatype="BYTES", shape=[2])
    response.raw_output_contents.append(serialise(array, DataType.BYTES))
    text = b'{"outputs": [{"name": "y", "datatype": "BYTES", "shape": [2], "data": ["one", "zwei"]}]}'
    assert (
        from_grpc(response.SerializeToString())["y"].tolist()
        == from_http(text, None)["y"].tolist()
        == [b"one", b"zwei"]
    )


@pytest.mark.parametrize("body", [b"", b"[]", b'{"outputs": [{"name": "y"}]}', b"\xff"])
def test_invalid_http_answer_is_reported(body: bytes) -> None:
    with pytest.raises(InferenceError, match="cannot be read"):
        from_http(body, None)


def test_invalid_grpc_answer_is_reported() -> None:
    with pytest.raises(InferenceError, match="cannot be read"):
        from_grpc(b"\xff\xff")
