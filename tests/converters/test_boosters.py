"""XGBoost and LightGBM models become ONNX models that decide as the library does, also at the thresholds."""

import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost

from controlplane.domain.manifest import Format
from controlplane.domain.samples import check_samples
from controlplane.errors import ConversionFailedError, InvalidArtifactError, InvalidInputError, ParityError
from converters.base import ConversionRequest
from converters.from_boosters import XGBoostOriginal, XGBoostToOnnx
from converters.inspect import inspect_artifact
from converters.jobs import ConvertJob, ValidateJob
from converters.options import ConversionOptions
from converters.runtimes import OnnxRuntime

RANDOM = np.random.default_rng(5)
TABLE = (RANDOM.standard_normal((200, 4)) * 3).astype(np.float32)
TABLE[::7, 1] = np.nan
TABLE[::5, 2] = 0
CLASSES = (np.nan_to_num(TABLE).sum(axis=1) > 0).astype(int) + (TABLE[:, 0] > 2)
BINARY = (CLASSES > 0).astype(int)
VALUES = TABLE[:, 0] + BINARY
CATEGORIES = np.stack([RANDOM.permutation(np.arange(200) % 12).astype(np.float64), VALUES], axis=1)

CLASSIFIER = {"label": ("INT64", (-1,)), "probabilities": ("FP32", (-1, 2))}
THREE_CLASSES = {"label": ("INT64", (-1,)), "probabilities": ("FP32", (-1, 3))}
VARIABLE = {"variable": ("FP32", (-1, 1))}


def xgb(path: Path, target: Any, *, data: Any = TABLE, rounds: int = 8, data_options: Any = None, **parameters) -> Path:
    matrix = xgboost.DMatrix(data, label=target, **(data_options or {}))
    depth = {} if parameters.get("booster") == "gblinear" else {"max_depth": 4}
    xgboost.train({"nthread": 1, **depth, **parameters}, matrix, rounds).save_model(path)
    return path


def lgb(path: Path, target: Any, *, data: Any = TABLE, rounds: int = 8, data_options: Any = None, **parameters) -> Path:
    matrix = lightgbm.Dataset(data.astype(np.float64), label=target, **(data_options or {}))
    settings = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 2, **parameters}
    lightgbm.train(settings, matrix, rounds).save_model(path)
    return path


@pytest.fixture
def convert(do, tmp_path):
    def run(source: Path, **options):
        job = ConvertJob(
            source=source, options=ConversionOptions(target="onnx", **options), output_dir=tmp_path / "out"
        )
        result = do(job)
        check_samples(result.samples, result.signature)
        return result

    return run


def answers(result, table: Any) -> dict[str, Any]:
    return OnnxRuntime(result.output_dir / "model.onnx").run({result.signature.inputs[0].name: table})


def outputs(result) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {spec.name: (spec.dtype.value, spec.shape) for spec in result.signature.outputs}


@pytest.mark.parametrize(
    ("target", "parameters", "expected"),
    [
        (BINARY, {"objective": "binary:logistic"}, CLASSIFIER),
        (BINARY, {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.5, "base_score": 0.1}, CLASSIFIER),
        (CLASSES, {"objective": "multi:softprob", "num_class": 3, "num_parallel_tree": 2}, THREE_CLASSES),
        (CLASSES, {"objective": "multi:softmax", "num_class": 3}, THREE_CLASSES),
        (VALUES, {"objective": "reg:squarederror"}, VARIABLE),
        (BINARY, {"objective": "binary:logitraw"}, VARIABLE),
        (BINARY, {"objective": "binary:hinge"}, VARIABLE),
        (CLASSES, {"objective": "count:poisson"}, VARIABLE),
        (VALUES, {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]}, {"variable": ("FP32", (-1, 2))}),
        (CLASSES, {"objective": "rank:ndcg", "data_options": {"group": [100, 100]}}, VARIABLE),
        (VALUES, {"objective": "reg:squarederror", "gamma": 1e9}, VARIABLE),
    ],
    ids=lambda value: value.get("objective") if isinstance(value, dict) else None,
)
def test_xgboost_model_becomes_onnx(convert, tmp_path: Path, target, parameters, expected) -> None:
    path = xgb(tmp_path / ("m.ubj" if "base_score" in parameters else "m.json"), target, **parameters)
    result = convert(path)
    assert outputs(result) == expected
    assert result.signature.batched
    assert result.rows_independent
    assert result.parity.generated
    booster = xgboost.Booster(model_file=path)
    predicted = booster.predict(xgboost.DMatrix(TABLE))
    answer = answers(result, TABLE)
    if parameters["objective"] == "multi:softmax":
        np.testing.assert_array_equal(answer["label"], predicted)
    elif "label" in answer:
        np.testing.assert_allclose(
            answer["probabilities"].reshape(200, -1)[:, -1], predicted.reshape(200, -1)[:, -1], atol=1e-5
        )
    else:
        np.testing.assert_allclose(answer["variable"].ravel(), predicted.ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "parameters", "expected"),
    [
        (BINARY, {"objective": "binary", "sigmoid": 2.5}, CLASSIFIER),
        (BINARY, {"objective": "binary", "boosting": "rf", "bagging_fraction": 0.6, "bagging_freq": 1}, CLASSIFIER),
        (BINARY, {"objective": "binary", "use_missing": False}, CLASSIFIER),
        (CLASSES, {"objective": "multiclass", "num_class": 3}, THREE_CLASSES),
        (CLASSES, {"objective": "multiclassova", "num_class": 3}, THREE_CLASSES),
        (VALUES, {"objective": "regression", "reg_sqrt": True}, VARIABLE),
        (CLASSES, {"objective": "tweedie"}, VARIABLE),
        (BINARY, {"objective": "cross_entropy_lambda"}, VARIABLE),
        (CLASSES, {"objective": "lambdarank", "data_options": {"group": [100, 100]}}, VARIABLE),
        (VALUES, {"objective": "regression", "min_data_in_leaf": 1000}, VARIABLE),
    ],
    ids=lambda value: value.get("objective") if isinstance(value, dict) else None,
)
def test_lightgbm_model_becomes_onnx(convert, tmp_path: Path, target, parameters, expected) -> None:
    path = lgb(tmp_path / "m.txt", target, **parameters)
    result = convert(path)
    assert outputs(result) == expected
    assert result.signature.batched
    predicted = np.asarray(lightgbm.Booster(model_file=path).predict(TABLE.astype(np.float64)))
    answer = answers(result, TABLE)
    if "label" in answer:
        np.testing.assert_allclose(
            answer["probabilities"].reshape(200, -1)[:, -1], predicted.reshape(200, -1)[:, -1], atol=1e-5
        )
    else:
        np.testing.assert_allclose(answer["variable"].ravel(), predicted.ravel(), rtol=1e-4, atol=1e-5)


