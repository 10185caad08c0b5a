"""Recognizes model files that are not read here, and says how to bring such a model."""

from pathlib import Path

from controlplane.errors import InvalidArtifactError
from converters.archives import Listing

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TFLITE = b"TFL3"
_GGUF = b"GGUF"
_KERAS = frozenset({"config.json", "metadata.json", "model.weights.h5"})
_ENGINES = (".plan", ".engine", ".trt")
_XML = b"<?xml"

AOTINDUCTOR = (
    "compiled code (AOTInductor), which is not converted. Triton runs it on NVIDIA's images from 26.03, as a model "
    'directory with platform: "torch_aoti" and 1/model.pt2. For ONNX or TorchScript, save the exported program itself '
    "with torch.export.save, and convert that"
)


def refuse_other_format(path: Path, head: bytes) -> None:
    """Refuse a file of a known format that is not read here.

    Args:
        path: The file.
        head: Its first bytes.

    Raises:
        InvalidArtifactError: The file has such a format; the message says how to bring the model.
    """
    suffix = path.suffix.lower()
    if head.startswith(_HDF5):
        reason = f"an HDF5 file, as Keras writes it; {_keras()}"
    elif head[4:8] == _TFLITE:
        reason = (
            "a TensorFlow Lite model; export it with `python -m tf2onnx.convert --tflite FILE --output model.onnx`, "
            "and push model.onnx"
        )
    elif head.startswith(_GGUF):
        reason = (
            "a GGUF model of llama.cpp, for which Triton has no backend; serve the original model of Hugging Face "
            'with Triton\'s vLLM backend, as a model directory with backend: "vllm" and 1/model.json'
        )
    elif suffix in _ENGINES:
        reason = (
            "a TensorRT engine, which runs only with the TensorRT release and the kind of GPU that it was built for; "
            'push a model directory with backend: "tensorrt" in config.pbtxt and 1/model.plan'
        )
    elif suffix == ".xml" and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_XML):
        reason = (
            'an XML document. An OpenVINO model is pushed as a model directory with backend: "openvino" in '
            "config.pbtxt, 1/model.xml and 1/model.bin"
        )
    elif path.name == "saved_model.pb":
        reason = f"a TensorFlow SavedModel; {_saved_model('DIR')}"
    else:
        return
    raise InvalidArtifactError(f"{path.name} is {reason}")


def refuse_keras_archive(listing: Listing) -> None:
    """Refuse an archive that Keras wrote (``.keras``).

    Raises:
        InvalidArtifactError: It is one.
    """
    if listing.sizes.keys() >= _KERAS:
        raise InvalidArtifactError(f"{listing.path.name} is a Keras model; {_keras()}")


def refuse_other_folder(folder: Path) -> None:
    """Refuse a folder of a known kind that is not read here.

    Raises:
        InvalidArtifactError: It is one; the message says how to bring the model.
    """
    if (folder / "saved_model.pb").is_file():
        raise InvalidArtifactError(f"{folder.name} is a TensorFlow SavedModel; {_saved_model(folder.name)}")
    if (folder / "model_index.json").is_file():
        raise InvalidArtifactError(
            f"{folder.name} is a pipeline of diffusers, which consists of several models and code between them; "
            "export each model to ONNX, and call them from a Python model (a pipeline)"
        )
    if (folder / "model.xml").is_file() and (folder / "model.bin").is_file():
        raise InvalidArtifactError(
            f'{folder.name} is an OpenVINO model; push a model directory with backend: "openvino" in config.pbtxt, '
            "1/model.xml and 1/model.bin"
        )


def _keras() -> str:
    return "export it with Keras 3, `model.export('model.onnx', format='onnx')`, and push model.onnx"


def _saved_model(folder: str) -> str:
    return (
        f"export it with `python -m tf2onnx.convert --saved-model {folder} --output model.onnx`, and push model.onnx, "
        'or push a model directory with platform: "tensorflow_savedmodel" and 1/model.savedmodel for a server that has '
        "the backend tensorflow"
    )
