"""Versions of the Python packages with which the embedded server's backends run models."""

from importlib.metadata import PackageNotFoundError, version

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
