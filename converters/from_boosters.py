"""Conversion of XGBoost and LightGBM models to ONNX: the library gives the reference, and the trees are rewritten.

The outputs are those of scikit-learn models: ``label`` and ``probabilities`` of a classifier, ``variable`` of a
regressor or ranker. A file has no names of classes, so labels are numbers from 0.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Sample, Tensors
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidArtifactError, InvalidInputError
from converters.base import ConversionRequest, Converter, SourceModel
from converters.lightgbm_trees import lightgbm_trees
from converters.onnx_output import finish_onnx
from converters.options import SamplingOptions
from converters.parity import check_parity, tolerances_for
from converters.runtimes import THREADS, OnnxRuntime, RunError, one_line
from converters.trees import Link, TreeEnsemble
from converters.xgboost_trees import xgboost_trees

_ROWS = (8, 1, 7)
"""Rows of the suggested samples; a deployment's batch size must fit them."""
_CHECKED_ROWS = 2000


class BoosterOriginal(SourceModel):
    """A model of gradient-boosted trees."""

    batched = True

    def __init__(self, trees: TreeEnsemble) -> None:
        self.trees = trees
        self.inputs = (TensorSpec(name="X", dtype=DataType.FP32, shape=(DYNAMIC, trees.features)),)
        label = TensorSpec(name="label", dtype=DataType.INT64, shape=(DYNAMIC,))
        scores = TensorSpec(
            name="probabilities" if trees.classifier else "variable",
            dtype=DataType.FP32,
            shape=(DYNAMIC, trees.classes if trees.classifier else trees.targets),
        )
        outputs = (label, scores) if trees.classifier else (scores,)
        self.signature = Signature(inputs=self.inputs, outputs=outputs, batched=True)

    @abstractmethod
    def predict(self, table: Array) -> Array:
        """Return the library's prediction: probabilities of a classifier, values of other models."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        table = next(iter(inputs.values()))
        if len(inputs) != 1 or table.ndim != 2 or table.shape[1] != self.trees.features:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise RunError(f"the model takes one table with {self.trees.features} columns, not {shapes}")
        try:
            values = np.asarray(self.predict(table.astype(np.float32, copy=False)), dtype=np.float32)
        except Exception as error:
            raise RunError(one_line(error)) from error
        values = values.reshape(len(table), -1)
        if not self.trees.classifier:
            return {"variable": values}
        if values.shape[1] == 1:
            return {
                "label": (values[:, 0] > 0.5).astype(np.int64),
                "probabilities": np.concatenate([1 - values, values], axis=1),
            }
        return {"label": values.argmax(axis=1).astype(np.int64), "probabilities": values}

    def suggest_inputs(self, specs: Sequence[TensorSpec], options: SamplingOptions) -> tuple[Tensors, ...]:
        """See `converters.base.SourceModel.suggest_inputs`: values at the thresholds, the last sample with gaps."""
        if [(spec.dtype, spec.shape) for spec in specs] != [(DataType.FP32, (DYNAMIC, self.trees.features))]:
            return ()
        random = np.random.default_rng(options.seed)
        counts = [_ROWS[number % len(_ROWS)] for number in range(max(options.sample_count, 2))]
        tables = [self.trees.boundary_rows(count, random) for count in counts]
        _remove_values(tables[-1], random)
        return tuple({specs[0].name: table} for table in tables)


class XGBoostOriginal(BoosterOriginal):
    """An XGBoost model, from its JSON or UBJ file."""

    format = Format.XGBOOST

    def __init__(self, path: Path) -> None:
        import xgboost

        self.path = path
        try:
            # From memory, because XGBoost chooses the format of a file by its name.
            self.native = xgboost.Booster(params={"nthread": THREADS}, model_file=bytearray(path.read_bytes()))
            document = json.loads(bytes(self.native.save_raw("json")))
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise InvalidArtifactError(f"xgboost cannot load {path.name}: {_xgboost_reason(error)}") from error
        super().__init__(xgboost_trees(document, path.name))

    def predict(self, table: Array) -> Array:
        """See `BoosterOriginal.predict`."""
        import xgboost

        data = xgboost.DMatrix(table, nthread=THREADS)
        if self.trees.link is Link.SOFTMAX:  # multi:softmax predicts the label alone
            margins = np.asarray(self.native.predict(data, output_margin=True, validate_features=False))
            powers = np.exp(margins - margins.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        return np.asarray(self.native.predict(data, validate_features=False))


class LightGBMOriginal(BoosterOriginal):
    """A LightGBM model, from its text file."""

    format = Format.LIGHTGBM

    def __init__(self, path: Path) -> None:
        try:
            import lightgbm
        except OSError as error:  # its wheel uses the system's OpenMP library
            raise ConversionFailedError(
                f"lightgbm cannot be imported: {one_line(error)}; install the missing system library "
                "(libgomp.so.1 is Debian's package libgomp1)"
            ) from error

        self.path = path
        try:
            self.native = lightgbm.Booster(params={"verbosity": -1}, model_str=path.read_text(encoding="utf-8"))
            text = self.native.model_to_string(num_iteration=-1)
        except (lightgbm.basic.LightGBMError, ValueError, KeyError, TypeError) as error:
            raise InvalidArtifactError(f"lightgbm cannot load {path.name}: {one_line(error)}") from error
        super().__init__(lightgbm_trees(text, path.name))

    def predict(self, table: Array) -> Array:
        """See `BoosterOriginal.predict`."""
        answer = self.native.predict(table.astype(np.float64), num_iteration=-1, num_threads=THREADS)
        return np.asarray(answer)


class _TreesToOnnx(Converter):
    """Converter that writes the trees as one TreeEnsembleRegressor and the objective's function after it."""

    target = Format.ONNX

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        assert isinstance(original, BoosterOriginal)
        trees, signature = original.trees, request.signature
        request.progress("convert", f"writing {len(set(trees.nodes['treeids']))} trees as ONNX")
        spec = signature.inputs[0]
        if len(signature.inputs) != 1 or spec.dtype is not DataType.FP32 or len(spec.shape) != 2:
            wanted = ", ".join(map(str, signature.inputs))
            raise InvalidInputError(
                f"the converted model takes one input FP32[-1,{trees.features}], but the signature has {wanted}"
            )
        finish_onnx(
            trees.to_onnx(spec.name, [output.name for output in signature.outputs]),
            request.options,
            signature,
            request.output,
        )
        request.progress("convert", f"comparing {_CHECKED_ROWS} rows at the thresholds")
        _check_thresholds(original, request)
        return ()


