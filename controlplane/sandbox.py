"""Separates processes that run models' code from the control plane: its keys, its store, its environment, its memory.

Triton, its Python stubs and the conversion workers run code that comes with models. If the machine allows it, each of
them starts through bubblewrap (`bwrap`) in its own mount, process and IPC namespaces: it sees the files of the system
and of Python and the files in its `View`, read-only unless the view says otherwise, and no other process. If the
control plane is root, the process also runs as another user, so that security does not depend on the namespaces alone.
bubblewrap needs root, or user namespaces.
"""

import functools
import logging
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from controlplane.errors import InvalidInputError

logger = logging.getLogger(__name__)

UID = 62_981
"""User and group of confined processes if the control plane is root: outside Debian's and systemd's ranges of named
users, so it owns no file of the machine."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys", "/nix/store", "/opt/nvidia", "/usr/local")
_ETC = (
    "alternatives",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "nsswitch.conf",
    "nvidia",
    "os-release",
    "passwd",
    "protocols",
    "resolv.conf",
    "services",
    "timezone",
)
"""Files that the C library and the NVIDIA driver read; /etc as a whole also contains secrets of other programs."""
_OPEN = ("--perms", "0755")
_PROBE_SECONDS = 20.0


class Confinement(StrEnum):
    """How well models' code is separated from the control plane."""

    NAMESPACE_AND_USER = "namespace-and-user"
    NAMESPACE = "namespace"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How to start processes that run models' code.

    Attributes:
        confinement: How they are separated from the control plane.
        reason: Why they are not separated, and what to do; empty if they are.
        bwrap: The program bubblewrap.
        hidden: Folders that processes must not see, even inside a folder that they may read.
    """

    confinement: Confinement
    reason: str = ""
    bwrap: str = ""
    hidden: tuple[Path, ...] = ()

    @property
    def confines(self) -> bool:
        """Whether processes are separated from the control plane."""
        return self.confinement is not Confinement.NONE

    @property
    def warning(self) -> str:
        """A warning for the operator; empty if processes are confined."""
        if self.confines:
            return ""
        return (
            "model code is not isolated from the control plane: code in Triton or in a conversion can read its "
            f"keys and the store: {self.reason}"
        )

    @property
    def uid(self) -> int | None:
        """The user of confined processes; None if it is the control plane's own."""
        return UID if self.confinement is Confinement.NAMESPACE_AND_USER else None

    def give(self, *paths: Path) -> None:
        """Make folders and files writable for confined processes."""
        if self.uid is not None:
            for path in paths:
                os.chown(path, self.uid, self.uid)

    def command(self, program: Sequence[str], view: "View") -> list[str]:
        """Return the command that runs a program confined; the program itself if it cannot be confined."""
        if not self.confines:
            return list(program)
        return [
            self.bwrap,
            "--die-with-parent",
            *(("--unshare-user",) if self.uid is None else ()),
            "--unshare-pid",
            "--unshare-ipc",
            *(("--unshare-net",) if not view.network else ()),
            *_mounts(view, self.hidden),
            "--chdir",
            str(view.folder),
            "--",
            *_as_user(self.uid),
            *program,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The files that a confined process sees besides those of the system and of Python.

    Attributes:
        read: Files and folders it may read.
        write: Files and folders it may change.
        mounts: Folders (values) that it sees at other paths (keys), and may change.
        devices: Whether it uses GPUs.
        network: Whether it shares the machine's network.
        folder: Its working folder.
    """

    read: Iterable[Path] = ()
    write: Iterable[Path] = ()
    mounts: dict[Path, Path] = field(default_factory=dict)
    devices: bool = False
    network: bool = False
    folder: Path = Path("/")


@functools.cache
def find_sandbox() -> Sandbox:
    """Return the best sandbox of this machine; the first call tries it, which starts a process."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return Sandbox(Confinement.NONE, "bubblewrap is not installed; install the package `bubblewrap`")
    root = os.geteuid() == 0
    sandbox = Sandbox(Confinement.NAMESPACE_AND_USER if root else Confinement.NAMESPACE, bwrap=bwrap)
    probe = sandbox.command([sys.executable, "-I", "-S", "-c", "pass"], View())
    try:
        done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Sandbox(Confinement.NONE, f"bubblewrap cannot be started: {error}")
    if done.returncode == 0:
        return sandbox
    said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
    return Sandbox(
        Confinement.NONE,
        f"bubblewrap cannot create namespaces here ({said}); allow user namespaces, or run as root with CAP_SYS_ADMIN",
    )


UNCONFINED = Sandbox(Confinement.NONE, "the settings turn it off (CONTROLPLANE_SANDBOX)")


def choose_sandbox(mode: Literal["auto", "required", "off"], *hidden: Path) -> Sandbox:
    """Return the sandbox that the settings select; processes in it see none of the ``hidden`` folders.

    Logs a warning if processes cannot be confined.

    Raises:
        InvalidInputError: The settings require confinement, and this machine does not support it.
    """
    sandbox = UNCONFINED if mode == "off" else find_sandbox()
    if mode == "required" and not sandbox.confines:
        raise InvalidInputError(
            f"CONTROLPLANE_SANDBOX is required, and model code cannot be isolated from the control plane here: "
            f"{sandbox.reason}"
        )
    if sandbox.warning:
        logger.warning("%s", sandbox.warning)
    return replace(sandbox, hidden=hidden)


def _as_user(uid: int | None) -> tuple[str, ...]:
    """Return the command prefix that drops root and all capabilities before it runs a program."""
    if uid is None:
        return ()
    setpriv = shutil.which("setpriv") or "setpriv"  # part of util-linux, which every distribution has
    return (
        setpriv,
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        # A change of the user clears the parent-death signal that bubblewrap set.
        "--pdeathsig=KILL",
    )


def _mounts(view: View, hidden: tuple[Path, ...]) -> Iterator[str]:
    """Yield bubblewrap's options for files, outer folders first: a later mount hides the files below it."""
    for place in _SYSTEM:
        path = Path(place)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), place)
        elif path.exists():
            yield from ("--ro-bind", place, place)
    for folder in ("/etc", "/run"):
        yield from (*_OPEN, "--dir", folder)
    for name in _ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    yield from ("--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp")
    if view.devices:
        for device in sorted(Path("/dev").glob("nvidia*")):
            yield from ("--dev-bind-try", str(device), str(device))
        yield from ("--ro-bind-try", "/run/nvidia-persistenced", "/run/nvidia-persistenced")
    for inside, outside in view.mounts.items():
        yield from (*_folders_around(inside), "--bind", str(outside), str(inside))
    read = [path for path in (*python_paths(), *map(_absolute, view.read)) if path.exists()]
    chosen = dict.fromkeys(read, "--ro-bind")
    for path in (*map(_absolute, hidden), *(path.resolve() for path in hidden)):
        if path.is_dir() and (_of_system(path) or any(path.is_relative_to(outer) for outer in read)):
            chosen[path] = "--tmpfs"
    chosen |= dict.fromkeys(map(_absolute, view.write), "--bind")
    for path, how in sorted(chosen.items(), key=lambda one: len(one[0].parts)):
        if how == "--ro-bind" and _covered(path, chosen):
            continue
        yield from _folders_around(path, chosen)
        yield from (*_OPEN, how, str(path)) if how == "--tmpfs" else (how, str(path), str(path))


def _folders_around(path: Path, chosen: Mapping[Path, str] = MappingProxyType({})) -> Iterator[str]:
    """Yield options that create the parent folders of a mount; bubblewrap would create them only for root."""
    for outer in reversed(path.parents[:-1]):
        around = next((chosen[one] for one in (outer, *outer.parents) if one in chosen), "--tmpfs")
        if around == "--tmpfs" and outer not in chosen and str(outer) not in {"/tmp", "/dev"} and not _of_system(outer):
            yield from (*_OPEN, "--dir", str(outer))


def python_paths() -> tuple[Path, ...]:
    """Return the folders of the running Python and of its packages."""
    found = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix, *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    # The executable may be a link to a path outside these folders.
    return tuple(dict.fromkeys(Path(path) for path in (*found, str(Path(sys.executable).resolve().parent))))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are


def _of_system(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _SYSTEM)


def _covered(path: Path, chosen: dict[Path, str]) -> bool:
    """Return whether the innermost mounted folder around a path is already readable."""
    for outer in path.parents:
        if outer in chosen:
            return chosen[outer] == "--ro-bind"
        if str(outer) in _SYSTEM:
            return True
    return False
