"""Files of formats that are not read: the refusal says how to bring the model."""

import zipfile
from pathlib import Path

import pytest

from controlplane.errors import InvalidArtifactError
from converters.inspect import inspect_artifact


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("net.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), r"Keras 3, `model.export\('model.onnx', format='onnx'\)`"),
        ("net.tflite", b"\x20\0\0\0TFL3" + bytes(64), "tf2onnx.convert --tflite"),
        ("net.gguf", b"GGUF\x03" + bytes(64), 'backend: "vllm"'),
        ("net.plan", b"ftrt" + bytes(64), "1/model.plan"),
        ("net.xml", b'\n<?xml version="1.0"?><net/>', 'backend: "openvino"'),
        ("saved_model.pb", b"\x08\x01" + bytes(64), "--saved-model DIR"),
    ],
)
def test_known_file_is_refused_with_a_remedy(name: str, content: bytes, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArtifactError, match=f"^{name} is .*{remedy}"):
        inspect_artifact(tmp_path / name)


def archive(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as new:
        for member in members:
            new.writestr(member, "{}")
    return path


def test_keras_archive_is_refused_with_a_remedy(tmp_path: Path) -> None:
    file = archive(tmp_path / "net.keras", "metadata.json", "config.json", "model.weights.h5")
    with pytest.raises(InvalidArtifactError, match="is a Keras model; export it with Keras 3"):
        inspect_artifact(file)


def test_compiled_torch_program_is_refused_with_a_remedy(tmp_path: Path) -> None:
    file = archive(tmp_path / "net.pt2", "net/archive_format", "net/data/aotinductor/model/a.wrapper.so")
    with pytest.raises(InvalidArtifactError, match=r'torch_aoti" and 1/model\.pt2.*torch\.export\.save'):
        inspect_artifact(file)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (["saved_model.pb", "variables/variables.index"], "tf2onnx.convert --saved-model net"),
        (["model_index.json", "unet/config.json"], "a pipeline of diffusers"),
        (["model.xml", "model.bin"], "1/model.xml and 1/model.bin"),
    ],
)
def test_known_folder_is_refused_with_a_remedy(files: list[str], remedy: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "net" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "net" / name).write_bytes(b"x")
    with pytest.raises(InvalidArtifactError, match=f"^net is .*{remedy}"):
        inspect_artifact(tmp_path / "net")
