"""Full disks: store, blob cache, model repository and shared memory, each on its own small tmpfs."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from controlplane.settings import StoreSettings
from tests.faults.cases import Case, Trial
from tests.faults.stage import MOVING, Stage, stage_with_own_triton

_MIB = 1024 * 1024
_SHARED_MIB = 24
_NO_SHARED = r"LoadFailed .*shared memory.*No space left"
_FULL = r"store-full|no space|is full|ENOSPC"


def may_mount() -> bool:
    """Return whether this process can mount file systems, which the limited disks need."""
    return os.geteuid() == 0 and all(map(shutil.which, ("mount", "unshare"))) and _try_mount()


def _try_mount() -> bool:
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0
    finally:
        folder.rmdir()


@contextlib.contextmanager
def small_disk(folder: Path, size_mib: int = 8) -> Iterator[Path]:
    """Mount a file system of a few MiB at a folder."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def stage_on_small_disks(folder: Path) -> Iterator[Stage]:
    """Start `tritonctl up` with separate disks for store, cache, model repository and shared memory."""
    with contextlib.ExitStack() as stack:
        store, cache, repository = (
            stack.enter_context(small_disk(folder / name)) for name in ("store", "cache", "repository")
        )
        changes = {"CACHE__PATH": str(cache), "TRITON__REPOSITORY": str(repository)}
        settings = StoreSettings(url=store.as_uri())
        small = stage_with_own_triton(None, folder, changes=changes, store=settings, shared_memory_mib=_SHARED_MIB)
        yield stack.enter_context(small)


def full(where: Callable[[Stage], Path], act: Callable[[Trial, int], None]) -> Callable[[Trial], None]:
    """Fill a disk completely, run an action that needs it, and free the space again."""

    def run(trial: Trial) -> None:
        stage = trial.stage
        with stage.deployer_off():
            newest = stage.work.publish(MOVING).version
            ballast = where(stage) / "ballast"
            _fill(ballast)
            try:
                act(trial, newest)
                trial.sightings.wait(60)
                if not stage.answers():
                    trial.problems.append("a full disk stops what is loaded")
            finally:
                ballast.unlink()
            trial.lifted()
            trial.heals(lambda: stage.deploys(newest) and stage.publishes())

    return run


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            if file.write(b"\0" * 65536) < 65536:
                break
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")


def _publish(trial: Trial, _: int) -> None:
    if trial.stage.publishes():
        trial.problems.append("a publish onto a full disk was acknowledged")


def _deploy(trial: Trial, version: int) -> None:
    trial.stage.work.deploy(MOVING, version)


def _deploy_what_is_not_cached(trial: Trial, version: int) -> None:
    for folder in (_cache(trial.stage) / "sha256").iterdir():
        shutil.rmtree(folder)
    ballast = _cache(trial.stage) / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")
    _deploy(trial, version)


def _cache(stage: Stage) -> Path:
    return stage.plane.folder.parent / "cache"


def disk_cases() -> list[Case]:
    """Return all disk cases."""
    return [
        Case("disk full: the folder store", full(lambda stage: stage.plane.folder.parent / "store", _publish), _FULL),
        Case("disk full: the blob cache", full(_cache, _deploy_what_is_not_cached), _FULL),
        Case("disk full: the model repository", full(lambda stage: stage.repository, _deploy), _FULL),
        Case("disk full: shared memory", full(lambda stage: stage.plane.shared_memory, _deploy), _NO_SHARED),
    ]
