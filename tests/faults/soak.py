"""Memory and open files of a control plane stay flat over many operations after the warm-up.

The operations are those that cost only the control plane: publishes with their files (no golden samples, so that
no model runs), validations of broken files, alias moves, deployments and their histories, reads of everything, failed
requests, idempotency keys, abandoned uploads, garbage collections. Its bounded buffers (2,000 events, 512
operations, heads by model) are full after the warm-up.
"""

import itertools
import random
import statistics
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.cases import Row
from tests.faults.clients import LostError, RefusedError, Work
from tests.faults.planes import Plane, running
from tests.faults.record import Record
from tests.support.api import sha256
from tests.support.s3server import S3Server

_SAMPLES = 60
_MIB = 1 << 20
_EXPENSIVE_EVERY = 50
"""A publish starts a worker process, which takes as long as a hundred other operations."""


@dataclass(frozen=True)
class Sample:
    """The process at one time."""

    operations: int
    resident_bytes: int
    open_files: int
    threads: int


class Soak:
    """One client and its operations.

    Args:
        work: The client.
        seed: Random seed.
    """

    def __init__(self, work: Work, seed: int) -> None:
        self._work = work
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._call = work.caller.call
        self._cheap: list[Callable[[], object]] = [
            self.move,
            self.read,
            self.deploy,
            self.refuse,
            self.abandon_upload,
            self.repeat,
            self.look_around,
        ]

    def prepare(self) -> None:
        """Publish the models that the operations use."""
        for _ in range(2):
            self._work.publish("soaked", golden=False)
        self.deploy()

    def once(self) -> None:
        """Do one operation."""
        number = next(self._numbers)
        if number % _EXPENSIVE_EVERY == 0:
            self._rng.choice([self.publish, self.validate, self.collect])()
        else:
            self._rng.choice(self._cheap)()

    def publish(self) -> None:
        self._work.publish(f"soaked{self._rng.randrange(3)}", golden=False)

    def validate(self) -> None:
        upload = self._upload(b"no model at all" + uuid.uuid4().bytes)
        started = self._call("POST", "/v1/validations", json={"upload_id": upload})
        self._work.caller.operation(started["id"])
        self._call("DELETE", f"/v1/uploads/{upload}")

    def collect(self) -> None:
        self._work.caller.operation(self._call("POST", "/v1/gc", json={})["id"])

    def move(self) -> None:
        body = {"version": self._rng.randint(1, 2)}
        self._call("PUT", f"/v1/models/soaked/aliases/a{self._rng.randrange(4)}", json=body)

    def read(self) -> None:
        paths = ("models/soaked", "models", "models/soaked/versions/1", "models/soaked/history", "operations")
        self._call("GET", f"/v1/{self._rng.choice(paths)}")

    def deploy(self) -> None:
        self._call("PUT", "/v1/deployments/soaked", json={"reference": f"soaked:{self._rng.randint(1, 2)}"})

    def refuse(self) -> None:
        for method, path in (("GET", f"models/none{self._rng.random()}"), ("DELETE", "models/soaked/versions/77")):
            try:
                self._call(method, f"/v1/{path}")
            except RefusedError:
                continue

    def abandon_upload(self) -> None:
        self._call("DELETE", f"/v1/uploads/{self._upload(uuid.uuid4().bytes)}")

    def repeat(self) -> None:
        data = uuid.uuid4().bytes
        file = {"path": "a.bin", "size_bytes": len(data), "sha256": sha256(data)}
        key = {"Idempotency-Key": uuid.uuid4().hex}
        one, other = (self._call("POST", "/v1/uploads", json={"files": [file]}, headers=key) for _ in range(2))
        assert one == other
        self._call("DELETE", f"/v1/uploads/{one['id']}")

    def look_around(self) -> None:
        paths = ("events", "servers", "deployments", "deployments/soaked", "info", "memory")
        self._call("GET", f"/v1/{self._rng.choice(paths)}")

    def _upload(self, data: bytes) -> str:
        file = {"path": "model.onnx", "size_bytes": len(data), "sha256": sha256(data)}
        upload: str = self._call("POST", "/v1/uploads", json={"files": [file]})["id"]
        self._call("PUT", f"/v1/uploads/{upload}/blobs/{file['sha256']}", content=data)
        return upload


def soak(server: S3Server, folder: Path, operations: int, *, growth_bytes: int = 24 * _MIB) -> Row:
    """Run operations on a control plane and measure its memory and open files.

    Args:
        server: The S3 server of its store.
        folder: Folder of all local files.
        operations: Number of operations; the first half is the warm-up.
        growth_bytes: Allowed growth of memory from the middle to the end.
    """
    record = Record()
    store = server.settings(server.new_bucket())
    # No Triton, so that its memory does not count; deployments stay Pending.
    with running(Plane(folder / "plane", store, command="serve")) as plane:
        work = Work([plane.url], "soak", record, random.Random(5))
        process = psutil.Process(plane.pid)
        one = Soak(work, 7)
        one.prepare()
        samples: list[Sample] = []
        for number in range(operations):
            try:
                one.once()
            except RefusedError as error:
                if error.code not in {"invalid-artifact", "cancelled"}:
                    record.violated(f"an operation failed: {error}")
            except LostError as error:
                record.violated(f"an operation got no answer: {error}")
            if number % (operations // _SAMPLES) == 0:
                with process.oneshot():
                    samples.append(Sample(number, process.memory_info().rss, process.num_fds(), process.num_threads()))
        work.caller.close()
    return Row(
        f"soak: {operations} operations", operations, [*record.violations, *grown(samples, growth_bytes)], [], []
    )


def grown(samples: list[Sample], growth_bytes: int) -> list[str]:
    """Return what grew from the third to the last quarter, by medians, so that a short peak does not count."""
    half = samples[len(samples) // 2 :]
    before, after = half[: len(half) // 2], half[len(half) // 2 :]
    memory = [statistics.median(one.resident_bytes for one in part) for part in (before, after)]
    files = [statistics.median(one.open_files for one in part) for part in (before, after)]
    first, last = samples[0], samples[-1]
    print(
        f"soak: resident {first.resident_bytes / _MIB:.0f} MiB at the start, {memory[0] / _MIB:.1f} in the third "
        f"quarter, {memory[1] / _MIB:.1f} in the last; open files {first.open_files}, {files[0]:.0f}, {files[1]:.0f}; "
        f"threads {first.threads}, {last.threads}",
        flush=True,
    )
    problems = []
    if memory[1] - memory[0] > growth_bytes:
        problems.append(
            f"the memory grew by {(memory[1] - memory[0]) / _MIB:.1f} MiB from the third quarter to the last"
        )
    if files[1] - files[0] > 8:
        problems.append(f"the open files grew from {files[0]:.0f} to {files[1]:.0f}")
    return problems
