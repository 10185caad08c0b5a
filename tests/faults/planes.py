"""Control planes as users run them: `tritonctl up` and `tritonctl serve` in their own processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil

from controlplane.settings import StoreSettings
from controlplane.triton.embedded.processes import model_processes
from tests.support.processes import free_port, tied_to_us
from tests.support.triton import RunningTriton

START_SECONDS = 300.0

QUICK: dict[str, str] = {
    "RECONCILER__INTERVAL_SECONDS": "0.3",
    "RECONCILER__PROBE_INTERVAL_SECONDS": "1",
    "RECONCILER__PROOF_TIMEOUT_SECONDS": "5",
    "RECONCILER__BACKOFF_INITIAL_SECONDS": "0.5",
    "RECONCILER__BACKOFF_MAX_SECONDS": "4",
    "RECONCILER__LEASE_SECONDS": "6",
    "RECONCILER__UNRESPONSIVE_AFTER_SECONDS": "5",
    "STORE__TIMEOUT_SECONDS": "3",
    "STORE__RETRIES": "5",
    "TRITON__REQUEST_TIMEOUT_SECONDS": "3",
    "TRITON__LOAD_TIMEOUT_SECONDS": "8",
    "TRITON__UNLOAD_TIMEOUT_SECONDS": "3",
    "TRITON__RESTRICT_CONTROL": "false",  # other clients load and unload models
    "GC__GRACE_SECONDS": "3600",
}
"""Shorter intervals and deadlines than the defaults: what is found after a deadline is found sooner."""

# The ports after a chosen one may be in use.
_FREE_GATEWAY = {"up": ("--http-port=0", "--grpc-port=0")}


def environment(store: StoreSettings | None, changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that give a process these settings."""
    settings = dict(QUICK)
    if store is not None:
        settings |= {"STORE__URL": store.url}
        if store.endpoint_url and store.secret_access_key:
            settings |= {
                "STORE__ENDPOINT_URL": store.endpoint_url,
                "STORE__REGION": store.region or "",
                "STORE__ACCESS_KEY_ID": store.access_key_id or "",
                "STORE__SECRET_ACCESS_KEY": store.secret_access_key.get_secret_value(),
            }
    settings |= changes
    return {**os.environ, **{f"CONTROLPLANE_{name}": value for name, value in settings.items()}}


def beside(triton: RunningTriton) -> dict[str, str]:
    """Return settings of a control plane with an external Triton."""
    server = {
        "name": "shared",
        "grpc_url": triton.server.grpc_url,
        "http_url": triton.server.http_url,
        "repository": str(triton.repository.root),
    }
    return {"TRITON__SERVERS": json.dumps([server])}


class Plane:
    """One control plane that can be restarted on its data folder and port.

    Args:
        folder: Its data folder.
        store: Its store; None for a folder below the data folder.
        command: ``up`` (with an embedded Triton) or ``serve``.
        changes: More settings, by their variables' names without the prefix.
        shared_memory_mib: Give it its own ``/dev/shm`` of this size; needs root.

    Attributes:
        url: URL of its API.
        starts: How often it was started.
    """

    def __init__(
        self,
        folder: Path,
        store: StoreSettings | None,
        *,
        command: str = "up",
        changes: Mapping[str, str] = {},
        shared_memory_mib: int | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.starts = 0
        self._command = command
        self._environment = environment(store, changes)
        self._process: subprocess.Popen[bytes] | None = None
        self._within: list[str] = []
        if shared_memory_mib is not None:
            mount = f'mount -t tmpfs -o size={shared_memory_mib}m tmpfs /dev/shm && exec "$@"'
            self._within = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "plane.log"
        self.repository = Path(changes.get("TRITON__REPOSITORY", folder / "model_repository"))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def shared_memory(self) -> Path:
        """Return the folder of its shared memory in its own mount namespace."""
        return Path(f"/proc/{self.pid}/root/dev/shm")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process; do not wait for it."""
        assert not self.running
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "controlplane.cli.main", f"--data-dir={self.folder}", self._command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                tied_to_us([*self._within, *command, f"--port={self.port}", *_FREE_GATEWAY.get(self._command, ())]),
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        self.starts += 1

    def start(self) -> None:
        """Start the process and wait until it answers."""
        self.launch()
        self.wait_up()

    def wait_up(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + START_SECONDS
        while not self._is_up():
            if not self.running or time.monotonic() > end:
                raise RuntimeError(f"the control plane does not start:\n{self.log_tail()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Send SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Request a clean end and wait for it."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def triton_pid(self) -> int:
        """Return the process of the server that `up` started."""
        found = self.find_triton()
        assert found is not None, "no Triton is running"
        return found

    def find_triton(self) -> int | None:
        """Return the process of the server that `up` started, if it runs."""
        for child in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.name() == "tritonserver":
                    return child.pid
        return None

    def triton_urls(self) -> tuple[str, str]:
        """Return the gRPC (host:port) and HTTP addresses of its first server."""
        document = json.loads(self._ready.read_text())["servers"][0]
        return document["grpc_url"], document["http_url"]

    def backend_pids(self, model: str, version: int | None = None) -> list[int]:
        """Return the processes of a model's instances in the server that `up` started."""
        server = self.find_triton()
        return [] if server is None else model_processes(server, self.repository, model, version)

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def _ready(self) -> Path:
        return self.folder / "up.json"

    def _is_up(self) -> bool:
        try:
            return bool(json.loads(self._ready.read_text())["pid"] == self.pid)
        except (FileNotFoundError, ValueError):
            return False


@contextlib.contextmanager
def running(plane: Plane) -> Iterator[Plane]:
    """Run a control plane for a block."""
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def client(url: str, actor: str, seconds: float = 30) -> httpx.Client:
    """Return an API client without persistent connections, because the control plane may be killed."""
    return httpx.Client(
        base_url=url,
        headers={"X-Actor": actor},
        timeout=httpx.Timeout(seconds, connect=2),
        limits=httpx.Limits(max_keepalive_connections=0),
    )
