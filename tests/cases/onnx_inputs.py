"""Small ONNX files that are unusual: missing shapes, odd types, tied dimensions, large outputs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

Values = Sequence[onnx.ValueInfoProto]


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
    ir: int = 9,
) -> onnx.ModelProto:
    graph = h.make_graph(list(nodes), "case", list(inputs), list(outputs), list(initializers))
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=ir)


_x = h.make_tensor_value_info("x", T.FLOAT, ["n", 3])


def output_without_shape() -> onnx.ModelProto:
    return _model([h.make_node("Relu", ["x"], ["y"])], [_x], [h.make_tensor_value_info("y", T.FLOAT, None)])


def output_without_rank() -> onnx.ModelProto:
    """Shape inference cannot know the rank: it does not know how many sizes Compress selects."""
    nodes = [
        h.make_node("Shape", ["x"], ["s"]),
        h.make_node("Compress", ["s", "both"], ["t"]),
        h.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    both = nh.from_array(np.array([True, True]), "both")
    return _model(nodes, [_x], [h.make_tensor_value_info("y", T.FLOAT, None)], [both])


def input_without_shape() -> onnx.ModelProto:
    x, y = (h.make_tensor_value_info(name, T.FLOAT, None) for name in "xy")
    return _model([h.make_node("Relu", ["x"], ["y"])], [x], [y])


def rank_depends_on_data() -> onnx.ModelProto:
    def branch(operator: str, name: str, **attributes: Any) -> onnx.GraphProto:
        output = h.make_tensor_value_info(name, T.FLOAT, None)
        return h.make_graph([h.make_node(operator, ["x"], [name], **attributes)], name, [], [output])

    nodes = [
        h.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        h.make_node("Greater", ["s", "z"], ["c"]),
        h.make_node(
            "If", ["c"], ["y"], then_branch=branch("Relu", "a"), else_branch=branch("ReduceSum", "b", keepdims=0)
        ),
    ]
    zero = nh.from_array(np.array(0, np.float32), "z")
    return _model(nodes, [_x], [h.make_tensor_value_info("y", T.FLOAT, None)], [zero])


def no_inputs() -> onnx.ModelProto:
    constant = h.make_node("Constant", [], ["y"], value=nh.from_array(np.ones((2, 2), np.float32)))
    return _model([constant], [], [h.make_tensor_value_info("y", T.FLOAT, [2, 2])])


def names_of_600_letters() -> onnx.ModelProto:
    return _long_names(600)


def names_of_2000_letters() -> onnx.ModelProto:
    return _long_names(2000)


def _long_names(count: int) -> onnx.ModelProto:
    x, y = (h.make_tensor_value_info(letter * count, T.FLOAT, ["n", 3]) for letter in "xy")
    return _model([h.make_node("Relu", ["x" * count], ["y" * count])], [x], [y])


def output_of_64_mb() -> onnx.ModelProto:
    """Every row of the output has 64 MB."""
    repeats = nh.from_array(np.array([1, 16_000_000], np.int64), "r")
    x = h.make_tensor_value_info("x", T.FLOAT, ["n", 1])
    y = h.make_tensor_value_info("y", T.FLOAT, ["n", "k"])
    return _model([h.make_node("Tile", ["x", "r"], ["y"])], [x], [y], [repeats])


def sequence_output() -> onnx.ModelProto:
    y = h.make_tensor_sequence_value_info("y", T.FLOAT, None)
    return _model([h.make_node("SplitToSequence", ["x"], ["y"], axis=0)], [_x], [y])


def zip_map_output() -> onnx.ModelProto:
    """The output that scikit-learn's converters write for probabilities by default."""
    node = h.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    kind = h.make_sequence_type_proto(h.make_map_type_proto(T.INT64, h.make_tensor_type_proto(T.FLOAT, [])))
    model = _model([node], [_x], [h.make_value_info("p", kind)])
    model.opset_import.append(h.make_opsetid("ai.onnx.ml", 1))
    return model


