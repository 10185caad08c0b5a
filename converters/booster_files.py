"""Detection and reading of XGBoost and LightGBM files without the libraries that wrote them."""

import json
import mmap
from pathlib import Path

from pydantic import JsonValue

from controlplane.domain.manifest import Format
from controlplane.errors import InvalidArtifactError

MAX_READ_JSON_BYTES = 64 * 1024**2
"""Larger XGBoost files are recognized by their beginning; their facts are not read."""

_UBJ = b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner"
_END_OF_TREES = b"\nend of trees"
_OLD_XGBOOST = b"binf"
_CATBOOST = b"CBM1"


def inspect_booster(path: Path, head: bytes) -> tuple[Format, dict[str, JsonValue]] | None:
    """Return the format and the facts of a booster's file; None if the file is of another kind.

    Raises:
        InvalidArtifactError: The file is truncated, or a booster's file of a kind that cannot be converted.
    """
    if head.startswith(_UBJ):
        return Format.XGBOOST, {"container": "ubj"}
    if b"".join(head.split()).startswith(b'{"learner":{'):
        return Format.XGBOOST, _xgboost_json(path)
    if head.startswith((b"tree\nversion=", b"tree\r\nversion=")):
        return Format.LIGHTGBM, _lightgbm(path)
    if head.startswith(_OLD_XGBOOST):
        raise InvalidArtifactError(
            f"{path.name} has XGBoost's old binary format; load it with XGBoost 1.6 to 3.0 and save it again with "
            "booster.save_model('model.ubj')"
        )
    if head.startswith(_CATBOOST):
        raise InvalidArtifactError(
            f"{path.name} is a CatBoost model, which is not converted here; export it with "
            "model.save_model('model.onnx', format='onnx') and push that file"
        )
    return None


def _xgboost_json(path: Path) -> dict[str, JsonValue]:
    facts: dict[str, JsonValue] = {"container": "json"}
    if path.stat().st_size > MAX_READ_JSON_BYTES:
        return facts
    try:
        document = json.loads(path.read_bytes())
        learner = document["learner"]
        parameters, booster = learner["learner_model_param"], learner["gradient_booster"]
        model = (booster.get("gbtree") or booster).get("model", {})
        facts |= {
            "booster": str(booster["name"]),
            "objective": str(learner["objective"]["name"]),
            "features": int(parameters["num_feature"]),
            "trees": len(model.get("trees", ())),
            "version": ".".join(str(int(part)) for part in document.get("version", ())),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidArtifactError(f"{path.name} is not an XGBoost model, or it is truncated") from error
    return facts


def _lightgbm(path: Path) -> dict[str, JsonValue]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.find(_END_OF_TREES)
        if end < 0:
            raise InvalidArtifactError(f"{path.name} is a LightGBM model that is truncated: its end is missing")
        header = content[: content.find(b"\nTree=", 0, end)].decode("utf-8", "replace")
        trees, position = 0, content.find(b"\nTree=", 0, end)
        while position >= 0:
            trees += 1
            position = content.find(b"\nTree=", position + 1, end)
    values = dict(line.partition("=")[::2] for line in header.splitlines())
    try:
        return {
            "objective": values.get("objective", "").partition(" ")[0],
            "features": int(values["max_feature_idx"]) + 1,
            "trees": trees,
            "version": values.get("version", ""),
        }
    except (KeyError, ValueError) as error:
        raise InvalidArtifactError(f"{path.name} is a damaged LightGBM model: its header is incomplete") from error
