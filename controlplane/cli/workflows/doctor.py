"""The checks of `doctor`. Each examines one thing, and reports the result and how to fix a problem."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from controlplane.cli.output import size
from controlplane.cli.session import Session
from controlplane.client.discovery import UpRecord
from controlplane.client.errors import ClientError, NotRunningError
from controlplane.client.http import Client
from controlplane.domain.damage import Damage
from controlplane.errors import ControlPlaneError
from controlplane.folders import make_private
from controlplane.settings import GIB, MIB, Settings
from controlplane.storage.base import ObjectStore

Status = Literal["ok", "warn", "fail"]

_PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
_GLIBC_MIN = (2, 35)
_SPACE_WARN_BYTES = 5 * GIB
_SPACE_FAIL_BYTES = 256 * MIB
_PACKAGES = {
    "onnxruntime": ("embedded", "running and checking ONNX models"),
    "torch": ("torch", "TorchScript and PyTorch models"),
    "onnxscript": ("torch", "converting PyTorch models to ONNX"),
    "skl2onnx": ("sklearn", "converting scikit-learn models"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        status: ok, warn (a feature may be missing) or fail (something will not work).
        message: The result.
        fix: How to fix it; empty if there is nothing to fix.
    """

    name: str
    status: Status
    message: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the finding for ``-o json``."""
        return asdict(self)


def examine(session: Session, settings: Settings) -> Iterator[Finding]:
    """Run all checks, starting with those that others depend on."""
    yield _python()
    yield from _packages()
    yield _glibc()
    yield _triton(settings.triton.root)
    yield _folder(settings.data_dir)
    yield _space(settings.data_dir)
    record = None if session.url else UpRecord.read(settings.data_dir)
    yield _port(settings, record)
    running = list(_api(session))
    live = next((finding for finding in running if finding.name == "store"), None)
    local = list(_store(settings, only=live.message.partition(": ")[0] if live else None))
    # The running control plane's store counts; more is known about it if it is the one in the settings here.
    yield from local
    yield from (finding for finding in running if not (local and finding is live))


def _python() -> Finding:
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if sys.version_info[:2] in _PYTHONS:
        return Finding("python", "ok", found)
    return Finding("python", "fail", f"{found} is not supported", "use Python 3.11 to 3.14")


def _packages() -> Iterator[Finding]:
    missing: dict[str, list[str]] = {}
    present = []
    for package, (extra, purpose) in _PACKAGES.items():
        try:
            present.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.setdefault(extra, []).append(f"{package} ({purpose})")
    if present:
        yield Finding("packages", "ok", ", ".join(present))
    for extra, lacking in missing.items():
        yield Finding(
            f"packages [{extra}]",
            "warn",
            f"missing: {', '.join(lacking)}",
            f"pip install 'triton-control-plane[{extra}]'",
        )


def _glibc() -> Finding:
    fix = (
        "the embedded Triton needs glibc 2.35 or newer (Debian 12, Ubuntu 22.04); "
        "on other systems use `tritonctl serve`"
    )
    try:
        name, _, number = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        found = tuple(int(part) for part in number.split("."))
    except (ValueError, OSError):
        return Finding("glibc", "warn", "this system's C library is not glibc", fix)
    if found < _GLIBC_MIN:
        return Finding("glibc", "warn", f"{name} {number} is too old", fix)
    return Finding("glibc", "ok", number)


def _triton(root: Path | None) -> Finding:
    from controlplane.triton.embedded.installation import find_installation, read_version

    fix = "run `tritonctl setup` (the first `tritonctl up` does it too), or Triton elsewhere and `tritonctl serve`"
    if root is not None:
        fix = "set CONTROLPLANE_TRITON__ROOT to the folder `tritonserver` of a complete Triton, or unset it"
    try:
        installation = find_installation(root)
    except ControlPlaneError as error:
        return Finding("triton", "warn" if root is None else "fail", error.message, fix)
    try:
        found, numpy = read_version(installation), _numpy(installation.packages)
    except ControlPlaneError as error:
        return Finding("triton", "fail", error.message, fix)
    if not numpy:
        remedy = f"remove {installation.packages}, and run `tritonctl setup`"
        return Finding(
            "triton", "fail", f"the NumPy of its Python backend in {installation.packages} is broken", remedy
        )
    return Finding("triton", "ok", f"{found} in {installation.root}; its Python backend has NumPy {numpy}")


def _numpy(packages: Path | None) -> str:
    """Return the version of NumPy that models import in the Python backend; empty if it cannot be imported."""
    first = f"sys.path.insert(0, {str(packages)!r})" if packages else "pass"
    program = f"import sys; {first}; import numpy; print(numpy.__version__)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _folder(data_dir: Path) -> Finding:
    try:
        make_private(data_dir)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
        probe = data_dir / f".doctor-{os.getpid()}"
        try:
            probe.write_bytes(b"")
            # Hard links are used to stage versions for Triton and to make commits.
            os.link(probe, probe.with_suffix(".link"))
            probe.with_suffix(".link").unlink()
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return Finding(
            "data folder",
            "fail",
            f"{data_dir}: {(error.strerror or str(error)).lower()}",
            "make it writable, on a file system with hard links, or choose another folder with --data-dir",
        )
    mode = stat.S_IMODE(data_dir.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "data folder",
            "warn",
            f"other users of this machine can access {data_dir} (mode {mode:o})",
            f"chmod 700 {data_dir}",
        )
    return Finding("data folder", "ok", f"{data_dir} is writable, and only its owner has access")


def _space(data_dir: Path) -> Finding:
    folder = data_dir
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = "free disk space, or choose another data folder with --data-dir"
    if free < _SPACE_FAIL_BYTES:
        return Finding("disk space", "fail", f"{size(free)} free", fix)
    if free < _SPACE_WARN_BYTES:
        return Finding("disk space", "warn", f"{size(free)} free", fix)
    return Finding("disk space", "ok", f"{size(free)} free")


def _port(settings: Settings, record: UpRecord | None) -> Finding:
    host, port = settings.api.host, settings.api.port
    if record is not None:
        return Finding("port", "ok", f"tritonctl up is running at {record.url}")
    if port == 0:
        return Finding("port", "ok", "a free port is chosen at the start")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            return Finding("port", "warn", f"{host}:{port}: {reason}", "choose another port: `tritonctl up --port`")
    return Finding("port", "ok", f"{host}:{port} is free")


def _store(settings: Settings, *, only: str | None) -> Iterator[Finding]:
    """Check the store of the settings here; ``only``: just if it is this one, which a running control plane uses."""
    from controlplane.storage.factory import open_store
    from controlplane.storage.probe import check_store

    try:
        store = open_store(settings.store, settings.data_dir)
        if only not in {None, store.url}:
            return
        check_store(store)
        yield Finding("store", "ok", f"{store.url}: readable and writable, and create-only writes work")
        yield _clock(store, settings.store.max_clock_skew_seconds)
        yield _backwards(store)
    except ControlPlaneError as error:
        if only is not None:
            return
        yield Finding(
            "store",
            "fail",
            error.message,
            "check the URL, the endpoint and the credentials (--store, --endpoint, AWS_* variables)",
        )


def _clock(store: ObjectStore, max_skew_seconds: float) -> Finding:
    from controlplane.storage.clock import StoreClock

    skew = StoreClock(store).measure()
    found = f"{abs(skew.seconds):.1f} s {'ahead of' if skew.seconds > 0 else 'behind'} the store's clock"
    if skew.within(max_skew_seconds):
        return Finding("clock", "ok", found)
    return Finding(
        "clock",
        "fail",
        f"{found}; the limit is {max_skew_seconds:g} s, and garbage collection refuses to run",
        "correct the clock of this machine (NTP) or of the store",
    )


def _backwards(store: ObjectStore) -> Finding:
    from controlplane.registry.lost import noted_chains

    chains = noted_chains(store)
    if not chains:
        return Finding("chains", "ok", "no lost revisions are known; `tritonctl fsck` checks the whole store")
    return Finding(
        "chains",
        "fail",
        f"the store lost revisions of {', '.join(chains[:5])}" + (" and others" if len(chains) > 5 else ""),
        "run `tritonctl fsck`, then resolve each chain with --restore or --accept",
    )


def _live_store(check: dict[str, Any], url: str) -> Finding:
    if check["ok"]:
        return Finding("store", "ok", f"{url}: the control plane can read it")
    return Finding(
        "store",
        "fail",
        f"{url}: {check['message'] or 'the control plane cannot read it'}",
        "see the control plane's log",
    )


def _api(session: Session) -> Iterator[Finding]:
    try:
        url = session.find_url()
    except NotRunningError:
        yield Finding("control plane", "warn", "not running", "start it with `tritonctl up`")
        return
    try:
        with session.client() as client:
            info = client.get("/v1/info")
            checks = client.readiness()["checks"]
            servers = client.get("/v1/servers")["items"]
            scrub = _scrub(client)
    except ControlPlaneError as error:
        yield Finding("control plane", "fail", error.message, "see its log, or start one with `tritonctl up`")
        return
    yield Finding("control plane", "ok", f"{info.get('version', '')} at {url}".strip())
    yield from (_live_store(check, info["store_url"]) for check in checks if check["name"] == "store")
    if warning := info.get("warning", ""):
        yield Finding("authentication", "warn", info["authentication"], warning)
    else:
        yield Finding("authentication", "ok", "every request needs an API key")
    if confinement := info.get("confinement_warning", ""):
        yield Finding(
            "model isolation", "warn", confinement, "install bubblewrap, or see docs/evidence/threat-model.md"
        )
    else:
        yield Finding("model isolation", "ok", info.get("confinement", ""))
    for server in servers:
        good = server["state"] == "Ready" and server.get("driven", True)
        found = f"{server['state']} at {server['grpc_url']}" + (f": {server['message']}" if server["message"] else "")
        yield Finding(
            f"server {server['name']}",
            "ok" if good else "fail",
            found,
            "" if good else _server_fix(server),
        )
        if advisories := server.get("advisories"):
            yield Finding(f"server {server['name']} version", "warn", "; ".join(advisories[:-1]), advisories[-1])
    if scrub is not None:
        yield _blobs(scrub)
    if not servers:
        yield Finding(
            "servers", "warn", "the control plane has no Triton servers", "add servers with `tritonctl serve --triton`"
        )


def _scrub(client: Client) -> dict[str, Any] | None:
    """Return the state of the scrub; None if the control plane has none, or the key may not see it."""
    try:
        found: dict[str, Any] = client.get("/v1/scrub")
    except ClientError:
        return None
    return found


def _blobs(scrub: dict[str, Any]) -> Finding:
    record = scrub["record"]
    if damages := [Damage.model_validate(one) for one in record["damages"].values()]:
        more = f"; and {len(damages) - 3} more" if len(damages) > 3 else ""
        return Finding(
            "stored files",
            "fail",
            "; ".join(damage.message for damage in damages[:3]) + more,
            "push the same files again (that repairs the blob), or restore the objects from a backup",
        )
    if not scrub["enabled"]:
        return Finding("stored files", "warn", "not checked: the scrub is off", "set CONTROLPLANE_SCRUB__ENABLED=true")
    if record["finished_at"] is None:
        return Finding("stored files", "ok", "the first scrub has not finished yet; no damage is known")
    return Finding("stored files", "ok", f"{record['finished_blobs']} intact at {record['finished_at']}")


def _server_fix(server: dict[str, Any]) -> str:
    if not server.get("driven", True):
        return "no control-plane instance manages it: change the settings as the message says, and restart"
    return "see `tritonctl events`; an embedded server is restarted automatically"
