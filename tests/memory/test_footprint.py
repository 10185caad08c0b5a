"""Estimated footprints compared with measurements of a real server."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import helper, numpy_helper

from controlplane.domain.deployment import DeploymentSettings, InstanceKind
from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.memory.policy.footprint import MIB, estimate
from controlplane.memory.policy.types import Footprint, FootprintSource
from controlplane.triton.model_config import build_config
from tests.support.triton import running_triton
from tests.support.triton_models import onnx_model, spec


def manifest(kind: Format, mib: float, shape: tuple[int, ...], wide: tuple[int, ...], parameters: int = 0) -> Manifest:
    def tensor(name: str, size: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(name=name, dtype=DataType.FP32, shape=(-1, *size))

    return Manifest(
        format=kind,
        files=(FileEntry(path="model", sha256="0" * 64, size_bytes=int(mib * MIB)),),
        signature=Signature(inputs=(tensor("x", shape),), outputs=(tensor("y", wide),), batched=True),
        attributes={"parameters": parameters} if parameters else {},
    )


def guess(found: Manifest, *, batch: int = 8, instances: int = 1, kind: str = "cpu") -> Footprint:
    return estimate(
        found, DeploymentSettings(), backend=found.format.backend or "", kind=kind, instances=instances,
        max_batch_size=batch,
    )  # fmt: skip


# Name, file MiB, input and output shape, weights, batch, instances, measured MiB (the peak, where it was above).
MEASURED = [
    ("onnx", 0.0, (4,), (4,), 16, 8, 1, 69.6),
    ("onnx", 10.0, (512,), (512,), 10 * 512**2, 8, 1, 82.7),
    ("onnx", 48.0, (1024,), (1024,), 12 * 1024**2, 8, 1, 124.7),
    ("onnx", 192.0, (2048,), (2048,), 12 * 2048**2, 8, 1, 372.8),
    ("onnx", 192.0, (2048,), (2048,), 12 * 2048**2, 256, 1, 379.0),
    ("onnx", 768.0, (4096,), (4096,), 12 * 4096**2, 8, 1, 897.2),
    ("onnx", 96.0, (2048,), (2048,), 12 * 2048**2, 8, 1, 385.2),
    ("onnx", 48.0, (1024,), (1024,), 12 * 1024**2, 8, 3, 373.7),
    ("onnx", 0.71, (3, 112, 112), (64, 112, 112), 186_048, 8, 1, 201.7),
    ("onnx", 0.71, (3, 112, 112), (64, 112, 112), 186_048, 32, 1, 592.5),
    ("torchscript", 0.0, (4,), (4,), 0, 8, 1, 247.5),
    ("torchscript", 48.1, (1024,), (1024,), 0, 8, 1, 298.0),
    ("torchscript", 192.1, (2048,), (2048,), 0, 8, 1, 443.8),
    ("torchscript", 48.1, (1024,), (1024,), 0, 8, 3, 891.8),
]


@pytest.mark.parametrize(("kind", "mib", "shape", "wide", "weights", "batch", "instances", "measured"), MEASURED)
def test_measured_sizes_are_within_the_margin_of_the_estimate(
    kind: str, mib: float, shape: tuple[int, ...], wide: tuple[int, ...], weights: int, batch: int, instances: int,
    measured: float,
) -> None:  # fmt: skip
    found = guess(manifest(Format(kind), mib, shape, wide, weights), batch=batch, instances=instances)
    assert found.source is FootprintSource.ESTIMATE
    assert found.bytes * 0.7 <= measured * MIB <= found.reserve_bytes
    assert found.reserve_bytes <= 2.2 * measured * MIB


def test_half_precision_weights_are_detected_by_size_and_keep_it_on_a_gpu() -> None:
    half = manifest(Format.ONNX, 100, (4,), (4,), parameters=50 * MIB)
    single = manifest(Format.ONNX, 100, (4,), (4,), parameters=25 * MIB)
    assert guess(half).bytes > guess(single).bytes + 150 * MIB
    assert guess(half, kind="gpu") == guess(single, kind="gpu")


def test_free_dimensions_and_text_have_an_assumed_size() -> None:
    def sized(dtype: DataType, *shape: int) -> Footprint:
        tensors = (TensorSpec(name="x", dtype=dtype, shape=shape),)
        made = manifest(Format.ONNX, 1, (1,), (1,)).model_copy(
            update={"signature": Signature(inputs=tensors, outputs=tensors)}
        )
        return guess(made, batch=0)

    assert sized(DataType.FP32, -1, 1000) == sized(DataType.FP32, 64, 1000)
    assert sized(DataType.BYTES, 1000) == sized(DataType.UINT8, 64, 1000)


def test_a_version_without_a_signature_still_has_an_estimate() -> None:
    found = manifest(Format.ONNX, 10, (4,), (4,)).model_copy(update={"signature": None})
    assert guess(found).bytes > 80 * MIB


@pytest.mark.triton
@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_real_server_needs_no_more_than_is_reserved(tmp_path: Path) -> None:
    """Load and query three new files; compare the resident memory of the processes with the reservation."""
    cases = [(256, 2, 8), (1536, 3, 16), (2560, 3, 4)]
    with running_triton(tmp_path / "triton") as triton:
        for number, (width, layers, batch) in enumerate(cases):
            rng = np.random.default_rng(number)
            weights = [
                numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32), f"w{layer}")
                for layer in range(layers)
            ]
            names = ["x", *(f"h{layer}" for layer in range(layers - 1)), "y"]
            nodes = [
                helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(layers)
            ]
            made = onnx_model(
                tmp_path / f"m{number}.onnx", nodes, [spec("x", "FP32", -1, width)], [spec("y", "FP32", -1, width)],
                batched=True, initializers=weights,
            )  # fmt: skip
            wanted = DeploymentSettings(max_batch_size=batch, instance_kind=InstanceKind.CPU)
            config = build_config(f"m{number}", made.manifest, wanted, [1])
            triton.repository.stage(f"m{number}", 1, made.files, config)

            async def ask(name: str, config: dict[str, Any], shape: tuple[int, int]) -> None:
                client = triton.client()
                try:
                    await client.load(name, config)
                    for _ in range(3):
                        await client.infer(name, {"x": np.ones(shape, np.float32)})
                finally:
                    await client.close()

            asyncio.run(ask(f"m{number}", config, (batch, width)))
            used = sum(psutil.Process(pid).memory_info().rss for pid in triton.server.processes_of(f"m{number}"))
            reserved = guess(made.manifest, batch=batch).reserve_bytes
            assert used <= reserved
            assert reserved < 2.5 * used
