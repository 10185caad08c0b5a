"""Cost of an idle control plane, and its response times, by the number of deployments.

Each registry has models of one version with an on-demand deployment each; nothing is loaded and there are no requests.
`tritonctl up` starts on it as a user starts it. CPU and requests are taken at rest, over its processes except Triton's.

The rows named ``N against M`` are the ratios of both in one run, for `make bench-check`.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Mode
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.registry.revision import Revision
from controlplane.settings import GcSettings, StoreSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.factory import open_store
from controlplane.storage.memory import MemoryStore
from tests.support.ceph import ceph_server, missing_programs
from tests.support.models import publish_affine
from tests.support.processes import tied_to_us

RESULTS = Path(__file__).parent / "results"
_TEMPLATE = "template"
_START_SECONDS = 900.0
_QUIET_SECONDS, _QUIET_REQUESTS = 5.0, 40
_LOOKUPS = 200
_WRITERS = 16


@dataclass(frozen=True)
class Row:
    """One registry.

    Attributes:
        store: ``folder`` or ``ceph``.
        deployments: How many there are.
        idle_cores: CPU seconds per second at rest.
        store_requests_per_minute: At rest.
        rss_mib: Resident memory of the control plane at the end.
        start_seconds: From the start of the command until `/readyz` says ready.
        ps_seconds: `tritonctl ps`, its default page.
        ps_all_seconds: `tritonctl ps --all`.
        deploy_seconds: `tritonctl deploy` of one small model, until it is Ready.
        lookup_p99_ms: `GET` of a deployment, existing and missing ones in turn.
    """

    store: str
    deployments: int
    idle_cores: float
    store_requests_per_minute: float
    rss_mib: int
    start_seconds: float
    ps_seconds: float
    ps_all_seconds: float
    deploy_seconds: float
    lookup_p99_ms: float


def name_of(number: int) -> str:
    """Return a model's name."""
    return f"m{number:06d}"


def fill(store: ObjectStore, folder: Path, count: int) -> None:
    """Write models and deployments: one by the registry's own code, the others as copies under other names."""
    made = MemoryStore()
    registry = Registry(made, BlobCache(folder / "filling", 1 << 30), head_max_age_seconds=1.0, gc=GcSettings())
    publish_affine(registry, _TEMPLATE, folder / "files", scale=2.0)
    settings = DeploymentSettings(mode=Mode.ON_DEMAND)
    spec = DeploymentSpec(model=_TEMPLATE, reference=f"{_TEMPLATE}:1", version=1, settings=settings)
    registry.deployments.put(spec, after=None, actor="benchmark", reason="")
    chains = {
        info.key: Revision.from_json(made.get(info.key), info.key)
        for kind in ("models", "deployments")
        for info in made.list(f"{kind}/{_TEMPLATE}/")
    }
    for info in made.list("blobs/"):
        store.create(info.key, made.get(info.key))

    def copy(number: int) -> None:
        for key, revision in chains.items():
            body = json.loads(json.dumps(revision.body).replace(_TEMPLATE, name_of(number)))
            store.create(key.replace(_TEMPLATE, name_of(number)), replace(revision, body=body).to_json())

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(copy, range(count)))


