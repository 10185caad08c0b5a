"""The environment of a confined server: its folders, environment variables and shared memory."""

import contextlib
import os
import shutil
from pathlib import Path

from controlplane.sandbox import Sandbox, View
from controlplane.triton.embedded.backend_directory import python_path
from controlplane.triton.embedded.installation import Installation

TEMPORARY = Path("/var/tmp")
"""Folder of a confined server's temporary files; it is stored in the data folder, on disk."""
_SHARED_MEMORY = Path("/dev/shm")


def environment(installation: Installation, backends: Path, sandbox: Sandbox, gpus: tuple[str, ...]) -> dict[str, str]:
    """Return the server's environment. CUDA sees only these GPUs, numbered as by NVML, in PCI bus order."""
    path = os.pathsep.join([str(python_path(backends)), installation.environment["PATH"]])
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PATH": path}
    if gpus:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if sandbox.confines:
        own |= {"TMPDIR": str(TEMPORARY), "HOME": str(TEMPORARY)}
    return installation.environment | own


def prepare(
    sandbox: Sandbox,
    installation: Installation,
    *,
    run_dir: Path,
    shm_prefix: str,
    read: tuple[Path, ...],
) -> View:
    """Create a server's temporary folder and its shared memory; return the paths that the server can access.

    The shared memory is a folder in the machine's shared memory, so its used and free space are reported as before.
    """
    temporary, shared = run_dir / "tmp", _SHARED_MEMORY / f"{shm_prefix}shm"
    if sandbox.confines:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in (temporary, shared):
            folder.mkdir(mode=0o700)
            sandbox.give(folder)
    packages = (installation.packages,) if installation.packages else ()
    return View(
        read=(*read, installation.root, *packages, *installation.libraries, *installation.preloaded),
        mounts={TEMPORARY: temporary, _SHARED_MEMORY: shared},
        devices=True,
        network=True,
    )


def clean_shared_memory(run_dir: Path, prefix: str) -> None:
    """Remove the shared memory of a run whose launcher was killed, and store this run's prefix for the next run."""
    note = run_dir / "shm-prefix"
    with contextlib.suppress(FileNotFoundError):
        before = note.read_text().strip()
        if before.startswith("tritonctl-"):
            for region in _SHARED_MEMORY.glob(f"{before}*"):
                if region.is_dir():
                    shutil.rmtree(region, ignore_errors=True)
                else:
                    region.unlink(missing_ok=True)
    note.write_text(prefix)
