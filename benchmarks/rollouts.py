"""Rollouts by evidence through the gateway: how soon a bad version is withdrawn, and what the way costs.

Cases: clients ask all the while over HTTP and gRPC; a new version is rolled out as a canary (5 % of the requests,
25 %, 50 %) or in the shadow. A row says how it ended, how many requests the new version had by then, and what share
that is of the requests since the first step began, next to the share that was asked for. Ways: the same requests of a
model without a rollout (the direct way, HAProxy to Triton), and of others whose rollout is in one of its steps, in
turns.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc_client
import tritonclient.http.aio as http_client
from tritonclient.utils import InferenceServerException

from tests.gateway.rollout_models import WIDTH, model
from tests.support.api import Api
from tests.support.control_process import running

RESULTS = Path(__file__).parent / "results"
CANARY = {
    "kind": "canary",
    "steps": [{"weight_percent": weight, "seconds": 10} for weight in (5, 25, 50)],
    "minimum_requests": 100,
}
SHADOW = {"kind": "shadow", "shadow_seconds": 10, "minimum_requests": 100}
CASES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("slower", CANARY, {"slow": True}),
    ("fails every tenth", CANARY, {"fails_above": 0.9}),
    ("other outputs", SHADOW, {"scale": 1.1}),
    ("fine", CANARY, {}),
)
STAGES: dict[str, dict[str, Any]] = {
    **{f"canary {weight} %": {"steps": [{"weight_percent": weight, "seconds": 3600}]} for weight in (5, 25, 50)},
    "shadow": {"kind": "shadow", "shadow_seconds": 3600},
}
LASTING = {"kind": "canary", "error": 1e-12, "latency_tolerance": 100}
"""Rollouts that end by hand alone."""


@dataclass(frozen=True)
class Case:
    """How a rollout went.

    Attributes:
        case: What the new version does.
        strategy: canary or shadow.
        ended: promoted or aborted.
        seconds: From the beginning of the first step to the end.
        requests: Requests of clients in that time.
        new_requests: Requests, or copies, that the new version had.
        asked_share: Share of the step in which it ended; of the shadow 1.
        share: new_requests of requests.
        client_errors: Errors that clients saw.
        old_errors: Errors of the old version.
        message: The decision.
    """

    case: str
    strategy: str
    ended: str
    seconds: float
    requests: int
    new_requests: int
    asked_share: float
    share: float
    client_errors: int
    old_errors: int
    message: str


@dataclass(frozen=True)
class Way:
    """What a rollout costs the requests of its model. Medians of the rounds.

    Attributes:
        stage: What the rollout does.
        measured_share: Share of the requests that goes through the control plane, once they are many.
        protocol: http or grpc.
        clients: At once.
        fast_per_second: Without a rollout.
        split_per_second: During the rollout.
        throughput_ratio: split / fast.
        fast_p50_ms: Median latency without a rollout.
        split_p50_ms: Median latency during the rollout.
        added_p50_ms: The difference.
    """

    stage: str
    measured_share: float
    protocol: str
    clients: int
    fast_per_second: float
    split_per_second: float
    throughput_ratio: float
    fast_p50_ms: float
    split_p50_ms: float
    added_p50_ms: float


@dataclass(frozen=True)
class Abort:
    """An abort by hand at 50 % of the requests, under load. Milliseconds.

    Attributes:
        answered_ms: Until the API had written it down and answered.
        last_new_ms: Until the last answer of the new version came; negative if before the API's answer.
        errors: Errors that clients saw.
    """

    answered_ms: float
    last_new_ms: float
    errors: int


class Load:
    """Clients in a loop."""

    def __init__(self, api: Api, name: str) -> None:
        gateway = api.ok(api.http.get("/v1/gateway"))
        self._urls = {"http": gateway["http_url"].removeprefix("http://"), "grpc": gateway["grpc_url"]}
        self._name = name
        self.answers: list[tuple[float, str]] = []
        self.latencies: list[float] = []
        self.errors = 0

    async def run(self, protocol: str, seed: int, stop: asyncio.Event, **how: Any) -> None:
        library: Any = http_client if protocol == "http" else grpc_client
        chance = np.random.default_rng(seed)
        async with library.InferenceServerClient(self._urls[protocol]) as client:
            while not stop.is_set():
                tensor = library.InferInput("x", [1, WIDTH], "FP32")
                tensor.set_data_from_numpy(chance.random((1, WIDTH), dtype=np.float32))
                began = time.perf_counter()
                try:
                    answer = (await client.infer(self._name, [tensor], **how)).get_response()
                except InferenceServerException:
                    self.errors += 1
                    continue
                now = time.perf_counter()
                self.latencies.append(now - began)
                version = answer["model_version"] if protocol == "http" else answer.model_version
                self.answers.append((now, version))


def rollout(api: Api, name: str) -> dict[str, Any]:
    return api.ok(api.http.get(f"/v1/rollouts/{name}"))


def publish(api: Api, folder: Path, name: str, **second: Any) -> None:
    api.publish(name, model(folder / "1.onnx"))
    api.publish(name, model(folder / "2.onnx", **second))
    assert api.deploy(f"{name}:1")["state"] == "succeeded"


def begin(api: Api, name: str, strategy: dict[str, Any]) -> None:
    body = {"reference": f"{name}:2", "settings": {"rollout": strategy}}
    api.ok(api.http.put(f"/v1/deployments/{name}", json=body), 202)


async def case(api: Api, folder: Path, number: int) -> Case:
    what, strategy, second = CASES[number]
    name = f"case{number}"
    publish(api, folder, name, **second)
    load, stop = Load(api, name), asyncio.Event()
    tasks = [asyncio.create_task(load.run(kind, seed, stop)) for seed, kind in enumerate(("http", "grpc") * 2)]
    await asyncio.to_thread(begin, api, name, strategy)
    while (found := await asyncio.to_thread(rollout, api, name))["step"] == 0:
        await asyncio.sleep(0.02)
    began, before = time.perf_counter(), len(load.answers) + load.errors
    share = 1.0 if strategy["kind"] == "shadow" else 0.05
    while (found := await asyncio.to_thread(rollout, api, name))["phase"] == "running":
        share = found["weight"] or share
        await asyncio.sleep(0.05)
    seconds, requests = time.perf_counter() - began, len(load.answers) + load.errors - before
    stop.set()
    await asyncio.gather(*tasks)
    new = found["new"]["requests"]
    return Case(
        what,
        found["strategy"],
        found["phase"],
        round(seconds, 2),
        requests,
        new,
        share,
        round(new / max(requests, 1), 4),
        load.errors,
        found["old"]["failures"],
        found["message"],
    )


async def one_way(api: Api, name: str, protocol: str, clients: int, seconds: float) -> tuple[float, float]:
    load, stop = Load(api, name), asyncio.Event()
    tasks = [asyncio.create_task(load.run(protocol, seed, stop)) for seed in range(clients)]
    await asyncio.sleep(seconds / 4)
    load.latencies.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    latencies = list(load.latencies)
    stop.set()
    await asyncio.gather(*tasks)
    return len(latencies) / took, statistics.median(latencies)


async def ways(api: Api, folder: Path, rounds: int, seconds: float) -> list[Way]:
    """Models of the same kind: one for each stage of a rollout, and one without any."""
    names = {"direct": "direct", **{stage: f"stage{number}" for number, stage in enumerate(STAGES)}}
    for stage, name in names.items():
        await asyncio.to_thread(publish, api, folder, name)
        if stage in STAGES:
            await asyncio.to_thread(begin, api, name, {**LASTING, **STAGES[stage]})
            while (await asyncio.to_thread(rollout, api, name))["step"] == 0:
                await asyncio.sleep(0.05)
    await asyncio.sleep(2)  # until the gateway has changed its table
    open_routes = (await asyncio.to_thread(lambda: api.ok(api.http.get("/v1/gateway"))))["models"]
    share = {route["model"]: route["measured_share"] for route in open_routes}
    rows = []
    for protocol in ("http", "grpc"):
        for clients in (1, 8):
            seen: dict[str, list[tuple[float, float]]] = {stage: [] for stage in names}
            for _ in range(rounds):
                for stage, found in seen.items():
                    found.append(await one_way(api, names[stage], protocol, clients, seconds))
            rate = {stage: statistics.median(one[0] for one in found) for stage, found in seen.items()}
            p50 = {stage: statistics.median(one[1] for one in found) * 1000 for stage, found in seen.items()}
            rows += [
                Way(
                    stage,
                    share[names[stage]],
                    protocol,
                    clients,
                    round(rate["direct"], 1),
                    round(rate[stage], 1),
                    round(rate[stage] / rate["direct"], 3),
                    round(p50["direct"], 3),
                    round(p50[stage], 3),
                    round(p50[stage] - p50["direct"], 3),
                )
                for stage in STAGES
            ]
    return rows


async def abort(api: Api, folder: Path) -> Abort:
    publish(api, folder, "abort")
    load, stop = Load(api, "abort"), asyncio.Event()
    tasks = [asyncio.create_task(load.run(kind, seed, stop)) for seed, kind in enumerate(("http", "grpc") * 2)]
    await asyncio.to_thread(begin, api, "abort", {"kind": "canary", "steps": [{"weight_percent": 50, "seconds": 600}]})
    while sum(version == "2" for _, version in load.answers) < 200:
        await asyncio.sleep(0.02)
    began = time.perf_counter()
    await asyncio.to_thread(lambda: api.ok(api.http.post("/v1/rollouts/abort/abort")))
    answered = time.perf_counter()
    await asyncio.sleep(1)
    stop.set()
    await asyncio.gather(*tasks)
    last = max(at for at, version in load.answers if version == "2")
    return Abort(round((answered - began) * 1000, 1), round((last - began) * 1000, 1), load.errors)


async def measure(rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
        work = Path(folder)
        # A process of its own, as it is in use: clients in the same one would take its time.
        with running(work / "data") as (api, _):
            cases = [asdict(await case(api, work, number)) for number in range(len(CASES))]
            for row in cases:
                print({key: value for key, value in row.items() if key != "message"})
                print("   ", row["message"])
            aborted = [asdict(await abort(api, work))]
            print(aborted[0])
        # As of a busy model from its first request on: else the first five hundred would all be measured.
        with running(work / "busy", CONTROLPLANE_GATEWAY__MAX_SAMPLED_REQUESTS_PER_SECOND="0") as (api, _):
            costs = [asdict(row) for row in await ways(api, work, rounds, seconds)]
            for row in costs:
                print(row)
    return {"cases": cases, "abort": aborted, "ways": costs}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args(arguments)
    rows = asyncio.run(measure(given.rounds, given.seconds))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rollouts.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
