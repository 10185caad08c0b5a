"""HAProxy outlives a control plane that is killed, when the Triton servers run elsewhere."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.api import Api, onnx_scale
from tests.support.gateway import until
from tests.support.processes import free_port, tied_to_us
from tests.support.triton import RunningTriton

pytestmark = [pytest.mark.triton, pytest.mark.long]
BODY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}


class Plane:
    """A control plane as a process, with a gateway before a Triton that runs elsewhere."""

    def __init__(self, folder: Path, triton: RunningTriton, http_port: int, **environment: str) -> None:
        server = {
            "name": "elsewhere", "grpc_url": triton.server.grpc_url, "http_url": triton.server.http_url,
            "repository": str(triton.server.repository),
        }  # fmt: skip
        self.folder = folder
        self.environment = {
            **os.environ,
            "TRITONCTL_DATA_DIR": str(folder),
            "CONTROLPLANE_API__PORT": "0",
            "CONTROLPLANE_TRITON__SERVERS": json.dumps([server]),
            "CONTROLPLANE_RECONCILER__INTERVAL_SECONDS": "0.3",
            "CONTROLPLANE_GATEWAY__ENABLED": "true",
            "CONTROLPLANE_GATEWAY__HTTP_PORT": str(http_port),
            "CONTROLPLANE_GATEWAY__UNATTENDED_SECONDS": "600",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        """Start it and return its ready file."""
        ready = self.folder / "up.json"
        ready.unlink(missing_ok=True)
        command = [str(Path(sys.executable).with_name("tritonctl")), "serve"]
        log = (self.folder.parent / "serve.log").open("ab")
        self.process = subprocess.Popen(tied_to_us(command), env=self.environment, stdout=log, stderr=log)
        log.close()
        until("the control plane is up", lambda: ready.exists() or self.process is None or self.process.poll(), 240)
        document: dict[str, Any] = json.loads(ready.read_text())
        return document

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def haproxies(self) -> list[int]:
        """Process ids of the HAProxies that run in its folder."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words and Path(words[0]).name == "haproxy" and str(self.folder / "gateway") in words:
                found.append(process.pid)
        return found


@contextlib.contextmanager
def asking(url: str) -> Iterator[Counter[str]]:
    """Ask the model again and again, each time over a new connection; yields the outcomes."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                answer = httpx.post(url, json=BODY, timeout=30)
                seen["answered" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"] += 1
            except httpx.HTTPError as error:
                seen[repr(error)] += 1
            time.sleep(0.02)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def test_no_request_fails_while_a_killed_control_plane_is_replaced(tmp_path: Path, triton: RunningTriton) -> None:
    port = free_port()
    plane = Plane(tmp_path / "data", triton, port)
    (tmp_path / "data").mkdir(mode=0o700)
    url = f"http://127.0.0.1:{port}/v2/models/lingering/infer"
    try:
        document = plane.start()
        with httpx.Client(base_url=document["url"], timeout=60) as http:
            api = Api(None, http, document["url"])  # type: ignore[arg-type]
            api.publish("lingering", onnx_scale(2.0))
            assert api.deploy("lingering:1", mode="pinned")["state"] == "succeeded"
        until("the gateway answers", lambda: httpx.post(url, json=BODY, timeout=30).status_code == 200)
        (first,) = plane.haproxies()
        with asking(url) as seen:
            for _ in range(2):
                plane.kill()
                since = seen["answered"]
                until(
                    "requests are answered without a control plane",
                    lambda since=since: seen["answered"] > since + 20,
                    240,
                )  # type: ignore[misc]
                again = plane.start()
                assert again["gateway"]["http_url"].endswith(f":{port}")
                since = seen["answered"]
                until("requests are answered after it", lambda since=since: seen["answered"] > since + 20, 240)  # type: ignore[misc]
        assert set(seen) == {"answered"}, seen
        until("the first HAProxy has ended", lambda: first not in plane.haproxies() and len(plane.haproxies()) == 1)

        # One that wants another port ends what was left, and an orderly stop leaves nothing.
        plane.kill()
        other = free_port()
        plane.environment["CONTROLPLANE_GATEWAY__HTTP_PORT"] = str(other)
        assert plane.start()["gateway"]["http_url"].endswith(f":{other}")
        with pytest.raises(httpx.ConnectError):
            httpx.post(url, json=BODY, timeout=30)
        assert plane.process is not None
        plane.process.send_signal(signal.SIGTERM)
        assert plane.process.wait(60) == 0
        assert plane.haproxies() == []
    finally:
        if plane.process is not None and plane.process.poll() is None:
            plane.kill()
        for pid in plane.haproxies():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_haproxy_ends_if_no_control_plane_returns(tmp_path: Path, triton: RunningTriton) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    plane = Plane(tmp_path / "data", triton, 0, CONTROLPLANE_GATEWAY__UNATTENDED_SECONDS="1")
    plane.start()
    (pid,) = plane.haproxies()
    plane.kill()
    end = time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert plane.haproxies() == []
