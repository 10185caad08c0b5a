"""Reading of the trees of an XGBoost model from the JSON document that XGBoost writes."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from controlplane.errors import ConversionFailedError
from converters.trees import Link, TreeEnsemble

_LINKS: dict[str, tuple[Link, bool]] = {
    "binary:logistic": (Link.SIGMOID, True),
    "multi:softprob": (Link.SOFTMAX, True),
    "multi:softmax": (Link.SOFTMAX, True),
    "reg:logistic": (Link.SIGMOID, False),
    "binary:logitraw": (Link.IDENTITY, False),
    "binary:hinge": (Link.STEP, False),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), (Link.EXP, False)),
    **dict.fromkeys(
        (
            "reg:squarederror",
            "reg:linear",
            "reg:squaredlogerror",
            "reg:absoluteerror",
            "reg:pseudohubererror",
            "reg:quantileerror",
            "rank:pairwise",
            "rank:ndcg",
            "rank:map",
        ),
        (Link.IDENTITY, False),
    ),
}
"""By objective: the function from the sum to the prediction, and whether the model is a classifier."""
_LOGIT_BASE = frozenset({"binary:logistic", "reg:logistic"})


def xgboost_trees(document: Mapping[str, Any], name: str) -> TreeEnsemble:
    """Return the trees of an XGBoost model.

    Args:
        document: The model as `Booster.save_raw("json")` gives it.
        name: The file's name, for messages.

    Raises:
        ConversionFailedError: ONNX has no equivalent for the booster, the objective or a tree.
    """
    learner = document["learner"]
    parameters, booster = learner["learner_model_param"], learner["gradient_booster"]
    objective = str(learner["objective"]["name"])
    if booster["name"] not in {"gbtree", "dart"}:
        raise ConversionFailedError(
            f"{name} has the booster {booster['name']!r}; only the tree boosters gbtree and dart can be converted"
        )
    if objective not in _LINKS:
        raise ConversionFailedError(
            f"{name} has the objective {objective!r}, whose predictions cannot be converted; supported objectives: "
            f"{', '.join(sorted(_LINKS))}"
        )
    link, classifier = _LINKS[objective]
    model = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    targets = max(int(parameters["num_class"]), int(parameters.get("num_target", 1)), 1)
    base = _base(str(parameters["base_score"]), objective, targets)
    ensemble = TreeEnsemble(int(parameters["num_feature"]), base, False, link, classifier=classifier)
    scales = booster.get("weight_drop") or [1.0] * len(model["trees"])
    for number, (tree, target, scale) in enumerate(zip(model["trees"], model["tree_info"], scales, strict=True)):
        _add_tree(ensemble, number, tree, int(target), float(scale), name)
    return ensemble


def _base(text: str, objective: str, targets: int) -> list[float]:
    """Return the sums without trees. The file has predictions (``base_score``), a list since XGBoost 3.1."""
    scores = json.loads(text) if text.startswith("[") else [float(text)]
    values = [float(score) for score in scores]
    if objective in _LOGIT_BASE:
        values = [math.log(value / (1 - value)) if 0 < value < 1 else math.nan for value in values]
    elif _LINKS[objective][0] is Link.EXP:
        values = [math.log(value) if value > 0 else math.nan for value in values]
    if any(math.isnan(value) for value in values):
        raise ConversionFailedError(f"base_score is {text}, which is outside the range of the objective {objective}")
    return values * targets if len(values) == 1 else values


def _add_tree(
    ensemble: TreeEnsemble, number: int, tree: Mapping[str, Any], target: int, scale: float, name: str
) -> None:
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ConversionFailedError(
            f"{name} has trees with several values per leaf (multi_strategy multi_output_tree), which cannot be "
            "converted; train with multi_strategy one_output_per_tree"
        )
    left, right, missing_left = tree["left_children"], tree["right_children"], tree["default_left"]
    columns, conditions = tree["split_indices"], tree["split_conditions"]
    kinds = tree.get("split_type") or [0] * len(left)
    waiting = [0]
    while waiting:
        node = waiting.pop()
        if left[node] == -1:
            ensemble.add_leaf(number, node, target, float(conditions[node]) * scale)
            continue
        if kinds[node]:
            raise ConversionFailedError(
                f"{name} has categorical splits (feature {columns[node]}), which cannot be converted; encode the "
                "categories as numbers, for example one-hot, and train without enable_categorical"
            )
        ensemble.add_split(
            number,
            node,
            int(columns[node]),
            float(np.float32(conditions[node])),  # the file has the shortest decimals of an FP32
            (int(left[node]), int(right[node])),
            missing_first=bool(missing_left[node]),
        )
        waiting += [right[node], left[node]]
