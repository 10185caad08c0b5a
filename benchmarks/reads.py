"""API reads per second from one process, against a bare FastAPI route that returns the same document as a static dict.

Three processes: the control plane (``controlplane.process.run``, a folder as store), a bare FastAPI application with
the same uvicorn settings, and a load generator of keep-alive connections, each with one request in flight. On a machine
of two cores server and generator have one each. The routes take turns, so that a slow moment hits all of them.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import uvicorn
import uvloop
from fastapi import FastAPI

from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.process import run
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.settings import ApiSettings, GcSettings, Settings
from controlplane.storage.filesystem import FilesystemStore

RESULTS = Path(__file__).parent / "results"
MODEL = "resnet"


@dataclass(frozen=True)
class Row:
    """One route, medians over the repetitions.

    Attributes:
        what: The route.
        body_bytes: Size of its answer's body.
        reads_per_second: Answers a second.
        p50_milliseconds: Half of the answers took no longer.
        p99_milliseconds: 99 of 100 answers took no longer.
        ratio: Reads per second, as a share of the bare route's.
        server_cpu_share: Share of one core that the server used meanwhile.
        core_ratio: Reads per second of processor time that the server used, as a share of the bare route's. Other
            processes on the machine change it less than `ratio`.
    """

    what: str
    body_bytes: int
    reads_per_second: float
    p50_milliseconds: float
    p99_milliseconds: float
    ratio: float
    server_cpu_share: float
    core_ratio: float


@dataclass(frozen=True)
class Load:
    """What one run of the generator saw."""

    answers: int
    seconds: float
    latencies: list[float]
    body_bytes: int

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--versions", type=int, default=20, help="versions of the model that is read")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reads-") as name:
        settings = Settings(data_dir=Path(name), api=ApiSettings(port=0))
        publish(settings, arguments.versions)
        with child(serve, settings) as ours:
            document = httpx.get(f"{ours.url}/v1/models/{MODEL}").raise_for_status().json()
            with child(serve_bare, document) as bare:
                routes = {
                    "bare FastAPI route": (bare, "/static"),
                    "GET /v1/models/{model}": (ours, f"/v1/models/{MODEL}"),
                    "GET /v1/models/{model}/versions?limit=1": (ours, f"/v1/models/{MODEL}/versions?limit=1"),
                    "GET /v1/models/{model}/versions/@champion": (ours, f"/v1/models/{MODEL}/versions/@champion"),
                    "GET /v1/info": (ours, "/v1/info"),
                }
                report(measure(routes, arguments))


def measure(routes: "dict[str, tuple[Server, str]]", arguments: argparse.Namespace) -> list[Row]:
    runs: dict[str, list[tuple[Load, float]]] = {what: [] for what in routes}
    for server, path in routes.values():
        load(server.url + path, arguments.connections, 0.5)  # warm up
    for _ in range(arguments.repetitions):
        for what, (server, path) in routes.items():
            before = server.cpu_seconds()
            seen = load(server.url + path, arguments.connections, arguments.seconds)
            runs[what].append((seen, (server.cpu_seconds() - before) / seen.seconds))
    rates = {what: statistics.median(seen.rate for seen, _ in found) for what, found in runs.items()}
    per_core = {what: statistics.median(seen.rate / share for seen, share in found) for what, found in runs.items()}
    return [
        Row(
            what=what,
            body_bytes=found[0][0].body_bytes,
            reads_per_second=round(rates[what]),
            p50_milliseconds=round(1000 * statistics.median(quantile(seen.latencies, 0.5) for seen, _ in found), 2),
            p99_milliseconds=round(1000 * statistics.median(quantile(seen.latencies, 0.99) for seen, _ in found), 2),
            ratio=round(rates[what] / rates["bare FastAPI route"], 2),
            server_cpu_share=round(statistics.median(share for _, share in found), 2),
            core_ratio=round(per_core[what] / per_core["bare FastAPI route"], 2),
        )
        for what, found in runs.items()
    ]


def report(rows: list[Row]) -> None:
    print(f"{'route':<44} {'bytes':>6} {'reads/s':>8} {'p50 ms':>7} {'p99 ms':>7} {'/ bare':>7} {'server CPU':>10}")
    for row in rows:
        print(
            f"{row.what:<44} {row.body_bytes:>6} {row.reads_per_second:>8.0f} {row.p50_milliseconds:>7.2f} "
            f"{row.p99_milliseconds:>7.2f} {row.ratio:>7.2f} {row.server_cpu_share:>10.2f}"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reads.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))


def publish(settings: Settings, versions: int) -> None:
    """Fill the registry: one model, its newest version under an alias."""
    store = FilesystemStore(settings.data_dir / "store")
    registry = Registry(store, BlobCache(settings.data_dir / "cache", 0), head_max_age_seconds=0, gc=GcSettings())
    blob = settings.data_dir / "blob"
    blob.write_bytes(b"weights")
    entry = FileEntry(path="model.onnx", sha256=registry.blobs.put_bytes(b"weights"), size_bytes=7)
    manifest = Manifest(format=Format.ONNX, files=(entry,))
    for _ in range(versions):
        registry.publish(MODEL, manifest, {entry.sha256: blob}, actor="benchmark", aliases=("champion",))
    store.close()


class Server:
    """A server in a process of its own."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._pid = pid

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def child(target: Callable[..., None], argument: Any) -> Iterator[Server]:
    """Run a server in a process of its own; it sends its URL once it answers."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(argument, there), daemon=True)
    process.start()
    try:
        if not here.poll(60):
            raise RuntimeError(f"{target.__name__} did not start")
        assert process.pid is not None
        yield Server(here.recv(), process.pid)
    finally:
        process.terminate()
        process.join()


def serve(settings: Settings, ready: Connection) -> None:
    run(settings, on_ready=lambda document: ready.send(document["url"]))


def serve_bare(document: dict[str, Any], ready: Connection) -> None:
    app = FastAPI()

    @app.get("/static")
    async def static() -> dict[str, Any]:
        return document

    async def serving() -> None:
        config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        ready.send(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        await task

    uvloop.run(serving())


def load(url: str, connections: int, seconds: float) -> Load:
    return uvloop.run(_load(url, connections, seconds))


async def _load(url: str, connections: int, seconds: float) -> Load:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    latencies: list[float] = []
    length = (await _first(parts.hostname, parts.port, request))[0]
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    end = started + seconds
    clients = [
        (await loop.create_connection(lambda: _Client(request, length, latencies, end), parts.hostname, parts.port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    body = (await _first(parts.hostname, parts.port, request))[1]
    return Load(len(latencies), time.perf_counter() - started, latencies, body)


async def _first(host: str | None, port: int | None, request: bytes) -> tuple[int, int]:
    """Return the length of an answer, and of its body. All answers of a route have the same."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode())
    [size] = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    writer.close()
    return len(head) + size, size


class _Client(asyncio.Protocol):
    """A keep-alive connection with one request in flight."""

    def __init__(self, request: bytes, length: int, latencies: list[float], end: float) -> None:
        self._request = request
        self._length = length
        self._latencies = latencies
        self._end = end
        self._got = 0
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not say that they are
        self._send()

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        if self._got < self._length:
            return
        now = time.perf_counter()
        self._latencies.append(now - self._sent_at)
        self._got = 0
        if now < self._end:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the server closed the connection"))

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
