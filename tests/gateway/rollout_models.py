"""Versions of one model: the first, and those that a rollout has to tell apart. All pass their proof."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

WIDTH = 4
_HEAVY = 1000
"""Side of the square matrices that the slow version multiplies: some 50 ms of a core."""


def model(path: Path, *, scale: float = 1.0, slow: bool = False, fails_above: float | None = None) -> bytes:
    """Return ``y = x * scale`` as an ONNX file.

    Args:
        path: Where it may be written.
        scale: The factor.
        slow: Multiply large matrices on the side.
        fails_above: Fail for inputs whose first element is larger than this.
    """
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])
    constants = [helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale])]
    nodes = [helper.make_node("Mul", ["x", "scale"], ["product"])]
    last = "product"
    if slow or fails_above is not None:
        constants += [
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
            helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
        ]
        nodes += [
            helper.make_node("Reshape", ["x", "flat"], ["row"]),
            helper.make_node("Gather", ["row", "first"], ["one"]),  # depends on the input, so nothing is folded away
        ]
    if slow:
        constants += [
            helper.make_tensor("side", TensorProto.INT64, [2], [_HEAVY, _HEAVY]),
            helper.make_tensor("nothing", TensorProto.FLOAT, [1], [0.0]),
        ]
        nodes += [
            helper.make_node("Expand", ["one", "side"], ["matrix"]),
            helper.make_node("MatMul", ["matrix", "matrix"], ["squared"]),
            helper.make_node("ReduceMax", ["squared"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "nothing"], ["zero"]),
            helper.make_node("Add", [last, "zero"], ["slow"]),
        ]
        last = "slow"
    if fails_above is not None:
        constants += [
            helper.make_tensor("limit", TensorProto.FLOAT, [1], [fails_above]),
            helper.make_tensor("table", TensorProto.FLOAT, [1], [0.0]),
        ]
        nodes += [
            helper.make_node("Greater", ["one", "limit"], ["above"]),
            helper.make_node("Cast", ["above"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["zeros"]),  # index 1 is out of bounds: the request fails
            helper.make_node("Add", [last, "zeros"], ["checked"]),
        ]
        last = "checked"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(nodes, "rollout", [x], [y], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())
    return path.read_bytes()


def row(chance: np.random.Generator) -> NDArray[np.float32]:
    """An input whose first element is above 0.9 in one of ten cases."""
    return chance.random((1, WIDTH), dtype=np.float32)
