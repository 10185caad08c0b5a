"""What is read from an MLflow model folder, and what a URI or an address that cannot be used is answered with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.domain.signature import DataType, TensorSpec
from controlplane.errors import InvalidArtifactError, InvalidInputError
from controlplane.sources.errors import SourceUnavailableError
from controlplane.sources.mlflow import MlflowSource
from controlplane.sources.mlflow_api import MlflowConnection, public_url
from controlplane.sources.mlflow_model import read_model
from tests.support.processes import free_port

GENERIC = {"python_function": {"loader_module": "mlflow.x", "data": "model.xgb"}}
SIGNATURE = {"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}}]'}


def document(flavors: Any, **more: Any) -> bytes:
    return yaml.safe_dump({"flavors": flavors, "run_id": "abc", "model_id": "m-1", **more}).encode()


@pytest.mark.parametrize(
    ("flavors", "files", "expected"),
    [
        ({"onnx": {"data": "model.onnx"}}, ["conda.yaml", "model.onnx", "w.data"], ("model.onnx", "w.data")),
        ({"xgboost": {"data": "model.ubj"}}, ["model.ubj", "requirements.txt"], ("model.ubj",)),
        ({"xgboost": {}, **GENERIC}, ["model.xgb"], ("model.xgb",)),
        ({"lightgbm": {"data": "model.lgb"}}, ["model.lgb"], ("model.lgb",)),
        ({"pytorch": {"model_data": "data"}}, ["data/model.pth", "data/pickle_module_info.txt"], ("data/model.pth",)),
        ({"sklearn": {"pickled_model": "model.pkl"}}, ["model.pkl", "input_example.json"], ("model.pkl",)),
        # ONNX needs no conversion, so it is preferred.
        ({"sklearn": {"pickled_model": "a.pkl"}, "onnx": {"data": "b.onnx"}}, ["a.pkl", "b.onnx"], ("a.pkl", "b.onnx")),
    ],
)
def test_model_document_names_the_files(flavors: Any, files: list[str], expected: tuple[str, ...]) -> None:
    model = read_model(document(flavors), "here")
    assert model.files(["MLmodel", *files]) == expected
    assert (model.run_id, model.model_id) == ("abc", "m-1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x01", "not an MLflow model document"),
        (b"flavors: 3", "not an MLflow model document"),
        (document({"tensorflow": {}, **GENERIC}), "has the flavors python_function, tensorflow"),
        (document({"onnx": {"data": "../../etc/passwd"}}), "names no valid file"),
        (document({"lightgbm": {"data": "model.pkl"}}), "log its booster"),
    ],
)
def test_unusable_model_document_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidArtifactError, match=message):
        read_model(content, "here")


def test_missing_model_file_is_reported() -> None:
    with pytest.raises(InvalidArtifactError, match=r"no file 'model.ubj'"):
        read_model(document({"xgboost": {"data": "model.ubj"}}), "here").files(["MLmodel"])


def test_signature_of_tensors_gives_the_inputs() -> None:
    flavors = {"pytorch": {"model_data": "data"}}
    read = read_model(document(flavors, signature=SIGNATURE), "here")
    assert read.inputs == (TensorSpec(name="input", dtype=DataType.FP32, shape=(-1, 4)),)
    columns = {"inputs": '[{"type": "double", "name": "age"}]'}
    assert read_model(document(flavors, signature=columns), "here").inputs is None
    assert read_model(document(flavors), "here").inputs is None


def test_downloaded_folder_keeps_its_origin(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_bytes(document({"sklearn": {"pickled_model": "model.skops"}}))
    (tmp_path / "model.skops").write_bytes(b"x")
    artifact = MlflowSource().recognize(tmp_path)
    assert artifact is not None
    assert artifact.path == tmp_path / "model.skops"
    assert (artifact.origin.uri, artifact.origin.run) == ("mlflow://models:/m-1", "abc")
    assert MlflowSource().recognize(tmp_path / "model.skops") is None


@pytest.mark.parametrize(
    ("uri", "variables", "message"),
    [
        ("mlflow://vad", {}, "not a valid MLflow URI"),
        ("mlflow://models:/", {}, "not a valid MLflow URI"),
        ("mlflow://models:/vad/3", {}, "set MLFLOW_TRACKING_URI"),
        ("mlflow://models:/vad/3", {"MLFLOW_TRACKING_URI": "sqlite:///a.db"}, "begins with 'sqlite'"),
        ("mlflow://models:/vad/Production", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "use an alias"),
        ("mlflow://runs:/abc", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "names no model of the run"),
    ],
)
def test_invalid_uri_or_address_is_refused(uri: str, variables: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        MlflowSource().fetch(uri, tmp_path, variables, print)


def test_unreachable_server_is_reported_without_its_password(tmp_path: Path) -> None:
    address = {"MLFLOW_TRACKING_URI": f"http://ada:secret@127.0.0.1:{free_port()}"}
    with pytest.raises(SourceUnavailableError, match="unreachable") as caught:
        MlflowSource().fetch("mlflow://models:/vad/3", tmp_path, address, print)
    assert "secret" not in caught.value.message


def test_credentials_are_not_printed() -> None:
    connection = MlflowConnection.read(
        {
            "MLFLOW_TRACKING_URI": "http://host:5000/",
            "MLFLOW_REGISTRY_URI": "https://registry",
            "MLFLOW_TRACKING_TOKEN": "secret",
        }
    )
    assert connection.url == "http://host:5000"
    assert "secret" not in repr(connection)
    assert MlflowConnection.read({"MLFLOW_REGISTRY_URI": "https://registry"}, registry=True).url == "https://registry"
    assert public_url("https://ada:secret@host/base/?token=secret") == "https://host/base"
