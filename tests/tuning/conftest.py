"""The application with a real Triton, and a deployed model that takes some work."""

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.support.api import Api, serving, settings_for


def layers_onnx(width: int = 64, depth: int = 4) -> bytes:
    """A few dense layers, batched: enough work that settings differ."""
    rng = np.random.default_rng(0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    nodes, weights, last = [], [], "x"
    for number in range(depth):
        weight = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(helper.make_tensor(f"w{number}", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True))
        out = "y" if number == depth - 1 else f"h{number}"
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [out]))
        last = out
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return data


def centred_onnx(width: int = 4) -> bytes:
    """y = x less the mean over the batch: declared as batched, but a row's answer depends on the rows beside it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "centred", [x], [y], [])
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return data


def crowded_onnx(limit: int, width: int = 4) -> bytes:
    """y = x, plus the number of rows of the batch beyond ``limit``: no request of at most that many rows shows it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    constants = [
        helper.make_tensor("first", TensorProto.INT64, [], [0]),
        helper.make_tensor("limit", TensorProto.FLOAT, [], [float(limit)]),
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["count"]),
        helper.make_node("Cast", ["count"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["rows", "limit"], ["beyond"]),
        helper.make_node("Relu", ["beyond"], ["excess"]),
        helper.make_node("Add", ["x", "excess"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "crowded", [x], [y], constants)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return data


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(settings_for(tmp_path_factory.mktemp("tuning"), embedded=True)) as running:
        yield running


@pytest.fixture(scope="module")
def layers(api: Api) -> str:
    """A deployed model that is Ready."""
    api.publish("layers", layers_onnx())
    assert api.deploy("layers:1", bake_seconds=0)["state"] == "succeeded"
    return "layers"
