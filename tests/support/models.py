"""Tiny real ONNX models: fast to load, and identifiable by their answers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from controlplane.domain.manifest import FileEntry, Format, GoldenSamples, Manifest
from controlplane.domain.samples import Sample, encode_samples
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.registry.artifact import scan
from controlplane.registry.registry import Registry


def affine_onnx(
    path: Path, *, scale: float, bias: float = 0.0, width: int = 4, reserve_mib: int = 0, resident_mib: int = 0
) -> Path:
    """Write ``y = x * scale + bias`` over rows of ``width`` floats.

    Args:
        path: Where.
        scale: The factor.
        bias: The summand.
        width: Floats in a row.
        reserve_mib: MiB of weights that no node uses; ONNX Runtime reads and releases them.
        resident_mib: MiB of weights that stay in memory: one of them is read, and multiplied by zero.
    """
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale]),
        helper.make_tensor("bias", TensorProto.FLOAT, [1], [bias]),
    ]
    nodes = [helper.make_node("Mul", ["x", "scale"], ["m"]), helper.make_node("Add", ["m", "bias"], ["y"])]
    if reserve_mib:
        values = np.full(reserve_mib * 262_144, scale, dtype=np.float32)
        constants.append(helper.make_tensor("ballast", TensorProto.FLOAT, values.shape, values.tobytes(), raw=True))
    if resident_mib:
        values = np.full(resident_mib * 262_144, scale, dtype=np.float32)
        constants.append(helper.make_tensor("weights", TensorProto.FLOAT, values.shape, values.tobytes(), raw=True))
        constants.append(helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]))
        nodes[1] = helper.make_node("Add", ["m", "bias"], ["sum"])
        nodes += [
            helper.make_node("Shape", ["x"], ["shape"], end=1),  # known only at run time, so nothing is folded
            helper.make_node("Gather", ["weights", "shape"], ["one"]),
            helper.make_node("Mul", ["one", "zero"], ["nothing"]),
            helper.make_node("Add", ["sum", "nothing"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "affine", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def affine_signature(width: int = 4) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype=DataType.FP32, shape=(-1, width)),),
        outputs=(TensorSpec(name="y", dtype=DataType.FP32, shape=(-1, width)),),
        batched=True,
    )


def affine_samples(*, scale: float, bias: float = 0.0, width: int = 4, count: int = 2) -> tuple[Sample, ...]:
    rng = np.random.default_rng(7)
    inputs = [rng.standard_normal((2, width), dtype=np.float32) for _ in range(count)]
    return tuple(Sample({"x": x}, {"y": (x * np.float32(scale) + np.float32(bias)).astype(np.float32)}) for x in inputs)


def publish_affine(
    registry: Registry,
    model: str,
    work: Path,
    *,
    scale: float,
    width: int = 4,
    golden: tuple[Sample, ...] | str | None = "right",
    content: bytes | None = None,
    reserve_mib: int = 0,
    resident_mib: int = 0,
    **publish: Any,
) -> int:
    """Publish a model that multiplies by ``scale``; return its version number.

    Args:
        registry: Where.
        model: The model's name.
        work: A folder to write into.
        scale: What it multiplies by.
        width: Floats per row; another one is another signature.
        golden: ``"right"`` records its true answers; samples are recorded as they are; None records none.
        content: Bytes to publish in place of the model's, to have one that cannot be loaded.
        reserve_mib: MiB of weights that do nothing.
        resident_mib: MiB of weights that stay in memory.
        publish: More for `Registry.publish`.
    """
    path = work / f"{model}-{scale}-{width}" / "model.onnx"
    if content is None:
        affine_onnx(path, scale=scale, width=width, reserve_mib=reserve_mib, resident_mib=resident_mib)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    samples = affine_samples(scale=scale, width=width) if golden == "right" else golden
    files = {entry.sha256: source for entry, source in scan(path)}
    entries: list[FileEntry] = [entry for entry, _ in scan(path)]
    recorded = None
    if samples:
        assert not isinstance(samples, str)
        stored = path.parent / "golden.npz"
        stored.write_bytes(encode_samples(samples))
        (entry, source), *_ = scan(stored)
        files[entry.sha256] = source
        recorded = GoldenSamples(file=entry, count=len(samples))
    manifest = Manifest(format=Format.ONNX, files=tuple(entries), signature=affine_signature(width), golden=recorded)
    return registry.publish(model, manifest, files, actor="test", **publish).number
