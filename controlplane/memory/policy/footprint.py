"""Estimates of what a version needs before its first load.

The numbers were measured on the embedded Triton (2.51.0, Python 3.11, onnxruntime and torch 2.13 on the CPU, x86-64),
as the resident memory of the stub processes after a load and a few requests of the largest batch. Each instance is a
process:

==========================================  ==========  ==========  ========
model, batch                                file (MiB)  RSS (MiB)   peak
==========================================  ==========  ==========  ========
ONNX, 4 x 4                                        0.0        69.6      69.6
ONNX, 10 matrices of 512 x 512                    10.0        82.7      82.7
ONNX, 12 of 1024 x 1024                           48.0       124.7     124.7
ONNX, 12 of 2048 x 2048                          192.0       372.8     372.8
ONNX, 12 of 4096 x 4096                          768.0       838.6     897.2
ONNX, 12 of 2048 x 2048, FP16                     96.0       357.1     385.2
ONNX, 12 of 1024 x 1024, 3 instances              48.0       373.7     373.7
ONNX, 6 convolutions, 27 MiB in and out            0.7       201.7     201.7
ONNX, the same, batch 32, 108 MiB in and out       0.7       592.5     592.5
TorchScript, 4 x 4                                 0.0       247.5     247.5
TorchScript, 12 linear of 1024                    48.1       298.0     298.0
TorchScript, 12 linear of 2048                   192.1       443.8     443.8
TorchScript, 12 linear of 1024, 3 instances       48.1       891.8     891.8
==========================================  ==========  ==========  ========

Weights of an ONNX file need 1.0 to 1.6 times their size (ONNX Runtime packs matrices for its kernels and may keep
both), and FP16 weights up to 3 times (the CPU kernels compute in FP32). Input and output tensors, with the intermediate
ones, need 2 to 5 times their size. Intermediate tensors are in no signature, so the error allows for as much again.

No GPU was available for measurement. On a GPU, weights keep their type, and each process has a CUDA context; those
numbers are assumptions, with a wide error, and the first measurement replaces them.
"""

from dataclasses import dataclass

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Format, Manifest
from controlplane.domain.pipelines import ENSEMBLE
from controlplane.domain.signature import TensorSpec
from controlplane.memory.policy.types import Footprint, FootprintSource

MIB = 1024 * 1024
DYNAMIC_SIZE = 64
"""Assumed size of a dimension that each request chooses."""
TEXT_BYTES = 64
"""Assumed bytes of one element of text."""
_HALF_BYTES = (1.5, 3.0)
"""Range of file bytes for each weight within which the weights are 16-bit floats."""


@dataclass(frozen=True, slots=True)
class _Figures:
    """Coefficients derived from the measurements above.

    Attributes:
        process: Bytes of an instance without a model.
        process_error: How much larger that may be.
        weights: Bytes in memory for each byte of weights in the file.
        weights_error: How much larger that factor may be.
        tensors: Bytes in memory for each byte of input and output at the largest batch.
        tensors_error: How much larger that factor may be.
    """

    process: int
    process_error: int
    weights: float
    weights_error: float
    tensors: float = 5.0
    tensors_error: float = 5.0


_ONNX = _Figures(process=70 * MIB, process_error=10 * MIB, weights=1.3, weights_error=0.35)
_ONNX_HALF = _Figures(process=70 * MIB, process_error=10 * MIB, weights=3.0, weights_error=0.5)
_TORCH = _Figures(process=248 * MIB, process_error=25 * MIB, weights=1.05, weights_error=0.15)
_GPU = _Figures(process=256 * MIB, process_error=256 * MIB, weights=1.1, weights_error=0.4)


def estimate(
    manifest: Manifest,
    settings: DeploymentSettings,  # noqa: ARG001 - backends read parameters that will matter here
    *,
    backend: str,
    kind: str,
    instances: int,
    max_batch_size: int,
) -> Footprint:
    """Estimate what one version needs on one device.

    Args:
        manifest: Files, attributes and signature.
        settings: The settings of the deployment.
        backend: Triton's backend, ``onnxruntime`` or ``pytorch``; an ensemble needs no memory of its own, and others
            count as the larger of the two.
        kind: The kind of the device, ``cpu`` or ``gpu``.
        instances: The number of instances on that device; each is a process with its own weights.
        max_batch_size: The largest batch; 0 without batching.

    Returns:
        The size, and how much larger the need may be. The peak of a load is within that.
    """
    if backend == ENSEMBLE:
        return Footprint(0)
    figures = _figures(manifest, backend, kind)
    weights = _weights_bytes(manifest)
    tensors = _tensors_bytes(manifest, max(max_batch_size, 1))
    each = figures.process + figures.weights * weights + figures.tensors * tensors
    error = figures.process_error + figures.weights_error * weights + figures.tensors_error * tensors
    count = max(instances, 1)
    return Footprint(
        bytes=int(each * count),
        error_bytes=int(error * count),
        source=FootprintSource.ESTIMATE,
        peak_bytes=int(each * count),
    )


def _figures(manifest: Manifest, backend: str, kind: str) -> _Figures:
    if kind == "gpu":
        return _GPU
    if backend != "onnxruntime":
        return _TORCH
    return _ONNX_HALF if _is_half(manifest) else _ONNX


def _is_half(manifest: Manifest) -> bool:
    """Return whether the weights are 16-bit floats; derived from the file size, as the file does not state it."""
    count = manifest.attributes.get("parameters")
    if manifest.format is not Format.ONNX or not isinstance(count, int) or count < 1:
        return False
    low, high = _HALF_BYTES
    return low <= manifest.size_bytes / count < high


def _weights_bytes(manifest: Manifest) -> int:
    stated = manifest.attributes.get("weights_bytes")
    # An archive states the size of its tensors; an ONNX file consists almost only of weights.
    return stated if isinstance(stated, int) and 0 < stated <= manifest.size_bytes else manifest.size_bytes


def _tensors_bytes(manifest: Manifest, batch: int) -> int:
    signature = manifest.signature
    if signature is None:
        return 0
    return sum(
        _tensor_bytes(spec, batch, batched=signature.batched) for spec in (*signature.inputs, *signature.outputs)
    )


def _tensor_bytes(spec: TensorSpec, batch: int, *, batched: bool) -> int:
    size = spec.dtype.size_bytes or TEXT_BYTES
    for position, dimension in enumerate(spec.shape):
        size *= batch if batched and position == 0 else (DYNAMIC_SIZE if dimension < 0 else dimension)
    return size
