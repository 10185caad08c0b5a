"""Versions of what the embedded server's backends run models with: Python packages, and the processor."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime"), "pytorch": ("torch",)}


def runtime_version(backend: str) -> str:
    """Return the package of a backend with its version; empty if it is not installed.

    The result is not cached: a load starts a process, which imports the package that is installed at that time.
    """
    for package in _PACKAGES.get(backend, ()):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return ""


def packages() -> dict[str, str]:
    """Return the version of the package of each backend; a backend whose package is not installed is left out."""
    found = {backend: runtime_version(backend).rpartition(" ")[2] for backend in _PACKAGES}
    return {backend: number for backend, number in found.items() if number}


@cache
def processor() -> str:
    """Return the digest of this machine's processor model and features: kernels are chosen, and round, by them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return "processor unknown"
    kept = sorted(line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features")))
    return f"processor {hashlib.sha256(chr(10).join(kept).encode()).hexdigest()[:12]}"
