"""Writes a model that lives in a Python process to a file that a conversion or a push accepts.

It imports only the library that the object comes from, which is imported already.
"""

import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.signature import DYNAMIC, DataType, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidInputError

_ONNX_FILE_MAX = 2**31 - 2**20
"""A protobuf message has to be below 2 GiB; a larger model keeps its weights in a second file."""
_BATCH = 2
"""Rows of an exported example: PyTorch takes a size of one for a constant."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A model on disk.

    Attributes:
        path: The file or folder.
        format: Its format.
        inputs: The inputs, where the file does not declare them.
        samples: The example inputs by name; empty if none were given.
    """

    path: Path
    format: Format
    inputs: tuple[TensorSpec, ...] | None = None
    samples: Mapping[str, Array] = field(default_factory=dict)


def save_object(model: object, examples: object, folder: Path) -> SavedModel:
    """Write a model to a folder.

    Args:
        model: A ``torch.nn.Module``, a scripted or exported PyTorch module, a scikit-learn estimator, an ONNX
            ``ModelProto``, or a booster of XGBoost or LightGBM (also their scikit-learn classes).
        examples: Example inputs: an array or tensor, a sequence of them in the order of the arguments, or a mapping
            by name. The first dimension is the batch. A PyTorch module needs them.
        folder: An existing, empty folder.

    Raises:
        InvalidInputError: The object is of no known kind, or the examples do not fit it.
        ConversionFailedError: The library cannot write the model.
    """
    for kind, save in _KINDS:
        if _is(model, kind):
            return save(model, examples, folder)
    known = ", ".join(kind for kind, _ in _KINDS)
    raise InvalidInputError(
        f"cannot publish a {type(model).__module__}.{type(model).__qualname__}; give a path or one of: {known}",
        type=type(model).__qualname__,
    )


def _is(model: object, kind: str) -> bool:
    """Return whether an object is an instance of a class, whose module need not be imported."""
    module, _, name = kind.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and isinstance(model, found)


def _torch_module(model: Any, examples: object, folder: Path) -> SavedModel:
    import torch

    if examples is None:
        raise InvalidInputError("a torch.nn.Module needs example_inputs: its inputs are found by running it")
    names = [name for name, one in inspect.signature(model.forward).parameters.items() if one.kind < one.VAR_POSITIONAL]
    named = _named(examples, names)
    tensors = {name: torch.as_tensor(_rows(array)) for name, array in named.items()}
    tensors = {name: tensors[name] for name in names if name in tensors}
    by_position = list(tensors) == names[: len(tensors)]
    dynamic = {name: {0: torch.export.Dim.AUTO} if tensor.ndim else {} for name, tensor in tensors.items()}
    mode, path = model.training, folder / "model.pt2"
    model.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                model.cpu(),
                tuple(tensors.values()) if by_position else (),
                {} if by_position else tensors,
                dynamic_shapes=dynamic,
            )
            torch.export.save(program, path)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ConversionFailedError(
            f"torch.export cannot export this {type(model).__name__}: {first}; push torch.jit.trace(model, inputs) or "
            "torch.jit.script(model) instead"
        ) from error
    finally:
        model.train(mode)
    samples = {name: tensor.numpy() for name, tensor in tensors.items()}
    return SavedModel(path, Format.TORCH_EXPORT, _program_inputs(program), samples)


def _script(model: Any, examples: object, folder: Path) -> SavedModel:
    import torch

    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(model, path)
    if examples is None:
        return SavedModel(path, Format.TORCHSCRIPT)
    names = [one.name for one in model.forward.schema.arguments[1:]]
    return SavedModel(path, Format.TORCHSCRIPT, samples=_named(examples, names))


def _exported(model: Any, examples: object, folder: Path) -> SavedModel:
    import torch

    path = folder / "model.pt2"
    torch.export.save(model, path)
    names = [name for name in model.graph_signature.user_inputs if isinstance(name, str)]
    return SavedModel(
        path, Format.TORCH_EXPORT, _program_inputs(model), {} if examples is None else _named(examples, names)
    )


def _program_inputs(program: Any) -> tuple[TensorSpec, ...]:
    """Return the inputs of an exported program, with -1 for the sizes that it left open."""
    wanted = set(program.graph_signature.user_inputs)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return tuple(
        TensorSpec(
            name=name,
            dtype=DataType.of(np.empty(0, str(value.dtype).removeprefix("torch."))),
            shape=tuple(size if isinstance(size, int) else DYNAMIC for size in value.shape),
        )
        for name, value in values.items()
        if name in wanted
    )


