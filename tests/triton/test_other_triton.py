"""Another unpacked Triton in place of the wheel's (`triton.root`): a real server from a folder of its own."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from controlplane.domain.portability import embedded_target, with_native_backends
from controlplane.errors import TritonStartError
from controlplane.settings import TritonSettings
from controlplane.triton.embedded.backend_directory import assemble_backends, backend_names, native_backends
from controlplane.triton.embedded.installation import find_installation, read_version
from controlplane.triton.repository import ModelRepository
from tests.support.triton import RunningTriton, running_triton
from tests.support.triton_models import scale
from tests.support.triton_serving import Serving

pytestmark = pytest.mark.triton

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"
_DOUBLER = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        arrays = [request.inputs()[0].as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * array)]) for array in arrays]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's Triton, arranged as in NVIDIA's image: libraries in `lib`, a stub beside the Python backend."""
    wheel = find_installation()
    root = tmp_path_factory.mktemp("unpacked") / "tritonserver"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("bin", "backends"):
        shutil.copytree(wheel.root / name, root / name, ignore=ignore)
    shutil.copytree(next(path for path in wheel.libraries if path.name == "nvidia_pytriton.libs"), root / "lib")
    shutil.copy2(wheel.stub, root / "backends" / "python" / STUB)
    (root / "backends" / "doubler").mkdir()
    (root / "backends" / "doubler" / "model.py").write_text(_DOUBLER)
    return root


@pytest.fixture
def other(root: Path, tmp_path: Path) -> Iterator[RunningTriton]:
    with running_triton(tmp_path, TritonSettings(root=root)) as running:
        yield running


async def test_server_of_the_folder_runs_with_its_own_backends(
    root: Path, other: RunningTriton, tmp_path: Path
) -> None:
    pid = other.server.pid
    assert pid is not None
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert command[0] == str(root / "bin" / "tritonserver").encode()
    assert backend_names(other.server.backends) == {"python", "onnxruntime", "pytorch", "doubler"}
    client = other.client()
    serving = Serving(other.server, ModelRepository(other.server.repository), client)
    name = await serving.serve(scale(tmp_path / "m.onnx", 3.0))
    x = np.arange(3, dtype=np.float32).reshape(1, 3)
    outputs, _ = await client.infer(name, {"x": x})
    np.testing.assert_array_equal(outputs["y"], x * 3)
    tensor = {"data_type": "TYPE_FP32", "dims": [1, 3]}
    folder = other.server.repository / "twice" / "1"
    folder.mkdir(parents=True)
    config = {"name": "twice", "backend": "doubler", "input": [{"name": "x", **tensor}]}
    await client.load("twice", {**config, "output": [{"name": "y", **tensor}], "max_batch_size": 0})
    outputs, _ = await client.infer("twice", {"x": x})
    np.testing.assert_array_equal(outputs["y"], x * 2)
    await client.close()


def test_version_is_read_from_the_folder_or_from_the_server(root: Path, tmp_path: Path) -> None:
    assert read_version(find_installation(root)) == read_version(find_installation())
    copy = tmp_path / "tritonserver"
    copy.mkdir()
    for path in root.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "TRITON_VERSION").write_text("2.73.0\n")
    assert read_version(find_installation(copy)) == "2.73.0"


def test_native_backend_of_the_folder_replaces_the_python_based_one(root: Path, tmp_path: Path) -> None:
    native = tmp_path / "tritonserver" / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    shutil.copytree(root / "backends", tmp_path / "tritonserver" / "backends")
    for name in ("bin", "lib"):
        (tmp_path / "tritonserver" / name).symlink_to(root / name)
    native.parent.mkdir()
    native.write_bytes(b"first")
    found = find_installation(tmp_path / "tritonserver")
    backends = assemble_backends(found, tmp_path / "run")
    assert (backends / "onnxruntime").resolve() == native.parent
    assert not (backends / "onnxruntime" / "model.py").exists()
    assert native_backends(backends) == {"onnxruntime"}
    native.write_bytes(b"another build")
    assert assemble_backends(found, tmp_path / "run") != backends
    target = with_native_backends(embedded_target({"onnxruntime": "1.32.0"}), native_backends(backends), "24.10")
    assert target.onnx is not None
    assert target.onnx.runtime == "1.19.2"
    assert target.backends == frozenset({"python", "onnxruntime"})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("bin/tritonserver", "has no server binary: bin/tritonserver is missing; set CONTROLPLANE_TRITON__ROOT"),
        ("backends/python/libtriton_python.so", "has no Python backend"),
        (f"backends/python/{STUB}", "has no Python backend stub"),
    ],
)
def test_incomplete_folder_is_refused_with_what_is_missing(
    root: Path, tmp_path: Path, broken: str, message: str
) -> None:
    for path in (path for path in root.rglob("*") if path.is_file()):
        if (relative := str(path.relative_to(root))) != broken:
            (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / relative).symlink_to(path)
    with pytest.raises(TritonStartError, match=message):
        find_installation(tmp_path)


def test_stub_for_another_python_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "backends", tmp_path / "backends")
    (tmp_path / "bin").symlink_to(root / "bin")
    stub = tmp_path / "backends" / "python" / STUB
    stub.write_bytes(stub.read_bytes().replace(f"libpython{PYTHON}.so".encode(), b"libpython3.9.so"))
    with pytest.raises(TritonStartError, match=rf"is for Python 3\.9, and this is Python {PYTHON}; run tritonctl with"):
        find_installation(tmp_path)


def test_library_that_a_stub_needs_is_missing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").symlink_to(root / "bin")
    shutil.copytree(root / "backends", tmp_path / "backends")
    with pytest.raises(TritonStartError, match="libcudart"):
        find_installation(tmp_path)
