"""Ensembles of decision trees, independent of the library that trained them, and their ONNX graph."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from controlplane.domain.arrays import Array

TREES_OPSET = 17
"""The newest opset that onnxruntime 1.20 and the Triton images of 2024 and later all support."""
_ML_OPSET = 3
_IR_VERSION = 8
_BATCH = "batch"
# Tensors inside the graph; the prefix keeps them apart from the names of inputs and outputs.
_SUM, _SECOND = "trees/sum", "trees/second"
_SCALE, _ZERO, _HALF, _ONE, _COLUMN_AXIS = (f"trees/{word}" for word in ("scale", "zero", "half", "one", "axis"))


class Link(StrEnum):
    """Function from the sum of the trees to the prediction."""

    IDENTITY = "identity"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    EXP = "exp"
    LOG1P_EXP = "log1p-exp"
    SIGNED_SQUARE = "signed-square"
    STEP = "step"


@dataclass(slots=True)
class TreeEnsemble:
    """Trees as flat lists of nodes, as ONNX's TreeEnsembleRegressor takes them.

    Attributes:
        features: Number of columns of the input.
        base: Value per target to which the leaves are added.
        less_or_equal: Whether a row goes to the first child if ``x <= threshold``; if false, if ``x < threshold``.
        link: Function from the sum to the prediction.
        scale: Factor on the sum before a sigmoid.
        classifier: Whether the outputs are ``label`` and ``probabilities``; if false, ``variable``.
        nodes: Lists of the ``nodes_*`` attributes, by the rest of their names.
        leaves: Lists of the ``target_*`` attributes, by the rest of their names.
    """

    features: int
    base: list[float]
    less_or_equal: bool
    link: Link = Link.IDENTITY
    scale: float = 1.0
    classifier: bool = False
    nodes: dict[str, list[Any]] = field(default_factory=dict)
    leaves: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
        self.nodes = {name: [] for name in (*names, "missing_value_tracks_true")}
        self.leaves = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    @property
    def targets(self) -> int:
        """Number of sums: one, or one per class or target."""
        return len(self.base)

    @property
    def classes(self) -> int:
        """Number of classes of a classifier."""
        return max(self.targets, 2)

    def add_split(
        self, tree: int, node: int, feature: int, threshold: float, children: tuple[int, int], *, missing_first: bool
    ) -> None:
        """Add a split; ``children`` are the nodes for rows that fulfil its condition and for all others.

        Thresholds are rounded down to FP32. For FP32 inputs this changes no decision of ``x <= threshold``.
        """
        rounded = np.float32(threshold)
        if float(rounded) > threshold:
            rounded = np.nextafter(rounded, np.float32(-np.inf))
        mode = "BRANCH_LEQ" if self.less_or_equal else "BRANCH_LT"
        self._add_node(tree, node, feature, mode, float(rounded), children, missing_first)

    def add_leaf(self, tree: int, node: int, target: int, value: float) -> None:
        """Add a leaf, whose value is added to a target. The root of a tree without splits goes to ``base``."""
        if node == 0:
            self.base[target] += value
            return
        self._add_node(tree, node, 0, "LEAF", 0.0, (0, 0), False)
        for name, item in (("treeids", tree), ("nodeids", node), ("ids", target), ("weights", value)):
            self.leaves[name].append(item)

    def _add_node(
        self, tree: int, node: int, feature: int, mode: str, value: float, children: tuple[int, int], missing: bool
    ) -> None:
        row = (tree, node, feature, mode, value, *children, int(missing))
        for items, item in zip(self.nodes.values(), row, strict=True):
            items.append(item)

    def boundary_rows(self, count: int, random: np.random.Generator) -> Array:
        """Return rows whose values lie on, just beside and around the thresholds of their columns."""
        table = random.standard_normal((count, self.features)).astype(np.float32)
        modes, values = np.asarray(self.nodes["modes"]), np.asarray(self.nodes["values"], dtype=np.float32)
        columns = np.asarray(self.nodes["featureids"])
        for column in np.unique(columns[modes != "LEAF"]):
            thresholds = values[(columns == column) & (modes != "LEAF")]
            spread = float(thresholds.max() - thresholds.min()) or abs(float(thresholds[0])) or 1.0
            drawn = random.choice(thresholds, count)
            nudges = random.integers(0, 4, count)
            drawn = np.where(nudges == 1, np.nextafter(drawn, np.float32(np.inf)), drawn)
            drawn = np.where(nudges == 2, np.nextafter(drawn, np.float32(-np.inf)), drawn)
            around = drawn + np.float32(spread / 4) * random.standard_normal(count).astype(np.float32)
            table[:, column] = np.where(nudges == 3, around, drawn)
        return table

    def to_onnx(self, input_name: str, output_names: list[str]) -> ModelProto:
        """Return the model; ``output_names`` are those of ``label`` and ``probabilities``, or of ``variable``."""
        scores = output_names[-1] if not self.classifier or self.targets > 1 else _SECOND
        nodes = [self._ensemble(input_name), *_LINKS[self.link](scores)]
        width = self.classes if self.classifier else self.targets
        outputs = [helper.make_tensor_value_info(output_names[-1], TensorProto.FLOAT, [_BATCH, width])]
        if self.classifier:
            nodes += _label(output_names[0], scores) if self.targets > 1 else _two_classes(*output_names)
            outputs.insert(0, helper.make_tensor_value_info(output_names[0], TensorProto.INT64, [_BATCH]))
        graph = helper.make_graph(
            nodes,
            "trees",
            [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [_BATCH, self.features])],
            outputs,
            [
                helper.make_tensor(name, kind, [1], [value])
                for name, (kind, value) in self._constants.items()
                if any(name in node.input for node in nodes)
            ],
        )
        opsets = [helper.make_opsetid("", TREES_OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="tritonctl")

    @property
    def _constants(self) -> dict[str, tuple[int, float]]:
        floats = {_SCALE: self.scale, _ZERO: 0.0, _HALF: 0.5, _ONE: 1.0}
        constants = {name: (int(TensorProto.FLOAT), value) for name, value in floats.items()}
        return {**constants, _COLUMN_AXIS: (int(TensorProto.INT64), 1)}

    def _ensemble(self, input_name: str) -> NodeProto:
        nodes, leaves = self.nodes, self.leaves
        if not leaves["weights"]:  # every tree is a single leaf: one split whose leaves add nothing
            constant = TreeEnsemble(self.features, self.base, self.less_or_equal)
            constant.add_split(0, 0, 0, 0.0, (1, 2), missing_first=True)
            constant.add_leaf(0, 1, 0, 0.0)
            constant.add_leaf(0, 2, 0, 0.0)
            nodes, leaves = constant.nodes, constant.leaves
        attributes: dict[str, Any] = {
            **{f"nodes_{name}": items for name, items in nodes.items()},
            **{f"target_{name}": items for name, items in leaves.items()},
            "n_targets": self.targets,
            "aggregate_function": "SUM",
            "post_transform": "NONE",
            "base_values": self.base,
        }
        return helper.make_node("TreeEnsembleRegressor", [input_name], [_SUM], domain="ai.onnx.ml", **attributes)


def _label(label: str, scores: str) -> list[NodeProto]:
    return [helper.make_node("ArgMax", [scores], [label], axis=1, keepdims=0)]


def _two_classes(label: str, probabilities: str) -> list[NodeProto]:
    make = helper.make_node
    return [
        make("Sub", [_ONE, _SECOND], ["trees/first"]),
        make("Concat", ["trees/first", _SECOND], [probabilities], axis=1),
        make("Greater", [_SECOND, _HALF], ["trees/above"]),
        make("Squeeze", ["trees/above", _COLUMN_AXIS], ["trees/row"]),
        make("Cast", ["trees/row"], [label], to=TensorProto.INT64),
    ]


def _sigmoid(output: str) -> list[NodeProto]:
    scaled = helper.make_node("Mul", [_SUM, _SCALE], ["trees/scaled"])
    return [scaled, helper.make_node("Sigmoid", ["trees/scaled"], [output])]


def _signed_square(output: str) -> list[NodeProto]:
    size = helper.make_node("Abs", [_SUM], ["trees/size"])
    return [size, helper.make_node("Mul", [_SUM, "trees/size"], [output])]


def _step(output: str) -> list[NodeProto]:
    above = helper.make_node("Greater", [_SUM, _ZERO], ["trees/positive"])
    return [above, helper.make_node("Cast", ["trees/positive"], [output], to=TensorProto.FLOAT)]


_LINKS: dict[Link, Callable[[str], list[NodeProto]]] = {
    Link.IDENTITY: lambda output: [helper.make_node("Identity", [_SUM], [output])],
    Link.SIGMOID: _sigmoid,
    Link.SOFTMAX: lambda output: [helper.make_node("Softmax", [_SUM], [output], axis=1)],
    Link.EXP: lambda output: [helper.make_node("Exp", [_SUM], [output])],
    Link.LOG1P_EXP: lambda output: [helper.make_node("Softplus", [_SUM], [output])],
    Link.SIGNED_SQUARE: _signed_square,
    Link.STEP: _step,
}
