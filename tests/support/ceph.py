"""A real S3 server: Ceph's RADOS gateway over one monitor and one OSD, in a temporary folder.

Needs the packages radosgw, ceph-mon, ceph-osd and ceph-common (Debian and Ubuntu:
``apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common``). A start takes about fifteen
seconds, so a test run starts one at most.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import free_port, listening, running, tied_to_us, wait_until
from tests.support.s3server import S3Server

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_ACCESS_KEY = "control-plane-tests"
_COMMAND_TIMEOUT_SECONDS = 120

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
log file = {folder}/$name.log
crash dir = {folder}/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1

[mon]
mon data = {folder}/mon

[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = 21474836480
bluestore block create = true
osd memory target = 939524096
osd class load list = *
osd class default list = *

[client.rgw]
# Without this the gateway waits for the monitor without end.
ms mon client mode = crc
rgw frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw dns name = localhost
"""


def missing_programs() -> list[str]:
    """Return the programs of Ceph that are not installed."""
    return [program for program in _PROGRAMS if shutil.which(program) is None]


def must_run() -> bool:
    """Return whether a missing Ceph is an error, as in CI; on a developer's machine its tests are skipped."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


@contextlib.contextmanager
def ceph_server() -> Iterator[S3Server]:
    """Run a server with one user."""
    # A Unix socket's path has 108 bytes at most, so this is not below pytest's deep folders.
    with tempfile.TemporaryDirectory(prefix="ceph-", dir="/tmp") as name, contextlib.ExitStack() as stack:
        yield _start(Path(name), stack)
        # The stack stops gateway, OSD and monitor in this order, and waits for each.


def _start(folder: Path, stack: contextlib.ExitStack) -> S3Server:
    rgw_port = free_port()
    mon_port, fsid, osd_uuid, secret = free_port(), str(uuid.uuid4()), str(uuid.uuid4()), uuid.uuid4().hex
    configuration = folder / "ceph.conf"
    configuration.write_text(_CONFIGURATION.format(fsid=fsid, folder=folder, mon_port=mon_port, rgw_port=rgw_port))
    for name in ("mon", "osd", "crash"):
        (folder / name).mkdir()

    def run(program: str, *arguments: str) -> None:
        _run([program, "-c", str(configuration), *arguments])

    def serve(program: str, *arguments: str, ready_port: int | None = None) -> None:
        log = folder / f"{program}.out"
        process = stack.enter_context(running([program, "-c", str(configuration), "-f", *arguments], log))
        if ready_port is not None:
            wait_until(lambda: listening(ready_port), process, log)

    monmap = str(folder / "monmap")
    _run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}/0]", monmap])
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--mon-data", str(folder / "mon"))
    serve("ceph-mon", "-i", "a", ready_port=mon_port)
    run("ceph", "osd", "new", osd_uuid)
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
    serve("ceph-osd", "-i", "0")
    run("ceph", "osd", "require-osd-release", "pacific", "--yes-i-really-mean-it")
    serve("radosgw", "-n", "client.rgw", ready_port=rgw_port)
    run(
        "radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=tests", "--display-name=tests",
        f"--access-key={_ACCESS_KEY}", f"--secret-key={secret}",
    )  # fmt: skip

    def suspend(suspended: bool) -> None:
        run("radosgw-admin", "-n", "client.rgw", "user", "suspend" if suspended else "enable", "--uid=tests")

    return S3Server("ceph", f"http://127.0.0.1:{rgw_port}", _ACCESS_KEY, secret, suspend)


def _run(command: list[str]) -> None:
    done = subprocess.run(tied_to_us(command), capture_output=True, timeout=_COMMAND_TIMEOUT_SECONDS, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).decode(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command[:4])} … failed with {done.returncode}:\n{output}")
