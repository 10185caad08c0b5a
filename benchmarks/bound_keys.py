"""What a key that is bound to models pays at the gateway, against one for all models and Triton's ports, in one run.

Over gRPC such a key goes by the activator, which reads each message whole; so does every stream. Over HTTP it goes from
HAProxy to Triton. tritonclient's clients, each in a thread of one process of its own, ask an identity model.
"""

import argparse
import json
import multiprocessing
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from benchmarks.gateway import LARGE, RESULTS, SMALL, addresses, identity
from tests.support.api import Api
from tests.support.control_process import running
from tests.support.gateway import until, way

KINDS = {"http": triton_http, "grpc": triton_grpc, "stream": triton_grpc}
CASES = (
    *(("http", 1, SMALL), ("http", 8, SMALL), ("grpc", 1, SMALL), ("grpc", 8, SMALL)),
    *(("grpc", 1, LARGE), ("stream", 1, SMALL), ("stream", 8, SMALL)),
)
SIDES = ("direct", "all models", "bound")


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; ratios are those of the same round.

    Attributes:
        protocol: http, grpc, or stream: one gRPC stream for each client, on which it waits for each answer.
        clients: Clients at once.
        tensor_bytes: Size of the input, and of the output.
        direct_per_second: Requests per second to Triton's own port.
        all_models_per_second: The same through the gateway with a key for all models.
        bound_per_second: The same with a key for this model alone.
        bound_to_direct: Ratio of the last to the first.
        bound_to_all_models: Ratio of the last two.
    """

    protocol: str
    clients: int
    tensor_bytes: int
    direct_per_second: float
    all_models_per_second: float
    bound_per_second: float
    bound_to_direct: float
    bound_to_all_models: float


def load(protocol: str, url: str, key: str, clients: int, size: int, seconds: float) -> float:
    """Requests per second; runs in a process of its own."""
    counts: list[int] = []
    begin, end = threading.Barrier(clients + 1), [0.0]

    def run() -> None:
        with ExitStack() as stack:
            ask = _asking(stack, protocol, url, {"authorization": f"Bearer {key}"} if key else {}, size)
            for _ in range(3):
                ask()
            begin.wait()
            count = 0
            while time.perf_counter() < end[0] or not count:
                ask()
                count += 1
        counts.append(count)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    end[0] = time.perf_counter() + 3600
    begin.wait()
    began = time.perf_counter()
    end[0] = began + seconds
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def _asking(stack: ExitStack, protocol: str, url: str, headers: dict[str, str], size: int) -> Callable[[], Any]:
    kind: Any = KINDS[protocol]
    x = kind.InferInput("x", [1, size // 4], "FP32")
    x.set_data_from_numpy(np.zeros((1, size // 4), np.float32))
    client = stack.enter_context(kind.InferenceServerClient(url))
    if protocol != "stream":
        return lambda: client.infer("identity", [x], headers=headers)
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result), headers=headers)

    def ask() -> None:
        client.async_stream_infer("identity", [x])
        answer = answers.get()
        if isinstance(answer, Exception):
            raise answer

    return ask


def keys(api: Api) -> Mapping[str, str]:
    """A key by side, made after the first one, which the client of the API has from then on."""
    root = api.ok(api.http.post("/v1/keys", json={"name": "root", "scopes": ["admin"]}), 201)["secret"]
    api.http.headers["authorization"] = f"Bearer {root}"
    made = {"direct": ""}
    for side, models in (("all models", []), ("bound", ["identity"])):
        body = {"name": side.replace(" ", "-"), "scopes": ["infer"], "models": models}
        made[side] = api.ok(api.http.post("/v1/keys", json=body), 201)["secret"]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    arguments = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="bound-") as name,
        running(Path(name) / "data") as (api, _),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        api.publish("identity", identity())
        assert api.deploy("identity:1", max_batch_size=0)["state"] == "succeeded"
        until("the direct way", lambda: way(api, "identity") == "direct")
        secrets, urls = keys(api), addresses(api)
        time.sleep(1.5)  # HAProxy is given keys within a second
        print(f"{'':7}{'clients':>8}{'bytes':>10}" + "".join(f"{side + '/s':>14}" for side in SIDES), "  bound to both")
        for protocol, clients, size in CASES:
            found: dict[str, list[float]] = {side: [] for side in SIDES}
            for number in range(arguments.rounds):
                for side in SIDES if number % 2 else SIDES[::-1]:
                    url = urls["direct" if side == "direct" else "gateway"]["http" if protocol == "http" else "grpc"]
                    found[side].append(
                        pool.apply(load, (protocol, url, secrets[side], clients, size, arguments.seconds))
                    )
            rates = [statistics.median(found[side]) for side in SIDES]
            ratios = [
                statistics.median(one / other for one, other in zip(found["bound"], found[side], strict=True))
                for side in SIDES[:2]
            ]
            rows.append(Row(protocol, clients, size, *(round(one, 1) for one in rates), *(round(x, 3) for x in ratios)))
            print(f"{protocol:7}{clients:8}{size:10}" + "".join(f"{rate:14.1f}" for rate in rates), end="")
            print("".join(f"{ratio:8.3f}" for ratio in ratios), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bound_keys.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
