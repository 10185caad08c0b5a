"""Versions of the software that takes part in a conversion, for the lineage."""

import platform
import sys
from importlib import metadata

_PACKAGES = (
    "triton-control-plane", "numpy", "onnx", "onnxruntime", "onnxscript", "torch", "safetensors", "scikit-learn",
    "skl2onnx", "skops", "xgboost", "xgboost-cpu", "lightgbm", "transformers", "tokenizers",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages, without packages that are not installed."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    facts["byteorder"] = sys.byteorder
    return facts