class XGBoostToOnnx(_TreesToOnnx):
    """Converter of XGBoost models."""

    name = "xgboost-to-onnx"
    source = Format.XGBOOST


class LightGBMToOnnx(_TreesToOnnx):
    """Converter of LightGBM models."""

    name = "lightgbm-to-onnx"
    source = Format.LIGHTGBM


def _check_thresholds(original: BoosterOriginal, request: ConversionRequest) -> None:
    """Compare original and result on rows at the trees' thresholds and with missing values.

    The golden samples are few. The label is not compared: where two classes are equally probable, rounding decides.

    Raises:
        ParityError: An output differs.
    """
    random = np.random.default_rng(request.options.seed)
    table = original.trees.boundary_rows(_CHECKED_ROWS, random)
    _remove_values(table[_CHECKED_ROWS // 2 :], random)
    answers = list(original.run({"X": table}).values())
    expected = {request.signature.outputs[-1].name: answers[-1]}
    tolerances = tolerances_for([expected], request.options.precision, request.options.tolerances)
    sample = Sample({request.signature.inputs[0].name: table}, expected)
    seed = request.options.seed
    check_parity(OnnxRuntime(request.output).run, (sample,), tolerances, generated=True, seed=seed)


def _remove_values(table: Array, random: np.random.Generator) -> None:
    table[random.random(table.shape) < 0.2] = np.nan


def _xgboost_reason(error: Exception) -> str:
    """Return the line of XGBoost's error that gives the reason, without the stack trace and the source's path."""
    first = one_line(error)
    _, mark, reason = first.partition("] ")
    return (reason.rpartition(": ")[2] if ".cc:" in reason else reason) if mark else first
