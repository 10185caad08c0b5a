"""A program that saves small models with MLflow's own client, without a server: ``python FILE FOLDER``."""

import sys
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import onnx
from onnx import TensorProto, helper

TABLE = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)


def affine(factor: float) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    weight = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "affine", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    more: Any = {"pip_requirements": []}
    for number in (2, 3):
        mlflow.onnx.save_model(affine(number), str(folder / f"times{number}"), **more)
    settings = {"objective": "regression", "verbose": -1, "min_data_in_leaf": 2}
    trees = lightgbm.train(settings, lightgbm.Dataset(TABLE, label=TABLE.sum(axis=1)), 4)
    mlflow.lightgbm.save_model(trees, str(folder / "trees"), **more)
    np.save(folder / "expected.npy", trees.predict(TABLE))
