"""Assembles the embedded server's backend directory from Triton's own backends and those of this package."""

import compileall
import hashlib
import shutil
import site
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from controlplane.triton.embedded.installation import Installation

BACKENDS = Path(__file__).parent / "backends"
"""Our Python-based backends: Triton falls back from `NAME/libtriton_NAME.so` to `NAME/model.py`."""
SHARED = "backend_requests.py"
"""Their common module; it is copied beside each `model.py`, because a stub cannot import the rest of this package."""


_PYTHON = ".python"


def python_path(backends: Path) -> Path:
    """Return the folder of a backend directory's `python3`: stubs find their packages through the first in PATH."""
    return backends / _PYTHON / "bin"


def backend_names(backends: Path) -> frozenset[str]:
    """Return the backends in a backend directory; empty if it is not known yet."""
    found = backends.iterdir() if backends.name else ()
    return frozenset(path.name for path in found if path.is_dir() and path.name != _PYTHON)


def native_backends(backends: Path) -> frozenset[str]:
    """Return the backends in a backend directory that are shared libraries, other than the Python backend."""
    found = backends.glob("*/libtriton_*.so") if backends.name else ()
    return frozenset(path.parent.name for path in found if path.name == f"libtriton_{path.parent.name}.so") - {"python"}


def assemble_backends(installation: Installation, folder: Path) -> Path:
    """Create the backend directory under `folder`, once for each content, and return it.

    Triton's own backends are links to their folders, except the Python backend, which gets the stub for this Python. A
    Python-based backend of this package is added where Triton has none of that name. The directory is created by one
    rename, so that neither a concurrent process nor a kill leaves it incomplete.
    """
    theirs = {path.name: path for path in sorted((installation.root / "backends").iterdir()) if path.is_dir()}
    del theirs["python"]
    ours = {path.parent.name: path for path in sorted(BACKENDS.glob("*/model.py")) if path.parent.name not in theirs}
    target = folder / f"backends-{_digest(installation, theirs, ours)[:16]}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".backends-", dir=folder))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installation.python_backend, building / "python", ignore=ignore)
    shutil.copy2(installation.stub, building / "python" / installation.stub.name)
    for name, path in theirs.items():
        (building / name).symlink_to(path)
    for name, path in ours.items():
        shutil.copytree(path.parent, building / name, ignore=ignore)
        shutil.copy2(BACKENDS / SHARED, building / name / SHARED)
    _make_environment(building / _PYTHON, installation.packages)
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


def _make_environment(folder: Path, packages: Path | None) -> None:
    """Make the virtual environment of the stubs: their own packages first, then those of this Python's environment.

    A path in the environment (PYTHONPATH) would also reach stubs that run with a model's own execution environment.
    """
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    place = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    place.mkdir(parents=True)
    (place / "tritonctl.pth").write_text(_import_lines(packages))


def _import_lines(packages: Path | None) -> str:
    """Return the lines of a ``.pth`` file; `site.addsitedir` also reads the ``.pth`` files of a folder."""
    folders = [*([site.getusersitepackages()] if site.ENABLE_USER_SITE else ()), *site.getsitepackages()]
    lines = [str(packages)] if packages else []
    return "\n".join([*lines, *(f"import site; site.addsitedir({folder!r})" for folder in folders)]) + "\n"


def _digest(installation: Installation, theirs: Mapping[str, Path], ours: Mapping[str, Path]) -> str:
    digest = hashlib.sha256(str(installation.stub).encode())
    digest.update(f"{sys.version} {sys.base_prefix} {_import_lines(installation.packages)}".encode())
    for path in (installation.python_backend / "libtriton_python.so", *(theirs[name] for name in theirs)):
        for file in sorted(path.glob("*")) if path.is_dir() else [path]:
            found = file.stat()
            digest.update(f"{file} {found.st_size} {found.st_mtime_ns}".encode())
    digest.update((BACKENDS / SHARED).read_bytes())
    for name, path in ours.items():
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()
