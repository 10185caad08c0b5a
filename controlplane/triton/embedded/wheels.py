"""The embedded server's own packages: Triton, and the NumPy that the stubs of its Python backend need.

Both come from the package index into a folder of their own, so that the environment of tritonctl may have any NumPy.
The stub of Triton 2.51 (pybind11 2.10) knows the memory layout of NumPy 1 alone: with NumPy 2, outputs are empty. Only
the stubs import from this folder, before the environment's packages (onnxruntime, torch, those of models).
"""

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from controlplane.errors import TritonStartError

REQUIREMENTS = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
PYTHONS = ((3, 11), (3, 12))
"""Versions of Python for which all of them have wheels."""
_TIMEOUT_SECONDS = 900.0
_INCOMPLETE = ".incomplete-"


def find_packages() -> Path | None:
    """Return the folder of the packages; None if they are not installed."""
    return next((folder for folder in _places() if folder.is_dir()), None)


def unsupported() -> str:
    """Return why the packages cannot be installed on this machine, and what to do; empty if they can."""
    machine, python = f"{sys.platform} on {platform.machine()}", f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return (
            f"the embedded Triton needs Linux on x86-64, and this is {machine}; run Triton elsewhere and use "
            "`tritonctl serve`"
        )
    if sys.version_info[:2] not in PYTHONS:
        return (
            f"the embedded Triton needs Python 3.11 or 3.12, and this is {python}: its Python backend needs NumPy 1, "
            "which has no wheels for later versions; run tritonctl with one of them, or Triton elsewhere and use "
            "`tritonctl serve`"
        )
    return ""


def install_packages() -> Path:
    """Install the packages with pip, unless they are installed, and return their folder.

    The folder appears by one rename, so that neither a concurrent process nor a kill leaves it incomplete. It is in the
    environment of this Python if that is writable, otherwise in the user's cache.

    Raises:
        TritonStartError: This machine or its Python is not supported, or pip failed.
    """
    if reason := unsupported():
        raise TritonStartError(reason)
    target = next(folder for folder in _places() if _writable(folder.parent) or folder.is_dir())
    with _lock(target.parent):
        if found := find_packages():
            return found
        for left in target.parent.glob(f"{_INCOMPLETE}*"):  # by a process that was killed: it held the lock
            shutil.rmtree(left, ignore_errors=True)
        building = Path(tempfile.mkdtemp(prefix=_INCOMPLETE, dir=target.parent))
        try:
            _pip(building)
            building.chmod(0o755)  # the stubs may run as another user
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _places() -> Iterator[Path]:
    name = "-".join(("embedded", *(one.replace("==", "-") for one in REQUIREMENTS)))
    name += f"-cp{sys.version_info[0]}{sys.version_info[1]}"
    yield Path(sys.prefix) / "share" / "tritonctl" / name
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path.home() / ".cache" / "tritonctl" / name


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time install; the kernel releases the lock when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _pip(folder: Path) -> None:
    """Install the packages with this Python's pip and its configuration."""
    options = ["--no-deps", "--only-binary=:all:", "--no-user", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-P", "-m", "pip", "install", *options, f"--target={folder}", *REQUIREMENTS]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TritonStartError(f"pip could not install the embedded Triton: {error}") from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise TritonStartError(
            f"the embedded Triton is installed with pip, which {sys.executable} does not have; add it with "
            f"`{sys.executable} -m ensurepip`, then run `tritonctl setup`"
        )
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
    raise TritonStartError(
        f"pip could not install the embedded Triton ({', '.join(REQUIREMENTS)}): {(lines or ['no output'])[-1]}. If "
        "this machine cannot reach a package index, run `pip download --no-deps -d wheels "
        f"{' '.join(REQUIREMENTS)}` on another one with the same Python, copy the folder `wheels`, and run "
        "`PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels tritonctl setup` here"
    )