def test_thresholds_and_missing_values_are_compared(tmp_path: Path) -> None:
    """A converter that decides differently only where a value equals a threshold is found."""
    original = XGBoostOriginal(xgb(tmp_path / "m.json", BINARY, objective="binary:logistic"))
    assert original.inputs
    assert original.signature
    sample = original.suggest_inputs(original.inputs, ConversionOptions(target="onnx"))
    assert [len(one["X"]) for one in sample] == [8, 1, 7]
    assert np.isnan(sample[-1]["X"]).any()
    request = ConversionRequest(
        original.signature, sample, ConversionOptions(target="onnx"), tmp_path / "model.onnx", lambda *_: None
    )
    assert XGBoostToOnnx().convert(original, request) == ()
    modes, missing = original.trees.nodes["modes"], original.trees.nodes["missing_value_tracks_true"]
    original.trees.nodes["modes"] = ["BRANCH_LEQ" if mode == "BRANCH_LT" else mode for mode in modes]
    with pytest.raises(ParityError, match="output 'probabilities'"):
        XGBoostToOnnx().convert(original, request)
    original.trees.nodes["modes"] = modes
    original.trees.nodes["missing_value_tracks_true"] = [1 - item for item in missing]
    with pytest.raises(ParityError, match="output 'probabilities'"):
        XGBoostToOnnx().convert(original, request)


def test_options_apply_to_boosters(convert, tmp_path: Path) -> None:
    path = xgb(tmp_path / "m.json", BINARY, objective="binary:logistic", data_options={"feature_names": list("abcd")})
    inputs = [{"name": "row", "dtype": "FP32", "shape": [-1, 4]}]
    result = convert(path, inputs=inputs, output_names=("class", "scores"), seed=3)
    assert outputs(result) == {"class": ("INT64", (-1,)), "scores": ("FP32", (-1, 2))}
    assert result.parity.seed == 3
    assert result.environment["lightgbm"] == lightgbm.__version__
    assert result.converter == "xgboost-to-onnx"
    (result.output_dir / "model.onnx").unlink()
    with pytest.raises(ConversionFailedError, match="takes one table with 4 columns, not row"):
        convert(path, inputs=[{"name": "row", "dtype": "FP32", "shape": [-1, 5]}])
    with pytest.raises(InvalidInputError, match=r"takes one input FP32\[-1,4\]"):
        convert(path, inputs=[{"name": "row", "dtype": "FP64", "shape": [-1, 4]}])