def _estimator(model: Any, examples: object, folder: Path) -> SavedModel:
    try:
        import skops.io
    except ImportError as error:
        raise ConversionFailedError(
            "a scikit-learn estimator is written with skops, which is not installed; run "
            "pip install 'triton-control-plane[sklearn]'"
        ) from error
    path = folder / "model.skops"
    skops.io.dump(model, path)
    return _table_model(path, Format.SKLEARN, examples, getattr(model, "n_features_in_", None))


def _onnx(model: Any, examples: object, folder: Path) -> SavedModel:
    import onnx

    path = folder / "model.onnx"
    external = model.ByteSize() >= _ONNX_FILE_MAX
    onnx.save_model(model, path, save_as_external_data=external, location="model.onnx.data" if external else None)
    constants = {one.name for one in model.graph.initializer}
    names = [one.name for one in model.graph.input if one.name not in constants]
    samples = {} if examples is None else _named(examples, names)
    return SavedModel(folder if external else path, Format.ONNX, samples=samples)


def _xgboost(model: Any, examples: object, folder: Path) -> SavedModel:
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    path = folder / "model.ubj"
    booster.save_model(path)
    return _table_model(path, Format.XGBOOST, examples, booster.num_features())


def _lightgbm(model: Any, examples: object, folder: Path) -> SavedModel:
    booster = getattr(model, "booster_", model)
    path = folder / "model.txt"
    booster.save_model(path)
    return _table_model(path, Format.LIGHTGBM, examples, booster.num_feature())


def _table_model(path: Path, kind: Format, examples: object, columns: int | None) -> SavedModel:
    """Return a model that takes one table ``X`` of 32-bit floats."""
    if examples is None:
        return SavedModel(path, kind)
    table = next(iter(_named(examples, ["X"]).values())).astype(np.float32)
    if table.ndim != 2 or (columns is not None and table.shape[1] != columns):
        wanted = "[rows, columns]" if columns is None else f"[rows, {columns}]"
        raise InvalidInputError(f"example_inputs have the shape {list(table.shape)}; the model takes {wanted}")
    inputs = (TensorSpec(name="X", dtype=DataType.FP32, shape=(DYNAMIC, table.shape[1])),)
    return SavedModel(path, kind, inputs, {"X": table})


_KINDS = (
    ("torch.jit.ScriptModule", _script),
    ("torch.nn.Module", _torch_module),
    ("torch.export.ExportedProgram", _exported),
    ("onnx.ModelProto", _onnx),
    ("xgboost.Booster", _xgboost),
    ("xgboost.XGBModel", _xgboost),
    ("lightgbm.Booster", _lightgbm),
    ("lightgbm.LGBMModel", _lightgbm),
    ("sklearn.base.BaseEstimator", _estimator),
)
"""What writes which class; the first that fits, since the boosters' scikit-learn classes are estimators as well."""


def _named(examples: Any, names: Sequence[str]) -> dict[str, Array]:
    """Return example inputs by name.

    Raises:
        InvalidInputError: There are more of them than the model has inputs, or a name is unknown.
    """
    if isinstance(examples, Mapping):
        if unknown := set(map(str, examples)) - set(names):
            raise InvalidInputError(
                f"example_inputs name {', '.join(sorted(unknown))}; the model's inputs: {', '.join(names)}"
            )
        return {str(name): to_array(value) for name, value in examples.items()}
    values = list(examples) if isinstance(examples, (tuple, list)) and _is_several(examples) else [examples]
    if len(values) > len(names):
        raise InvalidInputError(
            f"there are {len(values)} example_inputs, and the model has {len(names)} inputs: {', '.join(names)}"
        )
    return {name: to_array(value) for name, value in zip(names, values, strict=False)}


def _is_several(examples: Sequence[Any]) -> bool:
    """Return whether a sequence holds one array for each input, rather than the values of one input."""
    return isinstance(examples, tuple) or any(hasattr(one, "shape") for one in examples)


def to_array(value: Any) -> Array:
    """Return a tensor, a data frame or nested lists as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif hasattr(value, "to_numpy"):
        value = value.to_numpy()
    return np.asarray(value)


def _rows(array: Array) -> Array:
    """Return an example with at least two rows."""
    if array.ndim == 0 or array.shape[0] != 1:
        return array
    return np.repeat(array, _BATCH, axis=0)
