"""Finds Triton's binary and assembles its backend directory."""

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from controlplane.errors import TritonStartError

BACKENDS = Path(__file__).parent / "backends"
"""Our Python-based backends: Triton falls back from `NAME/libtriton_NAME.so` to `NAME/model.py`."""
SHARED = "backend_requests.py"
"""Their common module; it is copied beside each `model.py`, because a stub cannot import the rest of this package."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Paths of the parts of the `nvidia-pytriton` wheel."""

    binary: Path
    python_backend: Path
    stub: Path
    libraries: tuple[Path, ...]

    @property
    def environment(self) -> dict[str, str]:
        """Return the server's environment; its stubs inherit it.

        The stub is linked against libpython and the wheel's own libraries. Without them it dies at the start and its
        load never returns. It finds its site-packages through the first `python3` in PATH.
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


def find_installation() -> Installation:
    """Find the wheel's server and check that its stub can start.

    Raises:
        TritonStartError: The wheel is missing, has no stub for this Python, or the stub cannot be started.
    """
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise TritonStartError(
            "the embedded Triton needs the package nvidia-pytriton (Linux x86-64, glibc 2.35 or newer): "
            "pip install 'triton-control-plane[embedded]'"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = Installation(
        binary=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / version / "triton_python_backend_stub",
        libraries=_libraries(package.parent),
    )
    for path, what in ((found.binary, "server binary"), (found.stub, f"Python backend stub for Python {version}")):
        if not path.is_file():
            raise TritonStartError(f"nvidia-pytriton has no {what} at {path}; reinstall it", path=str(path))
    _check_stub(found)
    return found


def _libraries(site_packages: Path) -> tuple[Path, ...]:
    configured = sysconfig.get_config_var("LIBDIR")
    # Relocatable Pythons (uv's) have the LIBDIR of the machine that built them; the base prefix is always right.
    candidates = [Path(str(configured))] if configured else []
    candidates += [Path(sys.base_prefix) / "lib", site_packages / "nvidia_pytriton.libs"]
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


def backend_names(backends: Path) -> frozenset[str]:
    """Return the backends in a backend directory; empty if it is not known yet."""
    return frozenset(path.name for path in backends.iterdir() if path.is_dir()) if backends.name else frozenset()


def assemble_backends(installation: Installation, folder: Path) -> Path:
    """Create the backend directory under `folder`, once for each content, and return it.

    The directory is created by one rename, so that neither a concurrent process nor a kill leaves it incomplete.
    """
    ours = sorted(path for path in BACKENDS.glob("*/model.py"))
    digest = hashlib.sha256(str(installation.stub).encode())
    library = (installation.python_backend / "libtriton_python.so").stat()
    digest.update(f"{library.st_size} {library.st_mtime_ns}".encode())
    digest.update((BACKENDS / SHARED).read_bytes())
    for path in ours:
        digest.update(path.parent.name.encode() + path.read_bytes())
    target = folder / f"backends-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".backends-", dir=folder))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installation.python_backend, building / "python", ignore=ignore)
    shutil.copy2(installation.stub, building / "python" / installation.stub.name)
    for path in ours:
        shutil.copytree(path.parent, building / path.parent.name, ignore=ignore)
        shutil.copy2(BACKENDS / SHARED, building / path.parent.name / SHARED)
    # The server cannot write to its backend directory; without these files, each load would compile the modules again.
    compileall.compile_dir(building, quiet=2)
    building.chmod(0o755)
    try:
        building.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(building)  # another process was first, with the same content
    return target
