"""The embedded server's own packages: how they are installed, with the real pip, and what the stubs import."""

import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from controlplane.errors import TritonStartError
from controlplane.triton.embedded import installation, wheels
from tests.support.triton import RunningTriton

_VERSIONS = """
import json
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        text = json.dumps({"numpy": np.__version__, "runtime": onnxruntime.__file__})
        tensor = pb_utils.Tensor("y", np.array([text.encode()], dtype=object))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]
"""


def wheel(folder: Path, name: str) -> None:
    """Write a wheel with one module."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{name}.py", "VALUE = 7\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without the packages, and a package index in a folder that has them."""
    for name in ("first_part", "second_part"):
        wheel(tmp_path / "wheels", name)
    monkeypatch.setattr(wheels, "REQUIREMENTS", ("first_part==1.0", "second_part==1.0"))
    monkeypatch.setattr(wheels, "PYTHONS", (sys.version_info[:2],))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "prefix"


def test_packages_are_installed_once_by_concurrent_callers_and_kept(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = prefix / "share" / "tritonctl" / ".incomplete-killed"
    left.mkdir(parents=True)
    assert wheels.find_packages() is None
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: wheels.install_packages(), range(2)))
    assert folders == {wheels.find_packages()}
    (folder,) = folders
    assert folder.parent == prefix / "share" / "tritonctl"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {path.name for path in folder.glob("*_part.py")} == {"first_part.py", "second_part.py"}
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert wheels.install_packages() == folder


def test_packages_are_installed_in_the_cache_if_the_environment_is_read_only(prefix: Path, tmp_path: Path) -> None:
    prefix.touch()  # root can write to a folder without permissions, but not into a file
    assert wheels.install_packages().parent == tmp_path / "home" / ".cache" / "tritonctl"


def test_failure_of_pip_leaves_nothing_and_says_what_to_do(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels" / "second_part-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        TritonStartError, match=r"second_part==1\.0.*`pip download --no-deps -d wheels first_part==1\.0"
    ):
        wheels.install_packages()
    assert list((prefix / "share" / "tritonctl").iterdir()) == []
    assert wheels.find_packages() is None


def test_missing_pip_is_reported(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare" / "bin"
    bare.mkdir(parents=True)
    (bare / "python3").symlink_to(Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
    (bare.parent / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n")
    monkeypatch.setattr(sys, "executable", str(bare / "python3"))
    with pytest.raises(TritonStartError, match=r"does not have; add it with .* -m ensurepip"):
        wheels.install_packages()


@pytest.mark.parametrize(
    ("platform", "pythons", "message"),
    [
        ("darwin", (), "needs Linux on x86-64, and this is darwin"),
        ("linux", ((3, 9),), "needs Python 3.11 or 3.12, and this is Python .* NumPy 1"),
    ],
)
def test_machine_that_cannot_have_the_packages_is_refused(
    platform: str, pythons: tuple[tuple[int, int], ...], message: str, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(wheels, "PYTHONS", pythons)
    with pytest.raises(TritonStartError, match=message):
        wheels.install_packages()


def test_missing_packages_are_reported_at_the_start(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_numpy_major", lambda: 2)
    assert installation.needs_packages()
    with pytest.raises(TritonStartError, match="is not installed; run `tritonctl setup`"):
        installation.find_installation()


def test_stub_for_numpy_2_needs_no_packages(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "tritonserver" / "backends" / "python" / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    monkeypatch.setattr(installation, "_numpy_major", lambda: 2)
    stub.write_bytes(b"\0numpy.lib\0NumpyVersion\0")
    assert not installation.needs_packages(tmp_path / "tritonserver")
    stub.write_bytes(b"\0numpy.core.multiarray\0")
    assert installation.needs_packages(tmp_path / "tritonserver")


@pytest.mark.triton
async def test_models_have_numpy_1_and_the_packages_of_the_environment(triton: RunningTriton) -> None:
    """The outputs of the stub of Triton 2.51 would be empty with NumPy 2."""
    import onnxruntime

    folder = triton.server.repository / "versions" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_VERSIONS)
    tensor = {"dims": [1], "data_type": "TYPE_FP32"}
    config = {"name": "versions", "backend": "python", "input": [{"name": "x", **tensor}]}
    client = triton.client()
    await client.load("versions", {**config, "output": [{"name": "y", **tensor, "data_type": "TYPE_STRING"}]})
    outputs, _ = await client.infer("versions", {"x": np.zeros(1, np.float32)})
    await client.unload("versions")
    triton.repository.remove_model("versions")
    await client.close()
    found = str(outputs["y"][0])
    assert '"numpy": "1.26.4"' in found
    assert str(Path(onnxruntime.__file__).parent) in found
