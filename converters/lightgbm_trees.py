"""Reading of the trees of a LightGBM model from its text.

The rules are those of LightGBM 4's ``Tree::NumericalDecision`` and of the objectives' ``ConvertOutput``.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from controlplane.errors import ConversionFailedError, InvalidArtifactError
from converters.trees import Link, TreeEnsemble

_LINKS: dict[str, tuple[Link, bool]] = {
    "binary": (Link.SIGMOID, True),
    "multiclass": (Link.SOFTMAX, True),
    "multiclassova": (Link.SIGMOID, True),
    "cross_entropy": (Link.SIGMOID, False),
    "cross_entropy_lambda": (Link.LOG1P_EXP, False),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), (Link.EXP, False)),
    **dict.fromkeys(
        ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"),
        (Link.IDENTITY, False),
    ),
    "": (Link.IDENTITY, False),  # a custom objective: LightGBM predicts the sum
}
"""By objective: the function from the sum to the prediction, and whether the model is a classifier."""

_CATEGORICAL, _MISSING_FIRST = 1, 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
_ZERO = float(np.float32(1e-35))
"""LightGBM predicts with 0 for every value from ``-_ZERO`` to ``_ZERO``."""


def lightgbm_trees(text: str, name: str) -> TreeEnsemble:
    """Return the trees of a LightGBM model.

    Args:
        text: The model's text, as LightGBM writes it.
        name: The file's name, for messages.

    Raises:
        ConversionFailedError: ONNX has no equivalent for the objective or a tree.
        InvalidArtifactError: The text is damaged.
    """
    sections = _sections(text)
    try:
        header = next(sections)
        ensemble = _empty(header, name)
        targets, trees = ensemble.targets, list(sections)
        share = targets / len(trees) if "average_output" in header and trees else 1.0
        for number, tree in enumerate(trees):
            _add_tree(ensemble, number, tree, number % targets, share, name)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise InvalidArtifactError(f"{name} is a damaged LightGBM model: {error}") from error
    return ensemble


def _sections(text: str) -> Iterator[dict[str, str]]:
    """Yield the header and each tree as values by key."""
    body, _, _ = text.partition("\nend of trees")
    for section in body.split("\nTree="):
        pairs = (line.partition("=") for line in section.splitlines())
        yield {key: value for key, _, value in pairs}


def _empty(header: Mapping[str, str], name: str) -> TreeEnsemble:
    objective, *details = header.get("objective", "").split() or [""]
    if objective not in _LINKS:
        raise ConversionFailedError(
            f"{name} has the objective {objective!r}, whose predictions cannot be converted; supported objectives: "
            f"{', '.join(sorted(filter(None, _LINKS)))}"
        )
    link, classifier = _LINKS[objective]
    settings = dict(detail.partition(":")[::2] for detail in details)
    if "sqrt" in settings:
        link = Link.SIGNED_SQUARE
    return TreeEnsemble(
        int(header["max_feature_idx"]) + 1,
        [0.0] * int(header["num_tree_per_iteration"]),
        True,
        link,
        scale=float(settings.get("sigmoid", 1.0)),
        classifier=classifier,
    )


def _add_tree(
    ensemble: TreeEnsemble, number: int, tree: Mapping[str, str], target: int, share: float, name: str
) -> None:
    if tree.get("is_linear", "0") != "0":
        raise ConversionFailedError(
            f"{name} has linear models in its leaves (linear_tree), which cannot be converted; train without it"
        )
    values = [float(value) * share for value in tree["leaf_value"].split()]
    if len(values) == 1:
        ensemble.add_leaf(number, 0, target, values[0])
        return
    kinds, columns = _integers(tree["decision_type"]), _integers(tree["split_feature"])
    thresholds = [float(value) for value in tree["threshold"].split()]
    children = list(zip(_integers(tree["left_child"]), _integers(tree["right_child"]), strict=True))
    for node, (kind, threshold) in enumerate(zip(kinds, thresholds, strict=True)):
        first, second = (child if child >= 0 else len(kinds) + ~child for child in children[node])
        ensemble.add_split(
            number,
            node,
            columns[node],
            _beside_zero(threshold),
            (first, second),
            missing_first=_missing_first(kind, threshold, columns[node], name),
        )
    for leaf, value in enumerate(values):
        ensemble.add_leaf(number, len(kinds) + leaf, target, value)


def _missing_first(kind: int, threshold: float, column: int, name: str) -> bool:
    """Return whether a missing value (NaN) goes to the first child."""
    if kind & _CATEGORICAL:
        raise ConversionFailedError(
            f"{name} has categorical splits (feature {column}), which cannot be converted; encode the categories as "
            "numbers, for example one-hot, and train without categorical_feature"
        )
    zero_first, missing_first = threshold >= 0, bool(kind & _MISSING_FIRST)
    missing = kind >> 2 & 3
    if missing == _MISSING_NAN:
        return missing_first
    if missing == _MISSING_ZERO and missing_first != zero_first:
        raise ConversionFailedError(
            f"{name} treats zeros as missing values (zero_as_missing), which ONNX cannot; train without it"
        )
    return zero_first  # LightGBM replaces NaN with zero


def _beside_zero(threshold: float) -> float:
    """Return the threshold that decides for values near zero as LightGBM does for 0."""
    if -_ZERO <= threshold < 0:
        return float(np.nextafter(np.float32(-_ZERO), np.float32(-1)))
    return _ZERO if 0 <= threshold < _ZERO else threshold


def _integers(text: str) -> list[int]:
    return [int(value) for value in text.split()]
