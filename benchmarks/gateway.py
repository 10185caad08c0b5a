"""Inference through the gateway, against Triton's own ports and against a bare HAProxy, in one run.

tritonclient's clients, each in a thread of one process of its own, ask an identity model as often as they can. Three
sides take turns on the same cores: Triton itself; the *limit*, a HAProxy of the same version with the same buffers that
passes everything on and looks at nothing (with ``--tcp`` also one that passes on bytes); and the gateway.

Then cold starts: a model that is not loaded, asked at the gateway, for the first time and once more after it left,
against the raw calls of a person: ``load_model`` and ``infer`` of a model that is staged already, with no proof of what
it answers.
"""

import argparse
import json
import multiprocessing
import multiprocessing.pool
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper

from controlplane.gateway.haproxy.config import Sockets, render
from controlplane.gateway.haproxy.process import find_haproxy
from controlplane.gateway.haproxy.route_table import empty
from controlplane.settings import GatewaySettings
from tests.support.api import Api, onnx_scale
from tests.support.control_process import running
from tests.support.gateway import ones, until, way
from tests.support.processes import free_port, listening, tied_to_us

RESULTS = Path(__file__).parent / "results"
KINDS = {"http": triton_http, "grpc": triton_grpc}
SMALL, LARGE = 64, 16 << 20
CASES = ((1, SMALL), (8, SMALL), (1, LARGE), (4, LARGE))
Urls = Mapping[str, Mapping[str, str]]
"""host:port by side and protocol."""


@dataclass(frozen=True)
class Row:
    """Medians over the rounds.

    Attributes:
        protocol: http or grpc.
        clients: Clients at once.
        tensor_bytes: Size of the input, and of the output.
        direct_per_second: Requests per second to Triton's own port.
        limit_per_second: The same through a HAProxy that looks at nothing.
        gateway_per_second: The same through the gateway.
        throughput_ratio: gateway / direct.
        limit_ratio: limit / direct.
        added_p50_seconds: Median latency through the gateway less that without.
        limit_added_p50_seconds: The same of the limit.
    """

    protocol: str
    clients: int
    tensor_bytes: int
    direct_per_second: float
    limit_per_second: float
    gateway_per_second: float
    throughput_ratio: float
    limit_ratio: float
    added_p50_seconds: float
    limit_added_p50_seconds: float


def identity() -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "width"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "width"])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


@contextmanager
def bare_proxy(folder: Path, targets: Mapping[str, str]) -> Iterator[tuple[Urls, int]]:
    """HAProxy without a rule, before Triton's ports; its addresses and its process id.

    Side ``limit`` knows the protocols, side ``tcp`` passes on bytes.
    """
    binary = find_haproxy(None)
    assert binary is not None, "there is no HAProxy"
    urls: dict[str, dict[str, str]] = {"limit": {}, "tcp": {}}
    # Buffers and windows as the gateway has them, so that its rules alone make the difference.
    ours = render(GatewaySettings(), Sockets(0, 0, 0), (), empty(0))
    text = "global\n" + "\n".join(re.findall(r"^ +tune\..*", ours, re.MULTILINE))
    text += """
defaults
    timeout connect 2s
    timeout client 60s
    timeout server 60s
"""
    for side, mode in (("limit", "http"), ("tcp", "tcp")):
        for protocol, target in targets.items():
            urls[side][protocol] = address = f"127.0.0.1:{free_port()}"
            spoken = " proto h2" if (side, protocol) == ("limit", "grpc") else ""
            text += f"""
listen {side}-{protocol}
    mode {mode}
    bind {address}{spoken}
    server triton {target}{spoken}
"""
    (folder / "bare.cfg").write_text(text)
    process = subprocess.Popen(tied_to_us([str(binary), "-db", "-f", str(folder / "bare.cfg")]))
    try:
        ports = [int(address.rpartition(":")[2]) for side in urls.values() for address in side.values()]
        until("the bare proxy", lambda: all(listening(port) for port in ports))
        yield urls, process.pid
    finally:
        process.terminate()
        process.wait(10)


