"""The long version of the fault suite: ``python -m tests.faults [--case TEXT] [--times N] [PART ...]``.

Prints a table, and writes its rows to ``benchmarks/results/faults.json``, where rows of cases that were not run stay.
Ends with 1 where an invariant was violated.
"""

import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        case: Only cases whose name contains this text; empty for all.
        times: How often each case runs; None uses the case's own number.
    """

    case: str
    times: int | None


def main(arguments: Sequence[str]) -> int:
    """Run the named parts, or all."""
    parts: dict[str, Callable[[S3Server, Path, Plan], list[Row]]] = {
        "store": _store,
        "triton": _triton,
        "disk": _disk,
        "planes": _planes,
        "artifacts": _artifacts,
        "soak": _soak,
    }
    parser = ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--case", default="", help="only cases whose name contains this text")
    parser.add_argument("--times", type=int, help="how often each case runs, instead of its own number")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.parts if name not in parts]:
        parser.error(f"unknown part {unknown[0]!r}; the parts are: {', '.join(parts)}")
    rows: list[Row] = []
    plan = Plan(chosen.case, chosen.times)
    server: AbstractContextManager[S3Server] = moto_server() if missing_programs() else ceph_server()
    with server as s3, tempfile.TemporaryDirectory(prefix="faults-") as folder:
        print(f"the S3 server is {s3.kind}", flush=True)
        for name in chosen.parts or parts:
            rows += parts[name](s3, Path(folder) / name, plan)
            write(rows)
    print(table(rows))
    for row in rows:
        for violation in row.violations:
            print(f"VIOLATED: {row.fault}: {violation}")
    return 1 if any(row.violations for row in rows) else 0


def _run(stage: Stage, cases: Sequence[Case], plan: Plan) -> list[Row]:
    rows = []
    for case in cases:
        if plan.case not in case.name:
            continue
        began = time.monotonic()
        row = inject(stage, case, plan.times or case.long)
        rows.append(row)
        write([row])  # later cases may take long or be stopped
        report = row.reports[0][:160] if row.reports else "-"
        print(table([row], head=False), f"; {time.monotonic() - began:.0f} s; reported as: {report}", flush=True)
        for violation in row.violations:
            print(f"  VIOLATED: {violation}", flush=True)
    return rows


def _store(server: S3Server, folder: Path, plan: Plan) -> list[Row]:
    with stage_with_own_triton(server, folder) as stage:
        cases = store_cases(long=True)
        return _run(stage, cases + credential_cases(seconds=10) if server.suspend else cases, plan)


def _triton(server: S3Server, folder: Path, plan: Plan) -> list[Row]:
    with stage_with_own_triton(server, folder) as stage:
        return _run(stage, triton_cases(), plan)


def _disk(_: S3Server, folder: Path, plan: Plan) -> list[Row]:
    if not may_mount():
        print("disk: skipped; only root can mount the small disks that it fills")
        return []
    with stage_on_small_disks(folder) as stage:
        return _run(stage, disk_cases(), plan)


def _planes(server: S3Server, folder: Path, plan: Plan) -> list[Row]:
    with (
        running_triton(folder / "triton") as triton,
        stage_beside_triton(server, triton, folder, replicas=2) as stage,
    ):
        return _run(stage, plane_cases(), plan)


def _artifacts(_: S3Server, folder: Path, __: Plan) -> list[Row]:
    return fuzz_artifacts(folder, ARTIFACTS)


def _soak(server: S3Server, folder: Path, _: Plan) -> list[Row]:
    return [soak(server, folder, SOAK_OPERATIONS)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
