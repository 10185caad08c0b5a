"""`tritonctl export`: the written folder on a real Triton without a control plane."""

import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.cli.conftest import Cli
from tests.support.api import Api, onnx_scale
from tests.support.triton import running_triton
from tests.triton_format import directories
from tests.triton_format.conftest import publish

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def scalar_onnx() -> bytes:
    """y = x * by, where ``by`` has rank 0."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1])
    by = helper.make_tensor_value_info("by", TensorProto.FLOAT, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "by"], ["y"])], "scalar", [x, by], [y])
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return data


def halving_script() -> bytes:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Half()), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def deployed(api: Api) -> Api:
    """Deployments of each kind: generated and hand-written configurations, warm-up data, code, files beside."""
    api.publish("ex-warm", onnx_scale(2.0))
    assert api.deploy("ex-warm:1", warmup=True, parameters={"mine": "yes"})["state"] == "succeeded"
    api.publish("ex-scalar", scalar_onnx())
    assert api.deploy("ex-scalar:1")["state"] == "succeeded"
    tensor = {"dtype": "FP32", "shape": [-1, 2]}
    signature = {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y__0", **tensor}], "batched": True}
    api.publish("ex-script", halving_script(), "model.pt", signature=signature)
    assert api.deploy("ex-script:1")["state"] == "succeeded"
    publish(api, "ex-hand", directories.onnx(3.0))
    publish(api, "ex-hand", directories.onnx(4.0))
    assert api.deploy("ex-hand:2")["state"] == "succeeded"
    publish(api, "ex-python", directories.scaling(5.0))
    assert api.deploy("ex-python:1")["state"] == "succeeded"
    return api


@pytest.fixture
def cli(api: Api, tmp_path: Path) -> Cli:
    """The CLI against the application of these tests."""
    (tmp_path / "here").mkdir()
    return Cli(tmp_path / "data", tmp_path / "here")


def export(cli: Cli, api: Api, *arguments: object, code: int = 0) -> dict[str, tuple[str, str]]:
    done = cli("export", *arguments, "-o", "json", "--url", api.url)
    assert done.code == code, done.err
    return {row["model"]: (row["result"], row["message"]) for row in done.json["items"]}


def tensors(**values: Any) -> list[InferInput]:
    made = []
    for name, value in values.items():
        array = np.asarray(value, np.float32)
        tensor = InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


REQUESTS = {
    "ex-warm": tensors(x=[[1.0, 2.0], [3.0, 4.0]]),
    "ex-scalar": tensors(x=[1.0, 2.0], by=[7.0]),
    "ex-script": tensors(x=[[1.0, 2.0]]),
    "ex-hand": tensors(x=[[1.0, 2.0]]),
    "ex-python": tensors(x=[1.0, 2.0]),
}


def answers(client: InferenceServerClient) -> dict[str, tuple[str, Any]]:
    found = {}
    for model, inputs in REQUESTS.items():
        answer = client.infer(model, inputs)
        output = answer.get_response().outputs[0].name
        found[model] = (answer.get_response().model_version, answer.as_numpy(output).tolist())
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_is_served_by_a_triton_without_a_control_plane(deployed: Api, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "model_repository"
    rows = export(cli, deployed, *REQUESTS, folder)
    assert {result for result, _ in rows.values()} == {"exported"}
    assert "only the embedded server's backends convert by" in rows["ex-scalar"][1]
    assert rows["ex-python"][1] == ""
    assert sorted(path.name for path in folder.iterdir()) == sorted(REQUESTS), "nothing else is left in the folder"
    for model in REQUESTS:
        text = (folder / model / "config.pbtxt").read_text()
        assert "tcp_" not in text.replace("tcp_scalars", ""), text
    assert sorted(files(folder / "ex-hand")) == ["2/model.onnx", "config.pbtxt", "labels.txt", "warmup/x.bin"]
    assert any(path.startswith("warmup/") for path in files(folder / "ex-warm"))

    server = deployed.ok(deployed.http.get("/v1/servers"))["items"][0]
    with InferenceServerClient(server["grpc_url"]) as client:
        expected = answers(client)
    assert expected["ex-hand"] == ("2", [[4.0, 8.0]])
    with running_triton(tmp_path) as bare, InferenceServerClient(bare.server.grpc_url) as client:
        for model in REQUESTS:
            client.load_model(model)
        assert answers(client) == expected
        config = client.get_model_config("ex-warm", as_json=True)["config"]
        assert config["parameters"]["mine"] == {"string_value": "yes"}
        assert len(config["model_warmup"]) == 1


def test_export_is_repeated_and_replaces_only_what_it_wrote(deployed: Api, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    publish(deployed, "ex-moving", directories.scaling(1.0))
    publish(deployed, "ex-moving", directories.scaling(2.0))
    assert deployed.deploy("ex-moving:1")["state"] == "succeeded"
    assert export(cli, deployed, "--all", folder)["ex-moving"] == ("exported", "")
    before = files(folder)
    assert export(cli, deployed, "ex-moving", folder)["ex-moving"] == ("unchanged", "")
    assert files(folder) == before

    assert deployed.deploy("ex-moving:2")["state"] == "succeeded"
    # Killed between its two renames: the earlier export is out of its place, and the new one is not in it.
    (folder / ".tritonctl-export" / "ex-moving" / "2").mkdir(parents=True)
    (folder / ".tritonctl-export" / "ex-moving" / "2" / "model.py").write_bytes(b"half")
    (folder / ".tritonctl-export" / "ex-moving" / "stale").write_bytes(b"of another version")
    (folder / "ex-moving").rename(folder / ".tritonctl-export" / "ex-moving~old")
    assert export(cli, deployed, "ex-moving", folder)["ex-moving"] == ("replaced", "")
    assert "2/model.py" in files(folder / "ex-moving")
    assert "1/model.py" not in files(folder / "ex-moving")
    assert not (folder / ".tritonctl-export").exists()

    (folder / "ex-python" / "data" / "factor.txt").write_text("6")
    result, message = export(cli, deployed, "ex-python", folder, code=7)["ex-python"]
    assert result == "refused"
    assert "has other files than tritonctl exported there" in message
    assert (folder / "ex-python" / "data" / "factor.txt").read_text() == "6"

    removed = deployed.ok(deployed.http.delete("/v1/deployments/ex-moving"), 202)
    assert deployed.operation(removed["operation_id"])["state"] == "succeeded"
    rows = export(cli, deployed, "--all", folder, code=7)
    assert {model: result for model, (result, _) in rows.items() if result != "unchanged"} == {
        "ex-moving": "left",
        "ex-python": "refused",
    }
    assert "1.0" not in files(folder / "ex-moving")["data/factor.txt"].decode()


def test_folder_with_other_content_is_refused(deployed: Api, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other" / "mine" / "1").mkdir(parents=True)
    (tmp_path / "other" / "mine" / "config.pbtxt").write_text('backend: "python"')
    done = cli("export", "ex-python", tmp_path / "other", "--url", deployed.url)
    assert done.code == 6
    assert "contains 'mine', which is not an export" in done.err
    (tmp_path / "file").write_text("")
    assert "is not a folder" in cli("export", "--all", tmp_path / "file", "--url", deployed.url).err
    done = cli("export", "ex-python", "ex-missing", tmp_path / "new", "--url", deployed.url)
    assert done.code == 3
    assert not (tmp_path / "new").exists(), "one wrong name leaves no half export"
    assert "--all" in cli("export", "ex-python", "--url", deployed.url).err

    target = tmp_path / "linked"
    export(cli, deployed, "ex-python", target)
    shutil.move(target / "ex-python", tmp_path / "elsewhere")
    (target / "ex-python").symlink_to(tmp_path / "elsewhere")
    assert export(cli, deployed, "ex-python", target, code=7)["ex-python"][0] == "refused"
    assert files(tmp_path / "elsewhere")