def optional_input() -> onnx.ModelProto:
    optional = h.make_value_info("o", h.make_optional_type_proto(h.make_tensor_type_proto(T.FLOAT, [2])))
    nodes = [h.make_node("OptionalHasElement", ["o"], ["b"]), h.make_node("Identity", ["x"], ["y"])]
    outputs = [h.make_tensor_value_info("y", T.FLOAT, ["n", 3]), h.make_tensor_value_info("b", T.BOOL, [])]
    return _model(nodes, [_x, optional], outputs, opset=18)


def bf16_tensors() -> onnx.ModelProto:
    return _identity(T.BFLOAT16, 17)


def fp8_tensors() -> onnx.ModelProto:
    return _identity(T.FLOAT8E4M3FN, 21)


def _identity(kind: int, opset: int) -> onnx.ModelProto:
    x, y = (h.make_tensor_value_info(name, kind, ["n", 4]) for name in "xy")
    return _model([h.make_node("Identity", ["x"], ["y"])], [x], [y], opset=opset, ir=10)


def tied_dimensions() -> onnx.ModelProto:
    a, b, y = (h.make_tensor_value_info(name, T.FLOAT, ["n", last]) for name, last in (("a", "n"), ("b", 2), ("y", 2)))
    return _model([h.make_node("MatMul", ["a", "b"], ["y"])], [a, b], [y])


def sums_of_dimensions() -> onnx.ModelProto:
    """A dimension that is a sum of others, as decoders with a cache have it."""
    past = h.make_tensor_value_info("past", T.FLOAT, ["batch", "past"])
    new = h.make_tensor_value_info("new", T.FLOAT, ["batch", "new"])
    mask = h.make_tensor_value_info("mask", T.FLOAT, ["batch", "past + new"])
    y = h.make_tensor_value_info("y", T.FLOAT, ["batch", "past + new"])
    nodes = [h.make_node("Concat", ["past", "new"], ["all"], axis=1), h.make_node("Mul", ["all", "mask"], ["y"])]
    return _model(nodes, [past, new, mask], [y])


def fixed_size_inside() -> onnx.ModelProto:
    nodes = [
        h.make_node("Cast", ["img"], ["f"], to=1),
        h.make_node("Resize", ["f", "", "", "sz"], ["y"], mode="linear"),
    ]
    image = h.make_tensor_value_info("img", T.UINT8, ["n", 3, "h", "w"])
    size = nh.from_array(np.array([1, 3, 8, 8], np.int64), "sz")
    return _model(nodes, [image], [h.make_tensor_value_info("y", T.FLOAT, ["n", 3, 8, 8])], [size])


def small_vocabulary() -> onnx.ModelProto:
    """An embedding of one token: every other index is out of its bounds."""
    table = nh.from_array(np.ones((1, 2), np.float32), "table")
    ids = h.make_tensor_value_info("ids", T.INT32, ["n", "seq"])
    nodes = [h.make_node("Cast", ["ids"], ["long"], to=T.INT64), h.make_node("Gather", ["table", "long"], ["y"])]
    return _model(nodes, [ids], [h.make_tensor_value_info("y", T.FLOAT, ["n", "seq", 2])], [table])


def wrong_output_shape() -> onnx.ModelProto:
    """ONNX Runtime warns about an output whose declared shape is wrong, but returns it."""
    x = h.make_tensor_value_info("x", T.FLOAT, [4, 3])
    axes = h.make_tensor_value_info("axes", T.INT64, [1])
    nodes = [h.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    return _model(nodes, [x, axes], [h.make_tensor_value_info("y", T.FLOAT, [7])])


def mixed_rows() -> onnx.ModelProto:
    """Each row's answer depends on the others: x minus its mean over the batch."""
    nodes = [h.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), h.make_node("Sub", ["x", "m"], ["y"])]
    return _model(nodes, [_x], [h.make_tensor_value_info("y", T.FLOAT, ["n", 3])])


def write(folder: Path, make: Callable[[], onnx.ModelProto]) -> Path:
    """Write a model and return its path."""
    path = folder / f"{make.__name__}.onnx"
    onnx.save(make(), path)
    return path
