"""Finds Triton's server and its Python backend: those of the wheel nvidia-pytriton, or of another unpacked Triton."""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from controlplane.errors import TritonStartError
from controlplane.triton.embedded.wheels import find_packages, unsupported

_VERSION_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Installation:
    """Paths of the parts of a Triton.

    Attributes:
        root: Its folder `tritonserver`, with `bin` and `backends`.
        stub: The stub of its Python backend for the running Python.
        libraries: Folders of the shared libraries that the server and its stubs need.
        packages: Folder of Python packages that its stubs import before those of this Python's environment; None if
            they need none.
    """

    root: Path
    stub: Path
    libraries: tuple[Path, ...]
    packages: Path | None = None

    @property
    def binary(self) -> Path:
        """Return the server's program."""
        return self.root / "bin" / "tritonserver"

    @property
    def python_backend(self) -> Path:
        """Return the folder of the Python backend."""
        return self.root / "backends" / "python"

    @property
    def environment(self) -> dict[str, str]:
        """Return the server's environment; its stubs inherit it.

        The stub is linked against libpython and the wheel's own libraries. Without them it dies at the start and its
        load never returns.
        """
        # Models run code, so they get only the variables that the server, the runtimes and the GPU's driver read.
        environment = {
            name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)
        }
        libraries = [str(path) for path in self.libraries]
        if inherited := environment.get("LD_LIBRARY_PATH"):
            libraries.append(inherited)
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
        # Set as a variable, because onnxruntime writes its session file (.ses) into the temporary folder on import,
        # before `disable_telemetry_events` can be called.
        environment["ORT_DISABLE_TELEMETRY"] = "1"
        return environment

    @property
    def preloaded(self) -> tuple[Path, ...]:
        """Return the folders and libraries that the environment names, for a server that sees only selected paths."""
        named = (os.environ.get("LD_LIBRARY_PATH", ""), os.environ.get("LD_PRELOAD", ""))
        return tuple(Path(one) for text in named for one in text.split(os.pathsep) if one.startswith("/"))


