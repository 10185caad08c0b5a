"""Publishing and pulling one large file: the stores, which verify every byte, against plain boto3 and ``cp``.

S3 is a Ceph gateway on this machine, so client and server share its cores. Plain boto3 is ``upload_file`` and
``download_file``, which compute no digest of the file, with the default ``TransferConfig`` (8 MiB parts, 10 threads),
path-style addressing, and no request checksums beyond those that S3 requires (``when_required``), as the store has it.
The rows "boto3's defaults" leave those on too (``when_supported``: a CRC trailer with every part). Neither side forces
a download to disk, nor is removing it timed. The folder store forces what it is given to the disk, so ``cp`` is
followed by ``fsync`` there; its pull on the same file system is a hard link and one read of the file for its digest,
across file systems a copy, both against ``cp`` without ``fsync``. Each repetition runs both sides, in alternating
order, each after a ``sync`` that is not timed.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import ClientError

from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.s3.store import S3Store
from tests.support.ceph import ceph_server, missing_programs
from tests.support.s3server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1024 * 1024
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """Medians over the repetitions.

    Attributes:
        what: The operation and the two sides.
        size_mib: Of the file.
        ours_seconds: Wall-clock time of the store.
        theirs_seconds: Wall-clock time of the other side.
        ratio: ours / theirs; below 1 the store is faster.
        ours_cpu_seconds: Of this process alone, not the server's.
        theirs_cpu_seconds: Likewise; of its children for ``cp``.
        repetitions: How often each side ran.
    """

    what: str
    size_mib: int
    ours_seconds: float
    theirs_seconds: float
    ratio: float
    ours_cpu_seconds: float
    theirs_cpu_seconds: float
    repetitions: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--part-size-mib", type=int, help="default: as in the settings")
    parser.add_argument("--concurrency", type=int, help="default: as in the settings")
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    arguments = parser.parse_args()
    tuning = {
        name: value
        for name, value in (
            ("part_size_bytes", arguments.part_size_mib and arguments.part_size_mib * MIB),
            ("concurrency", arguments.concurrency),
        )
        if value
    }
    with tempfile.TemporaryDirectory(prefix="transfer-", dir=arguments.folder) as name:
        folder = Path(name)
        source, sha256 = make_file(folder / "weights", arguments.size_mib)
        bench = Bench(folder, source, arguments.size_mib * MIB, sha256, arguments.repetitions)
        rows = [*bench.folder_store(), *bench.s3(tuning)]
    report(rows)


class Bench:
    def __init__(self, folder: Path, source: Path, size_bytes: int, sha256: str, repetitions: int) -> None:
        self._folder = folder
        self._source = source
        self._size_bytes = size_bytes
        self._sha256 = sha256
        self._repetitions = repetitions

    def s3(self, tuning: dict[str, object]) -> Iterator[Row]:
        if missing := missing_programs():
            print(f"no comparison on S3: Ceph is not installed ({', '.join(missing)} missing)")
            return
        with ceph_server() as server:
            bucket = server.new_bucket()
            store = S3Store(bucket, "ours", server.settings(bucket, prefix="ours", **tuning))
            client = server.client()
            defaults = self._default_client(server)
            theirs = self._folder / "theirs"
            yield self._compare(
                "publish to Ceph RGW: put_file / boto3 upload_file",
                lambda: store.put_file("blob", self._source, sha256=self._sha256),
                lambda: client.upload_file(str(self._source), bucket, "theirs/blob"),
            )
            yield self._compare(
                "pull from Ceph RGW: get_file / boto3 download_file",
                lambda: self._pull(store),
                lambda: client.download_file(bucket, "theirs/blob", str(theirs)),
                after=self._remove_pulled,
            )
            try:
                yield self._compare(
                    "publish to Ceph RGW: put_file / boto3's defaults",
                    lambda: store.put_file("blob", self._source, sha256=self._sha256),
                    lambda: defaults.upload_file(str(self._source), bucket, "defaults/blob"),
                )
                yield self._compare(
                    "pull from Ceph RGW: get_file / boto3's defaults",
                    lambda: self._pull(store),
                    lambda: defaults.download_file(bucket, "defaults/blob", str(theirs)),
                    after=self._remove_pulled,
                )
            except (Boto3Error, ClientError) as error:
                print(f"no comparison with boto3's defaults, this gateway does not take them: {error}")
            for each in (store, client, defaults):
                each.close()

    def folder_store(self) -> Iterator[Row]:
        store = FilesystemStore(self._folder / "store")
        theirs = self._folder / "theirs"

        yield self._compare(
            "publish to a folder: put_file / cp + fsync",
            lambda: store.put_file("blob", self._source, sha256=self._sha256),
            lambda: copy(self._source, theirs, durable=True),
            after=self._remove_pulled,
        )
        yield self._compare(
            "pull from a folder, same file system: get_file / cp",
            lambda: self._pull(store),
            lambda: copy(self._source, theirs, durable=False),
            after=self._remove_pulled,
        )
        shared_memory = Path("/dev/shm")
        if shared_memory.is_dir() and shutil.disk_usage(shared_memory).free > 3 * self._size_bytes:
            with tempfile.TemporaryDirectory(dir=shared_memory) as name:
                elsewhere = Path(name)
                yield self._compare(
                    "pull from a folder to another file system: get_file / cp",
                    lambda: self._pull(store, elsewhere),
                    lambda: copy(self._source, elsewhere / "theirs", durable=False),
                    after=lambda: self._remove_pulled(elsewhere),
                )
        store.delete("blob")

    def _pull(self, store: ObjectStore, folder: Path | None = None) -> None:
        target = (folder or self._folder) / "ours"
        store.get_file("blob", target, size_bytes=self._size_bytes, sha256=self._sha256)

    def _remove_pulled(self, folder: Path | None = None) -> None:
        for name in ("ours", "theirs"):
            ((folder or self._folder) / name).unlink(missing_ok=True)

    @staticmethod
    def _default_client(server: S3Server) -> "S3Client":
        return boto3.session.Session().client(
            "s3",
            endpoint_url=server.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=server.secret_access_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def _compare(
        self, what: str, ours: Callable[[], None], theirs: Callable[[], None], *, after: Callable[[], object] = int
    ) -> Row:
        measured: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        sides = [("ours", ours), ("theirs", theirs)]
        for number in range(self._repetitions + 1):  # the first, which warms up, is not counted
            for name, run in sides if number % 2 else reversed(sides):
                os.sync()
                with timed() as spent:
                    run()
                after()
                if number:
                    measured[name].append((spent[0], spent[1]))
        (our_wall, our_cpu), (their_wall, their_cpu) = (
            (statistics.median(wall for wall, _ in runs), statistics.median(cpu for _, cpu in runs))
            for runs in measured.values()
        )
        row = Row(
            what=what,
            size_mib=self._size_bytes // MIB,
            ours_seconds=round(our_wall, 3),
            theirs_seconds=round(their_wall, 3),
            ratio=round(our_wall / their_wall, 3),
            ours_cpu_seconds=round(our_cpu, 3),
            theirs_cpu_seconds=round(their_cpu, 3),
            repetitions=self._repetitions,
        )
        spread = {name: " ".join(f"{wall:.2f}" for wall, _ in runs) for name, runs in measured.items()}
        print(f"{what}: ours {spread['ours']} s, theirs {spread['theirs']} s", flush=True)
        return row


@contextmanager
def timed() -> Iterator[list[float]]:
    """Wall-clock and CPU seconds of the block, as a list that is filled at its end."""
    spent: list[float] = []
    cpu, wall = cpu_seconds(), time.perf_counter()
    yield spent
    spent.extend((time.perf_counter() - wall, cpu_seconds() - cpu))


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def copy(source: Path, target: Path, *, durable: bool) -> None:
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    if durable:
        with target.open("rb") as file:
            os.fsync(file.fileno())


def make_file(path: Path, size_mib: int) -> tuple[Path, str]:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size_mib):
            block = os.urandom(MIB)  # incompressible, as weights are
            digest.update(block)
            file.write(block)
    return path, digest.hexdigest()


def report(rows: list[Row]) -> None:
    print(f"\n{'':58} {'ours':>20} {'theirs':>20} {'ratio':>6} {'CPU s ours/theirs':>18}")
    for row in rows:
        ours, theirs = (
            f"{seconds:6.2f} s {row.size_mib / seconds:5.0f} MiB/s"
            for seconds in (row.ours_seconds, row.theirs_seconds)
        )
        cpu = f"{row.ours_cpu_seconds:.2f} / {row.theirs_cpu_seconds:.2f}"
        print(f"{row.what:58} {ours:>20} {theirs:>20} {row.ratio:6.2f} {cpu:>18}")
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / "transfer.json"
    target.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
