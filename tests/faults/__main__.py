"""The long version: ``python -m tests.faults [PART ...]``, with the parts store, triton, disk, planes, artifacts, soak.

Prints a table, and writes its rows to ``benchmarks/results/faults.json``. Ends with 1 where an invariant was violated.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.faults.artifacts import fuzz_artifacts
from tests.faults.cases import Case, Row, inject, table, write
from tests.faults.credentials import credential_cases
from tests.faults.disk_cases import disk_cases, may_mount, stage_on_small_disks
from tests.faults.plane_cases import plane_cases
from tests.faults.soak import soak
from tests.faults.stage import Stage, stage_beside_triton, stage_with_own_triton
from tests.faults.store_cases import store_cases
from tests.faults.triton_cases import triton_cases
from tests.support.ceph import ceph_server, missing_programs
from tests.support.moto import moto_server
from tests.support.s3server import S3Server
from tests.support.triton import running_triton

ARTIFACTS = 1000
SOAK_OPERATIONS = 4_000


def main(names: Sequence[str]) -> int:
    """Run the parts that are named, or all."""
    parts: dict[str, Callable[[S3Server, Path], list[Row]]] = {
        "store": _store,
        "triton": _triton,
        "disk": _disk,
        "planes": _planes,
        "artifacts": _artifacts,
        "soak": _soak,
    }
    unknown = [name for name in names if name not in parts]
    if unknown:
        print(f"no part {unknown[0]!r}; there are: {', '.join(parts)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    server: AbstractContextManager[S3Server] = moto_server() if missing_programs() else ceph_server()
    with server as s3, tempfile.TemporaryDirectory(prefix="faults-") as folder:
        print(f"the S3 server is {s3.kind}", flush=True)
        for name in names or parts:
            rows += parts[name](s3, Path(folder) / name)
            write(rows)
    print(table(rows))
    for row in rows:
        for violation in row.violations:
            print(f"VIOLATED: {row.fault}: {violation}")
    return 1 if any(row.violations for row in rows) else 0


def _run(stage: Stage, cases: Sequence[Case]) -> list[Row]:
    rows = []
    for case in cases:
        began = time.monotonic()
        row = inject(stage, case, case.long)
        rows.append(row)
        report = row.reports[0][:160] if row.reports else "-"
        print(f"{row.fault}: {row.injected} in {time.monotonic() - began:.0f} s; reported as: {report}", flush=True)
        for violation in row.violations:
            print(f"  VIOLATED: {violation}", flush=True)
    return rows


def _store(server: S3Server, folder: Path) -> list[Row]:
    with stage_with_own_triton(server, folder) as stage:
        cases = store_cases(long=True)
        return _run(stage, cases + credential_cases(seconds=10) if server.suspend else cases)


def _triton(server: S3Server, folder: Path) -> list[Row]:
    with stage_with_own_triton(server, folder) as stage:
        return _run(stage, triton_cases())


def _disk(_: S3Server, folder: Path) -> list[Row]:
    if not may_mount():
        print("disk: left out; only root may mount the small disks that it fills")
        return []
    with stage_on_small_disks(folder) as stage:
        return _run(stage, disk_cases())


def _planes(server: S3Server, folder: Path) -> list[Row]:
    with (
        running_triton(folder / "triton") as triton,
        stage_beside_triton(server, triton, folder, replicas=2) as stage,
    ):
        return _run(stage, plane_cases())


def _artifacts(_: S3Server, folder: Path) -> list[Row]:
    return fuzz_artifacts(folder, ARTIFACTS)


def _soak(server: S3Server, folder: Path) -> list[Row]:
    return [soak(server, folder, SOAK_OPERATIONS)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
