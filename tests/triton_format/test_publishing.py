"""Publishing model directories: what is refused, who may bring code, and what a server must have."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.api import Api, settings_for
from tests.support.keys import guarded_api, with_key
from tests.triton_format import directories
from tests.triton_format.conftest import publish, refused


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API without a Triton, with keys in use, as an administrator sees it."""
    with guarded_api(settings_for(tmp_path_factory.mktemp("keys"), embedded=False)) as api:
        yield api


def test_code_needs_the_scope_code(root: Api) -> None:
    with with_key(root, root.http, "ci", "deploy") as deployer:
        assert publish(deployer, "data", directories.onnx())["version"] == 1
        assert "scope 'code'" in refused(deployer, "python", directories.scaling())
        assert "scope 'code'" in refused(deployer, "plan", directories.named("tensorrt", "model.plan"))
        library = directories.onnx()
        library["config.pbtxt"] += b'model_operations { op_library_filename: "x.so" }'
        assert "model_operations" in refused(deployer, "library", library)
        # Triton looks for a backend's library in the model's folders first, and `runtime` can name any file there.
        for path in ("1/libtriton_onnxruntime.so", "libtriton_onnxruntime.so"):
            assert path in refused(deployer, "backend", {**directories.onnx(), path: b"ELF"})
        named = directories.onnx()
        named["config.pbtxt"] += b'runtime: "model.py"'
        assert "runtime in config.pbtxt" in refused(deployer, "runtime", {**named, "1/model.py": b""})
    with with_key(root, root.http, "coder", "code") as coder:
        assert publish(coder, "python", directories.scaling())["format"] == "triton"


def test_directory_that_is_no_version_is_refused(root: Api) -> None:
    two = {**directories.onnx(folder=3), "12/model.onnx": b"x"}
    assert "the version folders 3, 12; a version is one of them" in refused(root, "two", two)
    assert "a names itself as its member" in refused(root, "a", {"config.pbtxt": directories.ENSEMBLE})
    assert "only an ensemble needs no files" in refused(root, "bare", {"config.pbtxt": b'backend: "onnxruntime"'})
    message = refused(root, "none", {"config.pbtxt": b"", "model.onnx": b"x"}, format="triton")
    assert "has config.pbtxt and a version folder" in message
    broken = {**directories.onnx(), "1/model.onnx": b"no onnx"}
    assert "model.onnx" in refused(root, "broken", broken)


def test_backend_library_beside_a_model_is_refused(root: Api) -> None:
    files = {"model.onnx": directories.onnx()["1/model.onnx"], "data/LibTriton_onnxruntime.so": b"ELF"}
    reason = "'data/LibTriton_onnxruntime.so' in place of its own backend"
    answer = root.http.post("/v1/models/plain/versions", json={"upload_id": root.upload(files)})
    assert reason in root.problem(answer, 422, "invalid-artifact")["detail"]
    assert reason in root.failed(root.http.post("/v1/validations", json={"upload_id": root.upload(files)}))["detail"]


def test_golden_samples_need_answers_where_the_model_is_not_run(root: Api, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.ones(2, np.float32))
    files = {**directories.scaling(), "s.npz": (tmp_path / "s.npz").read_bytes()}
    assert "add one array for each output (y)" in refused(root, "inputs", files, samples="s.npz")
    np.savez(tmp_path / "s.npz", x=np.ones(2, np.float64), y=np.ones(2, np.float32))
    files["s.npz"] = (tmp_path / "s.npz").read_bytes()
    assert "requires x FP32[?]" in refused(root, "types", files, samples="s.npz")


def test_same_directory_under_another_number_is_unchanged(root: Api) -> None:
    assert publish(root, "same", directories.onnx(folder=1))["version"] == 1
    again = publish(root, "same", directories.onnx(folder=20))
    assert (again["unchanged"], again["version"]) == (True, 1)
    other = publish(root, "same", directories.onnx(3.0), number=5)
    assert (other["unchanged"], other["version"]) == (False, 5)
    again = publish(root, "same", directories.onnx(folder=20), number=1)
    assert (again["unchanged"], again["version"]) == (True, 1), "compared with the version of that number"
    assert "same:1 exists with other content; use 6" in refused(root, "same", directories.onnx(3.0), number=1)
    assert "the newest is 5; use 6" in refused(root, "same", directories.onnx(4.0), number=2)
    manifest = root.ok(root.http.get("/v1/models/same/versions/1"))["manifest"]
    assert sorted(file["path"] for file in manifest["files"]) == [
        "1/model.onnx",
        "config.pbtxt",
        "labels.txt",
        "warmup/x.bin",
    ]
    assert manifest["config"]["backend"] == "onnxruntime"
    assert manifest["attributes"]["opset"] == 17


def test_directory_is_validated_before_and_after_its_publication(root: Api) -> None:
    uploaded = root.http.post("/v1/validations", json={"upload_id": root.upload(directories.onnx())})
    report = root.done(uploaded)
    assert report["ok"]
    assert [check["name"] for check in report["checks"]][:2] == ["configuration", "artifact"]
    publish(root, "validated", directories.scaling())
    assert root.done(root.http.post("/v1/validations", json={"reference": "validated:1"}))["format"] == "triton"
    wrong = {**directories.scaling(), "config.pbtxt": b"input {"}
    report = root.done(root.http.post("/v1/validations", json={"upload_id": root.upload(wrong)}))
    assert not report["ok"]
    assert "line 1" in report["checks"][0]["message"]


def test_onnx_model_in_a_folder_is_read_like_a_file(root: Api) -> None:
    files = directories.onnx()
    model = files.pop("1/model.onnx")
    broken = {**files, "1/model.onnx/model.onnx": b"no onnx"}
    assert "model.onnx" in refused(root, "unread", broken)
    outside = onnx.load_from_string(model)
    tensor = outside.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../outside")
    reading = {**files, "1/model.onnx/model.onnx": outside.SerializeToString()}
    assert "outside the artifact" in refused(root, "outside", reading)


@pytest.mark.triton
def test_onnx_model_in_a_folder_is_refused_by_the_embedded_server(api: Api) -> None:
    files = directories.onnx()
    files["1/model.onnx/model.onnx"] = files.pop("1/model.onnx")
    assert "the ONNX model is a folder" in publish(api, "folder", files)["missing"]
    answer = api.http.put("/v1/deployments/folder", json={"reference": "folder:1"})
    assert "the ONNX model is a folder" in api.problem(answer, 422, "invalid-artifact")["detail"]


@pytest.mark.triton
def test_missing_backend_is_reported_at_push_and_refused_at_deploy(api: Api) -> None:
    result = publish(api, "plan", directories.named("tensorrt", "model.plan"))
    assert "needs the backend 'tensorrt'" in result["missing"]
    answer = api.http.put("/v1/deployments/plan", json={"reference": "plan:1"})
    problem = api.problem(answer, 422, "invalid-artifact")
    assert "has only onnxruntime, python, pytorch" in problem["detail"]
    assert api.http.get("/v1/deployments/plan").status_code == 404
