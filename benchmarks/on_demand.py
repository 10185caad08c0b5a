"""Two hundred models behind the gateway, on a budget that holds twenty: what clients get, and how long they wait.

A control plane as a process (`tritonctl up`), with an embedded Triton. Clients, half over HTTP and half over gRPC, ask
models by a Zipf law, each its next one as soon as the last was answered. Every answer is checked. What is refused by a
stated limit (429, RESOURCE_EXHAUSTED) is counted apart from what failed. A request is *cold* if its model was not
loaded when it came, as far as its time tells: nothing that is loaded takes half as long as the quickest load.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.filesystem import FilesystemStore
from tests.support.models import publish_affine
from tests.support.processes import tied_to_us

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
EACH = 74 * MIB
"""Resident memory of a process with a model of a few floats, with a margin (docs/internals/memory-policy.md)."""
_START_SECONDS = 120.0
_COLD_SECONDS = 0.5


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        models: Deployed, each loaded on demand.
        fit: So many the budget holds.
        clients: At once.
        seconds: How long they asked.
        answers: Right answers.
        refused: By a stated limit.
        failed: Anything else.
        answers_per_second: answers / seconds.
        loads: Loads of models.
        evictions: Models that left for another.
        cold: Requests that took half a second or more.
        p50_seconds: Median of all answers.
        p99_seconds: 99th percentile of all answers.
        cold_p50_seconds: Median of the cold ones.
        cold_p99_seconds: 99th percentile of the cold ones.
        worst_seconds: The longest.
    """

    models: int
    fit: int
    clients: int
    seconds: float
    answers: int
    refused: int
    failed: int
    answers_per_second: float
    loads: int
    evictions: int
    cold: int
    p50_seconds: float
    p99_seconds: float
    cold_p50_seconds: float
    cold_p99_seconds: float
    worst_seconds: float


@dataclass
class Tally:
    """What one client saw."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    failures: list[str] = field(default_factory=list)


def fill(folder: Path, models: int) -> None:
    """Publish and deploy the models, before any process works on the store."""
    store = FilesystemStore(folder / "data" / "store")
    registry = Registry(store, BlobCache(folder / "filling", 1 << 30), head_max_age_seconds=1.0, gc=GcSettings())
    settings = DeploymentSettings.model_validate({"mode": "on-demand", "keep_alive_seconds": None, "bake_seconds": 0})
    for number in range(models):
        publish_affine(registry, f"m{number}", folder / "files", scale=number + 2.0)
        spec = DeploymentSpec(model=f"m{number}", reference=f"m{number}", version=1, settings=settings)
        registry.deployments.put(spec, after=None, actor="benchmark", reason="")


def start(folder: Path, budget: int) -> tuple["subprocess.Popen[bytes]", dict[str, Any]]:
    """Start `tritonctl up`; return it and what it says of itself once it answers."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITONCTL_", "CONTROLPLANE_"))}
    memory = {"CONTROLPLANE_MEMORY__BUDGET_BYTES": json.dumps({"host": budget})}
    command = [sys.executable, "-m", "controlplane.cli.main", "up", "--data-dir", str(folder / "data"), "--port", "0"]
    with (folder / "up.log").open("ab") as log:
        process = subprocess.Popen(tied_to_us(command), env={**kept, **memory}, stdout=log, stderr=log)
    ready, end = folder / "data" / "up.json", time.monotonic() + _START_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise RuntimeError((folder / "up.log").read_text()[-3000:])
        time.sleep(0.05)
    return process, json.loads(ready.read_text())


def ask(kind: Any, url: str, models: int, seed: int, until: float, stats: Tally) -> None:
    """Be one client."""
    chance = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(models)]
    client: Any = kind.InferenceServerClient(url, **({"network_timeout": 330.0} if kind is triton_http else {}))
    while time.monotonic() < until:
        (number,) = chance.choices(range(models), weights)
        tensor = kind.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        began = time.perf_counter()
        try:
            value = float(client.infer(f"m{number}", [tensor]).as_numpy("y")[0, 0])
        except InferenceServerException as error:
            if str(error.status()) in {"429", "StatusCode.RESOURCE_EXHAUSTED"}:
                stats.refused += 1
            else:
                stats.failures.append(f"m{number}: {error}")
            continue
        stats.seconds.append(time.perf_counter() - began)
        if value != number + 2.0:
            stats.failures.append(f"m{number} answered {value}")
    client.close()


def quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else 0.0


def measure(folder: Path, models: int, fit: int, clients: int, seconds: float) -> tuple[Row, list[str]]:
    fill(folder, models)
    process, document = start(folder, fit * EACH)
    try:
        urls = {triton_http: document["gateway"]["http_url"].partition("://")[2]}
        urls[triton_grpc] = document["gateway"]["grpc_url"]
        tallies = [Tally() for _ in range(clients)]
        began = time.monotonic()
        threads = []
        for seed, stats in enumerate(tallies):
            kind = (triton_http, triton_grpc)[seed % 2]
            work = (kind, urls[kind], models, seed, began + seconds, stats)
            threads.append(threading.Thread(target=ask, args=work))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = time.monotonic() - began
        (server,) = httpx.get(f"{document['url']}/v1/memory", timeout=60).raise_for_status().json()["items"]
    finally:
        process.terminate()
        process.wait(60)
    took = sorted(value for stats in tallies for value in stats.seconds)
    cold = [value for value in took if value >= _COLD_SECONDS]
    failures = [failure for stats in tallies for failure in stats.failures]
    return Row(
        models=models,
        fit=fit,
        clients=clients,
        seconds=round(spent, 1),
        answers=len(took),
        refused=sum(stats.refused for stats in tallies),
        failed=len(failures),
        answers_per_second=round(len(took) / spent, 1),
        loads=int(server["counters"]["loads"]),
        evictions=int(server["counters"]["evictions"]),
        cold=len(cold),
        p50_seconds=round(statistics.median(took), 4),
        p99_seconds=round(quantile(took, 0.99), 3),
        cold_p50_seconds=round(quantile(cold, 0.5), 3),
        cold_p99_seconds=round(quantile(cold, 0.99), 3),
        worst_seconds=round(took[-1], 3),
    ), failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--fit", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="on-demand-") as name:
        row, failures = measure(Path(name), arguments.models, arguments.fit, arguments.clients, arguments.seconds)
    for key, value in asdict(row).items():
        print(f"{key:20}{value}")
    for failure in failures[:10]:
        print("failed:", failure)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "on_demand.json").write_text(json.dumps([asdict(row)], indent=2) + "\n")


if __name__ == "__main__":
    main()
