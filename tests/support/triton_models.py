"""Small real models to load into a real Triton: files, manifests, and their expected results."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.signature import DataType, Signature, TensorSpec

_ONNX = {
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "INT64": TensorProto.INT64,
    "INT32": TensorProto.INT32,
    "BYTES": TensorProto.STRING,
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "FP16": TensorProto.FLOAT16,
}


@dataclass(frozen=True)
class ModelFiles:
    """A version's files on disk and its manifest."""

    manifest: Manifest
    files: dict[str, Path] = field(default_factory=dict)


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DataType(dtype), shape=shape)


def model_files(path: Path, kind: Format, signature: Signature | None) -> ModelFiles:
    content = path.read_bytes()
    entry = FileEntry(
        path=kind.file_name or path.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
    )
    return ModelFiles(Manifest(format=kind, files=(entry,), signature=signature), {entry.path: path})


def onnx_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    batched: bool = False,
    initializers: Sequence[onnx.TensorProto] = (),
) -> ModelFiles:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [_value(tensor) for tensor in inputs],
        [_value(tensor) for tensor in outputs],
        list(initializers),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return model_files(path, Format.ONNX, Signature(inputs=tuple(inputs), outputs=tuple(outputs), batched=batched))


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        tensor.name, _ONNX[tensor.dtype], [None if size == -1 else size for size in tensor.shape]
    )


def scale(path: Path, factor: float, width: int = 3) -> ModelFiles:
    """y = factor * x, batched."""
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    return onnx_model(
        path,
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [spec("x", "FP32", -1, width)],
        [spec("y", "FP32", -1, width)],
        batched=True,
        initializers=[constant],
    )


def torchscript(path: Path, module: torch.nn.Module, signature: Signature) -> ModelFiles:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # deprecated by PyTorch, and what this format is
        torch.jit.script(module).save(str(path))
    return model_files(path, Format.TORCHSCRIPT, signature)


def load_torchscript(path: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: torch.nn.Module = torch.jit.load(str(path)).eval()
    return module
