"""Conversion of scikit-learn estimators (skops files) to ONNX with skl2onnx."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC, DataType, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidArtifactError, InvalidInputError, UntrustedArtifactError
from converters.base import ConversionRequest, Converter, SourceModel
from converters.onnx_output import finish_onnx
from converters.runtimes import RunError, as_bytes, one_line

SKLEARN_OPSET = 17
"""The newest opset that skl2onnx, onnxruntime 1.20 and the Triton images of 2024 and later all support."""

# skops does not list this scikit-learn type as safe, but every tree and forest contains it. Restoring it runs no code
# from the file; at worst it reads past its arrays, in a worker.
_DATA_TYPES = {"sklearn.tree._tree.Tree"}


class SklearnOriginal(SourceModel):
    """A scikit-learn estimator.

    Its outputs are those that skl2onnx produces: ``label`` and ``probabilities`` of a classifier, ``variable`` of a
    regressor or transformer, ``label`` and ``scores`` of an outlier detector, ``label`` of a clusterer.
    """

    format = Format.SKLEARN

    def __init__(self, path: Path, *, trust: bool) -> None:
        self.path = path
        self.native = _load(path, trust=trust)
        columns = getattr(self.native, "n_features_in_", None)
        if columns is not None:
            self.inputs = (TensorSpec(name="X", dtype=DataType.FP32, shape=(DYNAMIC, int(columns))),)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        table = _table(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._answer(table)
            except Exception as error:
                raise RunError(one_line(error)) from error

    def _answer(self, table: Array) -> dict[str, Array]:
        from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

        model = self.native
        if is_classifier(model):
            answer = {"label": _label(model.predict(table))}
            if hasattr(model, "predict_proba"):
                answer["probabilities"] = np.asarray(model.predict_proba(table), dtype=np.float32)
            return answer
        if is_outlier_detector(model):
            scores = np.asarray(model.decision_function(table), dtype=np.float32).reshape(-1, 1)
            return {"label": _label(model.predict(table)).reshape(-1, 1), "scores": scores}
        if is_clusterer(model):
            return {"label": _label(model.predict(table))}
        if is_regressor(model):
            values = np.asarray(model.predict(table), dtype=np.float32)
            return {"variable": values.reshape(len(table), -1)}
        if hasattr(model, "transform"):
            values = model.transform(table)
            values = values.toarray() if hasattr(values, "toarray") else values
            return {"variable": np.asarray(values, dtype=np.float32)}
        raise InvalidInputError(f"a {type(model).__name__} has neither predict nor transform")


class SklearnToOnnx(Converter):
    """Converter that uses skl2onnx without ZipMap: probabilities are a tensor, as Triton requires."""

    name = "sklearn-to-onnx"
    source = Format.SKLEARN
    target = Format.ONNX

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        from skl2onnx import to_onnx

        request.progress("convert", "converting with skl2onnx")
        model, signature = original.native, request.signature
        names = [spec.name for spec in signature.outputs]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                converted = to_onnx(
                    model,
                    initial_types=[(spec.name, _onnx_type(spec)) for spec in signature.inputs],
                    options=_options(model),
                    target_opset={"": min(request.options.opset or SKLEARN_OPSET, SKLEARN_OPSET), "ai.onnx.ml": 3},
                )
        except Exception as error:
            raise ConversionFailedError(
                f"skl2onnx cannot convert this {type(model).__name__}: {one_line(error)}"
            ) from error
        warnings_ = _keep_outputs(converted, names)
        finish_onnx(converted, request.options, signature, request.output)
        return warnings_


def _options(model: Any) -> dict[int, dict[str, bool]] | None:
    from sklearn.base import is_classifier

    return {id(model): {"zipmap": False}} if is_classifier(model) else None


def _keep_outputs(model: Any, names: list[str]) -> tuple[str, ...]:
    """Give the first outputs their names, and drop those that have no counterpart in the original."""
    outputs = list(model.graph.output)
    if len(outputs) < len(names):
        raise ConversionFailedError(f"skl2onnx produced {len(outputs)} outputs, but the original has {names}")
    dropped = [output.name for output in outputs[len(names) :]]
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | {
        value.name for value in model.graph.input
    }
    for output, name in zip(outputs, names, strict=False):
        if output.name == name:
            continue
        if name in taken:
            raise InvalidInputError(f"another tensor already has the output name {name!r}; choose another name")
        model.graph.node.add(op_type="Identity", input=[output.name], output=[name], name=f"output_{name}")
        output.name = name
    del model.graph.output[len(names) :]
    return tuple(
        f"the output {name!r} was omitted, because the original has no counterpart to compare it with"
        for name in dropped
    )


def _onnx_type(spec: TensorSpec) -> Any:
    from skl2onnx.common import data_types as types

    kinds = {
        DataType.FP32: types.FloatTensorType,
        DataType.FP64: types.DoubleTensorType,
        DataType.INT64: types.Int64TensorType,
        DataType.INT32: types.Int32TensorType,
        DataType.BOOL: types.BooleanTensorType,
        DataType.BYTES: types.StringTensorType,
    }
    if spec.dtype not in kinds:
        raise InvalidInputError(f"skl2onnx supports only {', '.join(kinds)}, but the signature has {spec}")
    return kinds[spec.dtype]([None if size == DYNAMIC else size for size in spec.shape])


def _table(inputs: Tensors) -> Array:
    """Join the inputs as columns of one table; strings become str, the type that estimators are fitted with."""
    columns = []
    for array in inputs.values():
        if array.dtype.kind == "O":
            texts = np.empty(array.size, dtype=object)
            texts[:] = [e.decode() if isinstance(e, bytes) else str(e) for e in array.reshape(-1)]
            array = texts.reshape(array.shape)
        columns.append(array)
    if len(columns) == 1:
        return columns[0]
    kind = object if any(column.dtype.kind == "O" for column in columns) else None
    return np.concatenate([column.astype(kind) if kind else column for column in columns], axis=1)


def _label(values: Any) -> Array:
    array = np.asarray(values)
    if array.dtype.kind in "OUS":
        return as_bytes(array)
    return array.astype(np.int64) if array.dtype.kind in "iub" else array


def _load(path: Path, *, trust: bool) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        if not trust:
            raise UntrustedArtifactError(
                f"{path.name} is a pickle, which runs code when it is read; allow it with --trust if you trust the "
                "source of the file"
            )
        return _unpickle(path)
    import skops.io

    try:
        unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - _DATA_TYPES)
        if trust or not unknown:
            return skops.io.load(path, trusted=[*unknown, *_DATA_TYPES])
    except Exception as error:
        raise InvalidArtifactError(f"skops cannot load {path.name}: {one_line(error)}") from error
    raise UntrustedArtifactError(
        f"{path.name} contains types that skops does not know to be safe: {', '.join(unknown[:8])}; allow them "
        "with --trust if you trust the source of the file",
        types=list(unknown),
    )


def _unpickle(path: Path) -> Any:
    try:
        import joblib  # type: ignore[import-untyped]

        return joblib.load(path)  # reads plain pickles as well
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, KeyError, IndexError) as error:
        raise InvalidArtifactError(f"{path.name} cannot be unpickled: {one_line(error)}") from error