def test_files_are_recognized_by_content(tmp_path: Path, do) -> None:
    for kind in ("json", "ubj"):
        xgb(tmp_path / f"m.{kind}", BINARY, objective="binary:logistic").rename(tmp_path / f"{kind}.model")
        found = inspect_artifact(tmp_path / f"{kind}.model")
        assert (found.format, found.attributes["container"]) == (Format.XGBOOST, kind)
    found = inspect_artifact(tmp_path / "json.model")
    assert {key: found.attributes[key] for key in ("objective", "features", "trees", "booster")} == {
        "objective": "binary:logistic",
        "features": 4,
        "trees": 8,
        "booster": "gbtree",
    }
    found = inspect_artifact(lgb(tmp_path / "m.txt", CLASSES, objective="multiclass", num_class=3))
    assert found.format is Format.LIGHTGBM
    assert found.attributes == {"objective": "multiclass", "features": 4, "trees": 24, "version": "v4"}
    report = do(ValidateJob(source=tmp_path / "m.txt"))
    assert report.format is Format.LIGHTGBM


def test_damaged_files_are_refused(convert, tmp_path: Path) -> None:
    for name, path in (
        ("XGBoost", xgb(tmp_path / "m.json", BINARY, objective="binary:logistic")),
        ("LightGBM", lgb(tmp_path / "m.txt", BINARY, objective="binary")),
    ):
        whole = path.read_bytes()
        for share in (0.3, 0.6):
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(InvalidArtifactError, match=f"{name}.*truncated"):
                inspect_artifact(path)
    (tmp_path / "m.txt").write_bytes(b"tree\nversion=v4\n\nend of trees\n")
    with pytest.raises(InvalidArtifactError, match="header is incomplete"):
        inspect_artifact(tmp_path / "m.txt")
    (tmp_path / "m.json").write_text('{"learner": {"learner_model_param": 3}}')
    with pytest.raises(InvalidArtifactError, match="not an XGBoost model"):
        inspect_artifact(tmp_path / "m.json")
    binary = xgb(tmp_path / "m.ubj", BINARY, objective="binary:logistic")
    binary.write_bytes(binary.read_bytes()[:400])
    with pytest.raises(InvalidArtifactError, match=r"xgboost cannot load m\.ubj: (?!.*\.cc)"):
        convert(binary)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"binf\x00\x00\x00\x3f" * 8, "old binary format; load it with"),
        (b"CBM1" * 8, "export it with model.save_model"),
    ],
)
def test_other_boosters_are_refused_with_what_to_do(tmp_path: Path, head: bytes, message: str) -> None:
    (tmp_path / "m.bin").write_bytes(head)
    with pytest.raises(InvalidArtifactError, match=message):
        inspect_artifact(tmp_path / "m.bin")


def test_models_without_equivalent_are_refused(convert, tmp_path: Path) -> None:
    categorical = {"feature_types": ["c", "q"], "enable_categorical": True}
    shares = np.stack([VALUES, BINARY], axis=1)
    cases = [
        (xgb(tmp_path / "a.json", VALUES, booster="gblinear"), "booster 'gblinear'"),
        (
            xgb(tmp_path / "b.json", CATEGORIES[:, 0] % 3, data=CATEGORIES, data_options=categorical, max_depth=2),
            "categorical splits .feature 0.*one-hot",
        ),
        (xgb(tmp_path / "c.json", shares, multi_strategy="multi_output_tree"), "several values per leaf"),
        (lgb(tmp_path / "d.txt", VALUES, objective="regression", linear_tree=True), "linear models in its leaves"),
        (lgb(tmp_path / "e.txt", BINARY, objective="binary", zero_as_missing=True), "zeros as missing values"),
        (
            lgb(
                tmp_path / "f.txt",
                CATEGORIES[:, 0] % 3,
                data=CATEGORIES,
                objective="regression",
                data_options={"categorical_feature": [0]},
                max_cat_to_onehot=1,
                min_data_per_group=1,
                cat_smooth=0,
            ),
            "categorical splits .feature 0.*one-hot",
        ),
    ]
    for path, message in cases:
        with pytest.raises(ConversionFailedError, match=message):
            convert(path)
    text = lgb(tmp_path / "g.txt", BINARY, objective="binary").read_text()
    (tmp_path / "g.txt").write_text(text.replace("objective=binary sigmoid:1\n", ""))
    assert outputs(convert(tmp_path / "g.txt")) == VARIABLE  # a custom objective: LightGBM predicts the sum


def test_missing_library_is_reported_with_the_command(convert, tmp_path: Path, monkeypatch) -> None:
    path = xgb(tmp_path / "m.json", BINARY, objective="binary:logistic")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ConversionFailedError, match=r"'xgboost', .* pip install 'triton-control-plane\[boosters\]'"):
        convert(path)


def test_missing_system_library_is_reported(convert, tmp_path: Path, monkeypatch) -> None:
    path = lgb(tmp_path / "m.txt", BINARY, objective="binary")
    reason = "libgomp.so.1: cannot open shared object file"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "lightgbm.py").write_text(f"raise OSError({reason!r})")
    monkeypatch.delitem(sys.modules, "lightgbm")
    monkeypatch.syspath_prepend(tmp_path / "path")
    with pytest.raises(ConversionFailedError, match=rf"cannot be imported: {reason}; install .* package libgomp1"):
        convert(path)