class Plane:
    """A `tritonctl up` on a registry."""

    def __init__(self, folder: Path, store: Mapping[str, str]) -> None:
        self._folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITONCTL_", "CONTROLPLANE_"))}
        self._environment = {**kept, **store}
        self._began = time.monotonic()
        with (folder / "up.log").open("ab") as log:
            command = [*self._command("up"), "--port", "0", "--http-port", "0", "--grpc-port", "0"]
            self._process = subprocess.Popen(tied_to_us(command), env=self._environment, stdout=log, stderr=log)
        self._url = ""
        self._key = ""

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "controlplane.cli.main", *arguments, "--data-dir", str(self._folder / "data")]

    def wait_ready(self) -> float:
        """Wait until it is ready; return the seconds since the start."""
        ready, end = self._folder / "data" / "up.json", self._began + _START_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self._folder / "up.log").read_text()[-3000:])
            with contextlib.suppress(OSError, ValueError, KeyError):
                self._url = str(json.loads(ready.read_text())["url"])
                if self.get("/readyz")[0] == 200:
                    return time.monotonic() - self._began
            time.sleep(0.1)

    def run(self, *arguments: str) -> float:
        """Run a command; return its seconds."""
        began = time.perf_counter()
        subprocess.run(self._command(*arguments), env=self._environment, check=True, capture_output=True)
        return time.perf_counter() - began

    def get(self, path: str) -> tuple[int, bytes, float]:
        """Ask the API; return status, body and seconds."""
        began = time.perf_counter()
        try:
            with urllib.request.urlopen(self._url + path, timeout=60) as answer:
                return answer.status, answer.read(), time.perf_counter() - began
        except urllib.error.HTTPError as error:
            return error.code, error.read(), time.perf_counter() - began

    def requests(self) -> float:
        """Return how many requests were sent to the store."""
        page = self.get("/metrics")[1].decode()
        return sum(float(one) for one in re.findall(r"^\w*store_seconds_count\{[^}]*\} (\S+)", page, re.MULTILINE))

    def wait_quiet(self) -> None:
        """Wait until what a first start writes for each deployment is written."""
        end, before = time.monotonic() + _START_SECONDS, self.requests()
        while time.monotonic() < end:
            time.sleep(_QUIET_SECONDS)
            now = self.requests()
            if now - before < _QUIET_REQUESTS:
                return
            before = now
        raise RuntimeError(f"it still sent more than {_QUIET_REQUESTS} requests in {_QUIET_SECONDS:g} s")

    def control_plane(self) -> psutil.Process:
        """Return the control plane's own process."""
        return psutil.Process(int(json.loads((self._folder / "data" / "up.json").read_text())["pid"]))

    def close(self) -> None:
        """End it with all that it started."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def at_rest(plane: Plane, seconds: float) -> tuple[float, float]:
    """Return CPU seconds per second, and requests per minute."""
    process = plane.control_plane()
    cpu, requests, began = process.cpu_times(), plane.requests(), time.monotonic()
    time.sleep(seconds)
    spent = time.monotonic() - began
    after = process.cpu_times()
    used = after.user + after.system - cpu.user - cpu.system
    return used / spent, (plane.requests() - requests) * 60 / spent


def measure(kind: str, store: StoreSettings, count: int, seconds: float) -> Row:
    """Fill a registry, start a control plane on it, and look."""
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        if kind == "folder":
            store = StoreSettings(url=f"file://{folder / 'store'}")
        bucket = open_store(store, folder)
        fill(bucket, folder, count)
        bucket.close()
        plane = Plane(folder, _environment(store))
        try:
            start = plane.wait_ready()
            plane.wait_quiet()
            cores, requests = at_rest(plane, seconds)
            page, everything = plane.run("ps"), plane.run("ps", "--all", "-o", "json")
            lookups = []
            for number in range(_LOOKUPS):
                wanted = name_of(number % count) if number % 2 else f"missing{number}"
                lookups.append(plane.get(f"/v1/deployments/{wanted}")[2])
            deploy = plane.run("deploy", name_of(count // 2), "--wait", "--mode", "resident")
            rss = plane.control_plane().memory_info().rss >> 20
        finally:
            plane.close()
    return Row(
        store=kind,
        deployments=count,
        idle_cores=round(cores, 3),
        store_requests_per_minute=round(requests, 1),
        rss_mib=rss,
        start_seconds=round(start, 1),
        ps_seconds=round(page, 2),
        ps_all_seconds=round(everything, 2),
        deploy_seconds=round(deploy, 2),
        lookup_p99_ms=round(statistics.quantiles(lookups, n=100)[98] * 1e3, 1),
    )


def _environment(store: StoreSettings) -> dict[str, str]:
    given = store.model_dump(exclude_unset=True, exclude_none=True)
    return {
        f"CONTROLPLANE_STORE__{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in given.items()
    }


def ratios(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield what the largest registry of a store costs against the smallest."""
    for store in dict.fromkeys(row.store for row in rows):
        same = sorted((row for row in rows if row.store == store), key=lambda row: row.deployments)
        few, many = same[0], same[-1]
        if few is not many:
            yield {
                "what": f"{store}, {many.deployments} against {few.deployments}",
                "requests": round(many.store_requests_per_minute / few.store_requests_per_minute, 2),
                "idle_cpu": round(many.idle_cores / max(few.idle_cores, 0.001), 2),
            }


@contextlib.contextmanager
def stores(wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give what makes the settings of each store."""
    found: dict[str, Any] = {"folder": StoreSettings} if "folder" in wanted else {}
    with contextlib.ExitStack() as stack:
        if "ceph" in wanted:
            if missing := missing_programs():
                print(f"nothing on S3: Ceph is not installed ({', '.join(missing)} missing)")
            else:
                server = stack.enter_context(ceph_server())
                found["ceph"] = lambda: server.settings(server.new_bucket())
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, nargs="+", default=[100, 2000, 10_000])
    parser.add_argument("--stores", nargs="+", choices=["folder", "ceph"], default=["folder", "ceph"])
    parser.add_argument("--seconds", type=float, default=120.0, help="How long to look at rest.")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with stores(arguments.stores) as found:
        for kind, settings in found.items():
            for count in arguments.deployments:
                rows.append(measure(kind, settings(), count, arguments.seconds))
                print(json.dumps(asdict(rows[-1])), flush=True)
    compared = list(ratios(rows))
    for row in compared:
        print(json.dumps(row))
    RESULTS.mkdir(exist_ok=True)
    document = [*map(asdict, rows), *compared]
    (RESULTS / "scale.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