_KEPT = frozenset(
    {"LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "TZ", "TMPDIR", "VIRTUAL_ENV"}
)
_KEPT_PREFIXES = (
    "CUDA_",
    "CUDNN_",
    "KMP_",
    "MALLOC_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "ORT_",
    "TF32_",
)


def find_installation(root: Path | None = None) -> Installation:
    """Find the server and check that its stub can start.

    Args:
        root: The folder `tritonserver` of an unpacked Triton; None for that of the wheel nvidia-pytriton.

    Raises:
        TritonStartError: A part is missing, there is no stub for this Python, or the stub cannot be started.
    """
    found = _wheel() if root is None else _unpacked(root.expanduser().absolute())
    _check_stub(found)
    return found


def needs_packages(root: Path | None = None) -> bool:
    """Return whether packages must be installed (`wheels.install_packages`) before `find_installation` succeeds."""
    if find_packages() is not None:
        return False
    if root is None:
        return _in_environment() is None
    stub = _stub(root.expanduser().absolute())
    return stub.is_file() and _needs_numpy_1(stub)


def _wheel() -> Installation:
    packages = find_packages()
    place = packages or _in_environment()
    if place is None:
        raise TritonStartError(unsupported() or "the embedded Triton is not installed; run `tritonctl setup`")
    root = place / "pytriton" / "tritonserver"
    stub = _own_stub(root)
    found = Installation(root, stub, _libraries(place / "nvidia_pytriton.libs"), packages)
    for path, what in ((found.binary, "server binary"), (stub, f"Python backend stub for Python {_python()}")):
        if not path.is_file():
            raise TritonStartError(
                f"nvidia-pytriton has no {what} at {path}; remove {packages or place / 'pytriton'}, and run "
                "`tritonctl setup`",
                path=str(path),
            )
    return found


def _in_environment() -> Path | None:
    """Return the folder with nvidia-pytriton in this Python's environment, if NumPy 1 is installed beside it."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations or _numpy_major() > 1:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent


def _numpy_major() -> int:
    return int(version("numpy").partition(".")[0])


def _needs_numpy_1(stub: Path) -> bool:
    """Return whether a stub cannot use the NumPy of this Python's environment.

    pybind11 2.12 and later ask `numpy.lib.NumpyVersion` for the memory layout; earlier ones know that of NumPy 1 alone.
    """
    return _numpy_major() > 1 and b"NumpyVersion" not in stub.read_bytes()


def _unpacked(root: Path) -> Installation:
    """Return another Triton, as NVIDIA's images have it in ``/opt/tritonserver``."""
    stub = _stub(root)
    found = Installation(root, stub, _libraries(root / "lib"), find_packages())
    for path, what in (
        (found.binary, "server binary"),
        (found.python_backend / "libtriton_python.so", "Python backend"),
        (stub, "Python backend stub"),
    ):
        if not path.is_file():
            raise TritonStartError(
                f"{root} has no {what}: {path.relative_to(root)} is missing; set CONTROLPLANE_TRITON__ROOT to the "
                "folder `tritonserver` of an unpacked Triton, which contains bin, backends and lib",
                path=str(path),
            )
    built_for = _LIBPYTHON.search(stub.read_bytes())
    if stub != _own_stub(root) and built_for and built_for[1].decode() != _python():
        raise TritonStartError(
            f"the Python backend stub of {root} is for Python {built_for[1].decode()}, and this is Python {_python()}; "
            f"run tritonctl with Python {built_for[1].decode()}, or put a stub for {_python()} at {_own_stub(root)}",
            path=str(stub),
        )
    if not _needs_numpy_1(stub):
        return replace(found, packages=None)
    if found.packages is None:
        raise TritonStartError(
            f"the Python backend stub of {root} needs NumPy 1, and this Python has NumPy {version('numpy')}: "
            + (unsupported() or "run `tritonctl setup`, which installs it for the stub alone")
        )
    return found


_STUB = "triton_python_backend_stub"
_LIBPYTHON = re.compile(rb"libpython(3\.\d+)\.so")


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _stub(root: Path) -> Path:
    """Return the stub for the running Python, or else the one beside the Python backend."""
    own = _own_stub(root)
    return own if own.is_file() else root / "backends" / "python" / _STUB


def _own_stub(root: Path) -> Path:
    """Return where the wheel has the stub for the running Python."""
    return root / "python_backend_stubs" / _python() / _STUB


def _libraries(own: Path) -> tuple[Path, ...]:
    configured = sysconfig.get_config_var("LIBDIR")
    # Relocatable Pythons (uv's) have the LIBDIR of the machine that built them; the base prefix is always right.
    candidates = [Path(str(configured))] if configured else []
    candidates += [Path(sys.base_prefix) / "lib", own]
    return tuple(dict.fromkeys(path for path in candidates if path.is_dir()))


def _check_stub(installation: Installation) -> None:
    """Start the stub without arguments: it ends at once and shows whether the loader found its libraries."""
    try:
        result = subprocess.run(
            [installation.stub], env=installation.environment, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TritonStartError(f"Triton's Python backend stub cannot be started: {error}") from error
    if b"error while loading shared libraries" in result.stderr:
        reason = result.stderr.decode(errors="replace").strip()
        raise TritonStartError(
            f"Triton's Python backend stub cannot be started: {reason}. Use a Python built with a shared libpython "
            "(Debian: apt install libpython3-dev; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
        )


def read_version(installation: Installation) -> str:
    """Return Triton's version: from the file `TRITON_VERSION` that NVIDIA's images have, or from the server's log.

    Raises:
        TritonStartError: The server does not start; the message contains the last line that it wrote.
    """
    written = installation.root / "TRITON_VERSION"
    if written.is_file():
        return written.read_text().strip()
    with tempfile.TemporaryDirectory() as empty:
        options = ["--model-control-mode=explicit", "--allow-http=0", "--allow-grpc=0", "--allow-metrics=0"]
        try:
            server = subprocess.Popen(
                [installation.binary, f"--model-repository={empty}", "--exit-timeout-secs=0", *options],
                env=installation.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise TritonStartError(f"{installation.binary} cannot be started: {error.strerror}") from error
        watchdog = threading.Timer(_VERSION_SECONDS, server.kill)
        last = b""
        with server:
            watchdog.start()
            try:
                assert server.stdout is not None
                for line in server.stdout:
                    if found := _SERVER_VERSION.match(line):
                        return found[1].decode()
                    last = line.strip() or last
            finally:
                watchdog.cancel()
                server.kill()
    raise TritonStartError(f"{installation.binary} does not start: {last.decode(errors='replace') or 'no output'}")


_SERVER_VERSION = re.compile(rb"\|\s*server_version\s*\|\s*(\S+)")
