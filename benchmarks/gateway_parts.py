"""Where the gateway's time goes: processor time of HAProxy for each request, by part of its configuration.

The configuration is the real one, with parts of its rules left out; below it the same HAProxy without a rule, once
passing on bytes and once speaking the protocol. All stand before one real Triton and take turns. Processor time is the
kernel's (``/proc/PID/task/*/schedstat``), so that what clients and Triton do beside it is not in it.
"""

import argparse
import json
import multiprocessing
import random
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gateway import KINDS, RESULTS, SMALL, addresses, bare_proxy, identity, load
from controlplane.gateway.haproxy.config import Backend, Sockets, render
from controlplane.gateway.haproxy.process import find_haproxy
from controlplane.gateway.haproxy.route_table import MAPS, Table
from controlplane.settings import GatewaySettings
from tests.support.control_process import running
from tests.support.gateway import until, way
from tests.support.processes import free_port, listening, tied_to_us

PARTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "refusing what is not served": (
        (
            r"^ +http-request return .*(sec-fetch-site|req\.body_size|path_beg /v2/repository|\(/health/|!of_all).*\n",
            "",
        ),
    ),
    "rollouts": (
        (r"^ +http-request (?!return).*\b(tried|txn\.parts)\b.*\n", ""),
        (r" !aside| !\{ var\(txn\.drawn\) -m found \}", ""),
    ),
    "keys": (
        (r"^ +http-request set-var\(txn\.(who|digest|granted)\).*\n", ""),
        (r"acl granted .*", "acl granted always_true"),
    ),
    "the name in the answer": (
        (r"^ +http-response (set-var|wait-for-body|return|sc-inc-gpc0\(0\) if misnamed).*\n", ""),
    ),
    "counting": ((r"^ +http-(request track-sc0|response sc-inc-gpc0).*\n", ""),),
}
"""What is left out or replaced to be without a part."""
FULL, BARE, BYTES = "the gateway", "HAProxy, no rule", "HAProxy, bytes alone"
ALL, REST = "without all parts", "name, map, choice, settings"


@dataclass(frozen=True)
class Row:
    """The rounds of one configuration.

    Attributes:
        protocol: http or grpc.
        clients: At once.
        part: A configuration, or a part of the gateway's rules.
        cpu_microseconds: Processor time for each request, the least of the rounds; of a part, what is saved without it.
        p50_milliseconds: Median latency; of a part, 0.
    """

    protocol: str
    clients: int
    part: str
    cpu_microseconds: float
    p50_milliseconds: float


@dataclass(frozen=True)
class Proxy:
    """One HAProxy."""

    pid: int
    urls: Mapping[str, str]

    def cpu_seconds(self) -> float:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def without(text: str, parts: Iterable[str]) -> str:
    for part in parts:
        for pattern, instead in PARTS[part]:
            text, count = re.subn(pattern, instead, text, flags=re.MULTILINE)
            assert count, f"{part}: the configuration has no {pattern}"
    return text


@contextmanager
def proxy(folder: Path, text: str, table: Table) -> Iterator[Proxy]:
    """HAProxy with a configuration of the gateway's."""
    folder.mkdir()
    urls = {}
    for number, protocol in ((1001, "http"), (1002, "grpc"), (1003, "metrics")):
        urls[protocol] = f"127.0.0.1:{free_port()}"
        text = text.replace(f"fd@{number}", urls[protocol])
    # There is no control plane behind this one, and so nothing to ask whether its routes are the newest.
    text = re.sub(r"(server control-plane \S+) check .*", r"\1", text)
    (folder / "haproxy.cfg").write_text(text)
    for name in MAPS:
        (folder / name).write_text(table.map_text(name))
    binary = find_haproxy(None)
    assert binary is not None, "there is no HAProxy"
    process = subprocess.Popen(tied_to_us([str(binary), "-db", "-C", str(folder), "-f", "haproxy.cfg"]))
    try:
        until("HAProxy", lambda: all(listening(int(url.rpartition(":")[2])) for url in urls.values()))
        yield Proxy(process.pid, urls)
    finally:
        process.terminate()
        process.wait(10)


def measure(proxies: Mapping[str, Proxy], clients: int, rounds: int, seconds: float) -> list[Row]:
    rows = []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for protocol in KINDS:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in proxies}
            for number in range(rounds):
                # By chance, the same each time: who always follows the same neighbour has its share of what that left.
                for name in random.Random(number).sample(list(proxies), len(proxies)):
                    one = proxies[name]
                    before = one.cpu_seconds()
                    rate, p50 = pool.apply(load, (protocol, one.urls[protocol], clients, SMALL, seconds))
                    found[name].append(((one.cpu_seconds() - before) / (rate * seconds) * 1e6, p50 * 1e3))
            # The least: what else the machine does can only add to it.
            cpu = {name: min(each[0] for each in seen) for name, seen in found.items()}
            p50s = {name: statistics.median(each[1] for each in seen) for name, seen in found.items()}
            rows += [
                Row(protocol, clients, name, round(cpu[name], 1), round(p50s[name], 3)) for name in (BYTES, BARE, FULL)
            ]
            saved = {part: cpu[FULL] - cpu[part] for part in PARTS} | {REST: cpu[ALL] - cpu[BARE]}
            rows += [Row(protocol, clients, part, round(microseconds, 1), 0.0) for part, microseconds in saved.items()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-") as name, running(Path(name) / "data") as (api, _):
        folder = Path(name)
        api.publish("identity", identity())
        assert api.deploy("identity:1", max_batch_size=0)["state"] == "succeeded"
        until("the direct way", lambda: way(api, "identity") == "direct")
        direct = addresses(api)["direct"]
        table = Table((frozenset({"s0"}),), models={"identity": 0}, keys={"any-client": "*"})
        text = render(
            GatewaySettings(), Sockets(1001, 1002, 1003), [Backend("s0", direct["http"], direct["grpc"])], table
        )
        with ExitStack() as stack:
            bare, pid = stack.enter_context(bare_proxy(folder, direct))
            proxies = {BYTES: Proxy(pid, bare["tcp"]), BARE: Proxy(pid, bare["limit"])}
            texts = {FULL: text, ALL: without(text, list(PARTS))}
            texts |= {part: without(text, [part]) for part in PARTS}
            for number, (part, changed) in enumerate(texts.items()):
                proxies[part] = stack.enter_context(proxy(folder / str(number), changed, table))
            rows = measure(proxies, arguments.clients, arguments.rounds, arguments.seconds)
    for row in rows:
        p50 = f"{row.p50_milliseconds:9.3f} ms" if row.p50_milliseconds else ""
        print(f"{row.protocol:5}{row.part:30}{row.cpu_microseconds:9.1f} us{p50}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gateway_parts.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
