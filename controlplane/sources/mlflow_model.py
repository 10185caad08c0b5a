"""The model in an MLflow model folder: its `MLmodel` document names the flavors and their files."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import ValidationError

from controlplane.domain.signature import DataType, TensorSpec
from controlplane.errors import InvalidArtifactError

DOCUMENT = "MLmodel"
_MAX_DOCUMENT_BYTES = 8 * 1024**2
_FLAVORS = ("onnx", "xgboost", "lightgbm", "pytorch", "sklearn")
"""The flavors that can be published, in the order of preference."""
_OTHER_FILES = frozenset({DOCUMENT, "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta"})
_OTHER_PREFIXES = ("input_example", "serving_input_example", "metadata/", "code/")
_TYPES = {
    "bool": DataType.BOOL,
    "uint8": DataType.UINT8,
    "uint16": DataType.UINT16,
    "uint32": DataType.UINT32,
    "uint64": DataType.UINT64,
    "int8": DataType.INT8,
    "int16": DataType.INT16,
    "int32": DataType.INT32,
    "int64": DataType.INT64,
    "float16": DataType.FP16,
    "float32": DataType.FP32,
    "float64": DataType.FP64,
    "object": DataType.BYTES,
    "str": DataType.BYTES,
}


@dataclass(frozen=True, slots=True)
class MlflowModel:
    """What an `MLmodel` document says about the model to publish.

    Attributes:
        flavor: The flavor to publish.
        main: Path of the model file in the folder; for PyTorch the folder that contains it.
        run_id: The run that logged the model; None if unknown.
        model_id: The logged model's identifier (MLflow 3); None if unknown.
        inputs: The inputs, from a signature of tensors; None without one.
    """

    flavor: str
    main: str
    run_id: str | None
    model_id: str | None
    inputs: tuple[TensorSpec, ...] | None

    def files(self, listing: Iterable[str]) -> tuple[str, ...]:
        """Select the files to publish from those of the folder.

        Raises:
            InvalidArtifactError: The model file is missing.
        """
        paths = sorted(listing)
        if self.flavor == "onnx":  # external data has names of its own
            wanted = [path for path in paths if path not in _OTHER_FILES and not path.startswith(_OTHER_PREFIXES)]
        elif self.flavor == "pytorch":
            wanted = [
                path for path in paths if path.startswith(f"{self.main}/") and path.endswith((".pth", ".pt2", ".pt"))
            ]
        else:
            wanted = [path for path in paths if path == self.main]
        if not wanted or (self.flavor == "onnx" and self.main not in wanted):
            raise InvalidArtifactError(
                f"the MLflow model has no file {self.main!r}, which its {DOCUMENT} names for the flavor {self.flavor}"
            )
        return tuple(wanted)


def read_model(content: bytes, where: str) -> MlflowModel:
    """Read an `MLmodel` document.

    Args:
        content: The document.
        where: The model's URI or folder, for messages.

    Raises:
        InvalidArtifactError: It is not such a document, or it has no flavor that can be published.
    """
    try:
        document = yaml.safe_load(content) if len(content) <= _MAX_DOCUMENT_BYTES else None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        document = None
    flavors = document.get("flavors") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(flavors, dict):
        raise InvalidArtifactError(f"the {DOCUMENT} of {where} is not an MLflow model document")
    for flavor in _FLAVORS:
        settings = flavors.get(flavor)
        if isinstance(settings, dict):
            main = _main(flavor, settings, flavors.get("python_function"), where)
            return MlflowModel(
                flavor, main, _text(document.get("run_id")), _text(document.get("model_id")), _inputs(document)
            )
    have = ", ".join(sorted(map(str, flavors))) or "none"
    raise InvalidArtifactError(
        f"{where} has the flavors {have}; a model can be published from the flavors {', '.join(_FLAVORS)}. Log it "
        "with mlflow.onnx.log_model, or push an exported file"
    )


def read_folder(folder: Path) -> bytes | None:
    """Return the `MLmodel` document of a folder; None if there is none."""
    try:
        return (folder / DOCUMENT).read_bytes()
    except (OSError, ValueError):
        return None


def _main(flavor: str, settings: Mapping[str, Any], generic: Any, where: str) -> str:
    if flavor == "sklearn":
        named = settings.get("pickled_model")
    elif flavor == "pytorch":
        named = settings.get("model_data")
    else:
        named = settings.get("data") or (generic.get("data") if isinstance(generic, dict) else None)
    path = PurePosixPath(str(named or ""))
    if not named or path.is_absolute() or ".." in path.parts:
        raise InvalidArtifactError(f"the {DOCUMENT} of {where} names no valid file for the flavor {flavor}: {named!r}")
    if flavor == "lightgbm" and path.suffix == ".pkl":
        raise InvalidArtifactError(
            f"{where} is a pickled LightGBM estimator, which cannot be converted; log its booster instead: "
            "mlflow.lightgbm.log_model(model.booster_, …)"
        )
    return str(path)


def _inputs(document: Mapping[str, Any]) -> tuple[TensorSpec, ...] | None:
    """Return the inputs of a signature of tensors; columns of a table say nothing about tensors."""
    signature = document.get("signature")
    try:
        columns = json.loads(signature["inputs"]) if isinstance(signature, dict) else []
        return (
            tuple(
                TensorSpec(
                    name=column.get("name") or "input",
                    dtype=_TYPES[column["tensor-spec"]["dtype"]],
                    shape=tuple(column["tensor-spec"]["shape"]),
                )
                for column in columns
            )
            or None
        )
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError):
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
