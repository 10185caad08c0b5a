"""An ONNX model with its weights in a separate file, from push to pull."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.cli.conftest import Cli

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x @ w, with w in ``weights.bin``."""
    folder = tmp_path_factory.mktemp("external") / "projection"
    folder.mkdir()
    weights = np.random.default_rng(5).standard_normal((8, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "projection",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder


def test_external_data_works_from_push_to_pull(cli: Cli, folder: Path, tmp_path: Path) -> None:
    cli.ok("push", folder)
    cli.ok("deploy", "projection")
    weights = np.frombuffer((folder / "weights.bin").read_bytes(), np.float32).reshape(8, 3)
    request = '{"x": [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]]}'
    answer = cli.ok("infer", "projection", "-i", "-", "-o", "json", stdin=request).json
    assert answer["model_version"] in {1, "1"}
    assert np.allclose(np.reshape(answer["outputs"][0]["data"], (2, 3)), weights[[0, 7]])

    cli.ok("validate", folder)
    cli.ok("convert", "projection:1", "--to", "onnx", "--precision", "fp16")
    cli.ok("deploy", "projection:2")
    answer = cli.ok("infer", "projection", "-i", "-", "-o", "json", stdin=request).json
    assert np.allclose(np.reshape(answer["outputs"][0]["data"], (2, 3)), weights[[0, 7]], atol=1e-2)

    cli.ok("pull", "projection:1", tmp_path / "back")
    cli.ok("validate", tmp_path / "back")
    pulled = {file.read_bytes() for file in (tmp_path / "back").rglob("*") if file.is_file()}
    assert {file.read_bytes() for file in folder.iterdir()} <= pulled
