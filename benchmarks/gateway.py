"""Inference through the front door, against the same requests to Triton's own ports, in one run.

tritonclient's clients, each in a thread of one process of its own, ask an identity model as often as they can; the
front door and Triton take turns, several times, on the same cores. Then cold starts: a model that is not loaded, asked
at the front door, against the raw calls of a person: ``load_model`` and ``infer`` of a model that is staged already.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper

from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import direct_urls, ones, until, urls, way

RESULTS = Path(__file__).parent / "results"
KINDS = {"http": triton_http, "grpc": triton_grpc}


@dataclass(frozen=True)
class Row:
    """Medians over the rounds.

    Attributes:
        protocol: http or grpc.
        clients: Clients at once.
        tensor_bytes: Size of the input, and of the output.
        direct_per_second: Requests per second to Triton's own port.
        gateway_per_second: The same through the front door.
        throughput_ratio: gateway / direct.
        added_p50_seconds: Median latency through the front door less that without.
    """

    protocol: str
    clients: int
    tensor_bytes: int
    direct_per_second: float
    gateway_per_second: float
    throughput_ratio: float
    added_p50_seconds: float


def identity() -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "width"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "width"])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def load(protocol: str, url: str, clients: int, size: int, seconds: float) -> tuple[float, float]:
    """Requests per second and median latency, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_load, (protocol, url, clients, size, seconds))


def _load(protocol: str, url: str, clients: int, size: int, seconds: float) -> tuple[float, float]:
    kind: Any = KINDS[protocol]
    latencies: list[float] = []
    begin = threading.Barrier(clients + 1)
    end = [0.0]

    def run() -> None:
        x = kind.InferInput("x", [1, size // 4], "FP32")
        x.set_data_from_numpy(np.zeros((1, size // 4), np.float32))
        mine = []
        with kind.InferenceServerClient(url) as client:
            for _ in range(3):
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
    began = time.perf_counter()
    end[0] = began + 3600
    begin.wait()
    began = time.perf_counter()
    end[0] = began + seconds
    for thread in threads:
        thread.join()
    return len(latencies) / (time.perf_counter() - began), statistics.median(latencies)


def measure(api: Api, protocol: str, clients: int, size: int, rounds: int, seconds: float) -> Row:
    which = protocol == "grpc"
    direct, through = [], []
    for number in range(rounds):
        sides = [(direct, direct_urls(api)[which]), (through, urls(api)[which])]
        for results, url in sides if number % 2 else sides[::-1]:
            results.append(load(protocol, url, clients, size, seconds))
    rates = [statistics.median(rate for rate, _ in side) for side in (direct, through)]
    ratio = statistics.median(one[0] / other[0] for one, other in zip(through, direct, strict=True))
    added = statistics.median(one[1] - other[1] for one, other in zip(through, direct, strict=True))
    row = Row(protocol, clients, size, round(rates[0], 1), round(rates[1], 1), round(ratio, 3), round(added, 6))
    print(
        f"{protocol:5}{clients:8}{size:12}{row.direct_per_second:12.1f}{row.gateway_per_second:12.1f}"
        f"{row.throughput_ratio:8.3f}{row.added_p50_seconds * 1000:10.3f} ms",
        flush=True,
    )
    return row


def cold_starts(api: Api, repetitions: int) -> dict[str, float]:
    """Median seconds to the first answer: through the front door, and by hand."""
    through, by_hand = [], []
    with (
        triton_grpc.InferenceServerClient(urls(api)[1]) as door,
        triton_grpc.InferenceServerClient(direct_urls(api)[1]) as triton,
    ):
        for number in range(repetitions + 1):  # the first warms up and is not counted
            name = f"cold{number}"
            api.publish(name, onnx_scale(number + 1.0))
            api.deploy(f"{name}:1", mode="on-demand")
            began = time.perf_counter()
            door.infer(name, ones())
            took = time.perf_counter() - began
            config = triton.get_model_config(name, as_json=True)["config"]
            api.http.delete(f"/v1/deployments/{name}")
            until("unloaded", lambda name=name: not triton.is_model_ready(name))
            hand = _by_hand(api, triton, name, config, number + 1.0)
            if number:
                through.append(took)
                by_hand.append(hand)
    return {"front_door": statistics.median(through), "by_hand": statistics.median(by_hand)}


def _by_hand(api: Api, triton: Any, name: str, config: dict[str, Any], factor: float) -> float:
    raw = f"{name}-raw"
    folder = api.plane.settings.data_dir / "model_repository" / raw / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(onnx_scale(factor))
    text = json.dumps({**config, "name": raw})
    began = time.perf_counter()
    triton.load_model(raw, config=text)
    triton.infer(raw, ones())
    took = time.perf_counter() - began
    triton.unload_model(raw)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cold", type=int, default=8)
    arguments = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="gateway-") as folder,
        serving(settings_for(Path(folder), embedded=True)) as api,
    ):
        api.publish("identity", identity())
        assert api.deploy("identity:1", max_batch_size=0)["state"] == "succeeded"
        until("the fast way", lambda: way(api, "identity") == "fast")
        print(f"{'':5}{'clients':>8}{'bytes':>12}{'direct/s':>12}{'gateway/s':>12}{'ratio':>8}{'added p50':>13}")
        for protocol in KINDS:
            for clients, size in ((1, 64), (8, 64), (1, 16 << 20), (4, 16 << 20)):
                rows.append(measure(api, protocol, clients, size, arguments.rounds, arguments.seconds))
        cold = cold_starts(api, arguments.cold)
        ratio = cold["front_door"] / cold["by_hand"]
        print(f"cold start: front door {cold['front_door']:.3f} s, by hand {cold['by_hand']:.3f} s, ratio {ratio:.2f}")
    RESULTS.mkdir(exist_ok=True)
    document = {"rows": [asdict(row) for row in rows], "cold_start_seconds": cold, "cold_start_ratio": round(ratio, 3)}
    (RESULTS / "gateway.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