def load(protocol: str, url: str, clients: int, size: int, seconds: float) -> tuple[float, float]:
    """Requests per second and median latency; runs in a process of its own."""
    kind: Any = KINDS[protocol]
    latencies: list[float] = []
    begin = threading.Barrier(clients + 1)
    end = [0.0]

    def run() -> None:
        x = kind.InferInput("x", [1, size // 4], "FP32")
        x.set_data_from_numpy(np.zeros((1, size // 4), np.float32))
        mine: list[float] = []
        with kind.InferenceServerClient(url) as client:
            for _ in range(2):
                client.infer("identity", [x])
            begin.wait()
            while time.perf_counter() < end[0] or not mine:
                began = time.perf_counter()
                client.infer("identity", [x])
                mine.append(time.perf_counter() - began)
        latencies.extend(mine)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    end[0] = time.perf_counter() + 3600
    begin.wait()
    began = time.perf_counter()
    end[0] = began + seconds
    for thread in threads:
        thread.join()
    return len(latencies) / (time.perf_counter() - began), statistics.median(latencies)


def measure(
    pool: "multiprocessing.pool.Pool", urls: Urls, protocol: str, clients: int, size: int, rounds: int, seconds: float
) -> Row:
    results: dict[str, list[tuple[float, float]]] = {side: [] for side in urls}
    for number in range(rounds):
        sides = list(urls) if number % 2 else list(urls)[::-1]
        for side in sides:
            results[side].append(pool.apply(load, (protocol, urls[side][protocol], clients, size, seconds)))
    rates = {side: statistics.median(rate for rate, _ in found) for side, found in results.items()}
    compared = {
        side: (
            statistics.median(one[0] / other[0] for one, other in zip(found, results["direct"], strict=True)),
            statistics.median(one[1] - other[1] for one, other in zip(found, results["direct"], strict=True)),
        )
        for side, found in results.items()
    }
    print(f"{protocol:5}{clients:8}{size:10}{rates['direct']:10.1f}", end="")
    for side in list(urls)[1:]:
        print(f"{rates[side]:10.1f}{compared[side][0]:7.3f}{compared[side][1] * 1000:+8.2f}", end="")
    print(flush=True)
    return Row(
        protocol,
        clients,
        size,
        *(round(rates[side], 1) for side in ("direct", "limit", "gateway")),
        *(round(compared[side][0], 3) for side in ("gateway", "limit")),
        *(round(compared[side][1], 6) for side in ("gateway", "limit")),
    )


def cold_starts(api: Api, folder: Path, urls: Urls, repetitions: int) -> dict[str, Any]:
    """Median seconds to the first answer: at the gateway for the first time and once more, and by hand."""
    seen: dict[str, list[float]] = {"first": [], "again": [], "by_hand": []}
    stages: dict[str, list[dict[str, float]]] = {"first": [], "again": []}
    with (
        triton_grpc.InferenceServerClient(urls["gateway"]["grpc"]) as gateway,
        triton_grpc.InferenceServerClient(urls["direct"]["grpc"]) as triton,
    ):
        config: dict[str, Any] = {}
        for number in range(repetitions + 1):  # the first warms up and is not counted
            name, raw = f"cold{number}", f"cold{number}-raw"
            api.publish(name, onnx_scale(number + 1.0))
            # It is unloaded as soon as it is unused.
            assert api.deploy(f"{name}:1", mode="on-demand", keep_alive_seconds=0)["state"] == "succeeded"

            def at_the_gateway(which: str) -> float:
                before = _stages(api, name)  # noqa: B023 - called before the next turn
                took = _ask(gateway, name)  # noqa: B023
                after = _stages(api, name)  # noqa: B023
                stages[which].append({stage: after[stage] - before.get(stage, 0.0) for stage in after})
                until("unloaded", lambda: _phase(api, name) == "Unloaded")  # noqa: B023
                return took

            def by_hand() -> float:
                return _by_hand(folder, triton, raw, {**config, "name": raw}, number + 1.0)  # noqa: B023

            if not config:
                gateway.infer(name, ones())
                config = triton.get_model_config(name, as_json=True)["config"]
                until("unloaded", lambda: _phase(api, name) == "Unloaded")  # noqa: B023
                by_hand()
                continue
            order = ("first", "by_hand", "again") if number % 2 else ("by_hand", "first", "again")
            for turn in order:
                seen[turn].append(by_hand() if turn == "by_hand" else at_the_gateway(turn))
    result: dict[str, Any] = {side: round(statistics.median(found), 4) for side, found in seen.items()}
    for side in ("first", "again"):
        ratios = [one / other for one, other in zip(seen[side], seen["by_hand"], strict=True)]
        result[f"{side}_ratio"] = round(statistics.median(ratios), 3)
        unproved = [one - spent["prove"] for one, spent in zip(seen[side], stages[side], strict=True)]
        ratios = [one / other for one, other in zip(unproved, seen["by_hand"], strict=True)]
        result[f"{side}_ratio_without_proof"] = round(statistics.median(ratios), 3)
        named = {stage for spent in stages[side] for stage in spent} - {"unload"}
        result[f"{side}_stages"] = {
            stage: round(statistics.median(spent.get(stage, 0.0) for spent in stages[side]), 4)
            for stage in ("fetch", "stage", "load", "prove", "examine")
            if stage in named
        }
    return result


def _ask(gateway: Any, name: str) -> float:
    began = time.perf_counter()
    gateway.infer(name, ones())
    return time.perf_counter() - began


def _stages(api: Api, name: str) -> dict[str, float]:
    (server,) = api.ok(api.http.get(f"/v1/deployments/{name}"))["status"]["servers"]
    return dict(server["seconds"])


def _phase(api: Api, name: str) -> str:
    return str(api.ok(api.http.get(f"/v1/deployments/{name}"))["status"]["phase"])


def _gone(triton: Any, name: str) -> bool:
    states = {one["name"]: one for one in triton.get_model_repository_index(as_json=True).get("models", [])}
    return str(states.get(name, {}).get("state", "UNAVAILABLE")) == "UNAVAILABLE"


def _by_hand(folder: Path, triton: Any, name: str, config: dict[str, Any], factor: float) -> float:
    version = folder / "model_repository" / name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(onnx_scale(factor))
    text = json.dumps(config)
    began = time.perf_counter()
    triton.load_model(name, config=text)
    triton.infer(name, ones())
    took = time.perf_counter() - began
    triton.unload_model(name)
    until("unloaded", lambda: _gone(triton, name))
    return took


def addresses(api: Api) -> dict[str, dict[str, str]]:
    (server,) = api.ok(api.http.get("/v1/servers"))["items"]
    gateway = api.ok(api.http.get("/v1/gateway"))
    return {
        side: {"http": one["http_url"].partition("://")[2], "grpc": one["grpc_url"]}
        for side, one in (("direct", server), ("gateway", gateway))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds with small tensors; large ones have 3 at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn with small tensors; large ones twice")
    parser.add_argument("--cold", type=int, default=7, help="cold starts of each kind; 0: none")
    parser.add_argument("--protocol", choices=KINDS, action="append", help="only this one")
    parser.add_argument("--size", type=int, choices=(SMALL, LARGE), action="append", help="only these tensors")
    parser.add_argument("--tcp", action="store_true", help="also a HAProxy that passes on bytes")
    arguments = parser.parse_args()
    rows, cold = [], {}
    with (
        tempfile.TemporaryDirectory(prefix="gateway-") as name,
        # A process of its own, as it is in use; its Triton takes loads from others, too: those by hand.
        running(Path(name) / "data", restricted=False) as (api, _),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        folder = Path(name)
        api.publish("identity", identity())
        assert api.deploy("identity:1", max_batch_size=0)["state"] == "succeeded"
        until("the direct way", lambda: way(api, "identity") == "direct")
        real = addresses(api)
        with bare_proxy(folder, real["direct"]) as (bare, _):
            shown = {"limit": bare["limit"], **({"tcp": bare["tcp"]} if arguments.tcp else {})}
            urls = {"direct": real["direct"], **shown, "gateway": real["gateway"]}
            print(f"{'':5}{'clients':>8}{'bytes':>10}{'direct/s':>10}", end="")
            print("".join(f"{side + '/s':>10}{'ratio':>7}{'p50 ms':>8}" for side in list(urls)[1:]))
            for protocol in arguments.protocol or KINDS:
                for clients, size in CASES:
                    if size in (arguments.size or (size,)):
                        large = size == LARGE
                        rounds = min(arguments.rounds, 3) if large else arguments.rounds
                        seconds = arguments.seconds * (1 + large)
                        rows.append(measure(pool, urls, protocol, clients, size, rounds, seconds))
        if arguments.cold:
            cold = cold_starts(api, folder / "data", real, arguments.cold)
            for side in ("first", "again"):
                print(
                    f"cold start, {side}: gateway {cold[side]:.3f} s, by hand {cold['by_hand']:.3f} s, "
                    f"ratio {cold[f'{side}_ratio']:.3f}, without the proof {cold[f'{side}_ratio_without_proof']:.3f}"
                )
                spent = cold[f"{side}_stages"].items()
                print("   of it:", ", ".join(f"{stage} {took * 1000:.1f} ms" for stage, took in spent if took))
    RESULTS.mkdir(exist_ok=True)
    document = {"rows": [asdict(row) for row in rows], "cold_start": cold}
    (RESULTS / "gateway.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
