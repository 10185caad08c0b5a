"""Estimates of what a version needs before anybody has loaded it."""

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Manifest
from controlplane.domain.signature import TensorSpec
from controlplane.memory.types import Footprint, FootprintSource

MIB = 1024 * 1024
_DYNAMIC_SIZE = 64
"""Assumed size of a dimension that each request chooses."""
_TEXT_BYTES = 64
"""Assumed bytes of one BYTES element."""


def estimate(
    manifest: Manifest,
    settings: DeploymentSettings,
    *,
    backend: str,
    kind: str,
    instances: int,
    max_batch_size: int,
) -> Footprint:
    """Estimate what one version needs on one device.

    Args:
        manifest: Files, attributes and signature.
        settings: How it shall be run.
        backend: Triton's backend, ``onnxruntime`` or ``pytorch``.
        kind: ``cpu`` or ``gpu``.
        instances: How many on that device.
        max_batch_size: The largest batch; 0 without batching.
    """
    process = 70 * MIB if backend == "onnxruntime" else 250 * MIB
    weights = int(manifest.size_bytes * 1.1)
    each = process + weights + _activations(manifest, max(max_batch_size, 1))
    total = each * max(instances, 1)
    return Footprint(bytes=total, error_bytes=total // 4, source=FootprintSource.ESTIMATE, peak_bytes=total)


def _activations(manifest: Manifest, batch: int) -> int:
    if manifest.signature is None:
        return 0
    tensors = (*manifest.signature.inputs, *manifest.signature.outputs)
    return sum(_tensor_bytes(spec, batch, batched=manifest.signature.batched) for spec in tensors)


def _tensor_bytes(spec: TensorSpec, batch: int, *, batched: bool) -> int:
    size = spec.dtype.size_bytes or _TEXT_BYTES
    for position, dimension in enumerate(spec.shape):
        size *= batch if batched and position == 0 else (_DYNAMIC_SIZE if dimension < 0 else dimension)
    return size
