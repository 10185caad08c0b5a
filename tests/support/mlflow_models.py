"""A program that logs small models with MLflow's own client and prints the run's identifier: ``python FILE``."""

from typing import Any

import lightgbm
import mlflow
import numpy as np
import onnx
import sklearn.linear_model
import torch
import xgboost
from mlflow.models import infer_signature
from onnx import TensorProto, helper

TABLE = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
CLASSES = (TABLE.sum(axis=1) > 0).astype(int)


def relu() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def log() -> str:
    # Without `pip_requirements`, MLflow starts a process for each model to find out what it imports.
    more: Any = {"pip_requirements": []}
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    with mlflow.start_run(run_name="training") as run:
        mlflow.set_tag("git", "1a2b3c4")
        mlflow.onnx.log_model(relu(), name="relu", registered_model_name="relu", **more)
        mlflow.pytorch.log_model(
            net,
            name="net",
            registered_model_name="net",
            signature=infer_signature(TABLE, TABLE[:, :3]),
            serialization_format="pickle",
            **more,
        )
        linear = sklearn.linear_model.LogisticRegression().fit(TABLE, CLASSES)
        mlflow.sklearn.log_model(
            linear, name="linear", registered_model_name="linear", serialization_format="cloudpickle", **more
        )
        trees = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(TABLE, label=CLASSES), 4)
        mlflow.xgboost.log_model(trees, name="trees", registered_model_name="xgb-trees", **more)
        settings = {"objective": "binary", "verbose": -1, "min_data_in_leaf": 2}
        boosted = lightgbm.train(settings, lightgbm.Dataset(TABLE, label=CLASSES), 4)
        mlflow.lightgbm.log_model(boosted, name="more-trees", registered_model_name="lgb-trees", **more)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("relu", "champion", 1)
    client.set_model_version_tag("relu", "1", "approved", "yes")
    return str(run.info.run_id)


if __name__ == "__main__":
    print(log())
