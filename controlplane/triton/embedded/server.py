"""Starts, supervises and stops an embedded Triton server."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections import deque
from pathlib import Path
from typing import NamedTuple

from controlplane.domain.states import ServerState
from controlplane.errors import TritonError, TritonStartError
from controlplane.sandbox import Sandbox, find_sandbox
from controlplane.settings import TritonSettings
from controlplane.triton.client import CONTROL_HEADER, TritonClient, TritonTimeouts
from controlplane.triton.embedded import launcher
from controlplane.triton.embedded.backend_directory import assemble_backends
from controlplane.triton.embedded.confined import clean_shared_memory, environment, prepare
from controlplane.triton.embedded.installation import Installation, find_installation
from controlplane.triton.embedded.processes import (
    InstanceMemory,
    children_of,
    instance_cpu_seconds,
    instance_memory,
    model_processes,
    server_process,
)

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_EXIT_SECONDS = 5.0
"""How long a stopping server waits for requests in flight before it is killed."""
_BACKOFF_INITIAL_SECONDS = 0.2
_BACKOFF_MAX_SECONDS = 30.0
_STABLE_SECONDS = 60.0
"""A server that ran this long restarts without the back-off of earlier failures."""
_LOG_MAX_BYTES = 16 * 1024 * 1024
_FREE_PORT_ATTEMPTS = 3


def restriction(control_key: str | None) -> list[str]:
    """Return the options that make Triton require a key for control operations, over both of its protocols."""
    if control_key is None:
        return []
    what = f"model-repository,trace,logging:{CONTROL_HEADER}={control_key}"
    return [f"--http-restricted-api={what}", f"--grpc-restricted-protocol={what}"]


class ServerUrls(NamedTuple):
    """Addresses of a server's services."""

    grpc: str
    http: str
    metrics: str


class EmbeddedTriton:
    """The server and its supervisor.

    Used from one event loop, except for the plain attributes, `processes`, `processes_of` and `cpu_seconds`, which may
    be read from any thread.

    Args:
        repository: Triton's model repository; created if missing.
        run_dir: Folder of the backend directory and the log.
        settings: Ports (0 picks a free one, kept over restarts) and the time limit to become live.
        control_key: Required for model control, and for trace and log settings, which write files; None requires no
            key.
        sandbox: How to confine the server; None: as well as this machine can.

    Attributes:
        state: Starting, Ready or Stopped.
        message: Why it is not Ready.
        generation: Incremented each time a server becomes Ready. A new generation has no model loaded.
        backends: Its backend directory, named by a digest of the backends; without a name before the first start.
    """

    def __init__(
        self,
        repository: Path,
        run_dir: Path,
        settings: TritonSettings,
        *,
        control_key: str | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.repository = repository.absolute()
        self.state = ServerState.STOPPED
        self.message = "not started"
        self.generation = 0
        self.log_path = run_dir.absolute() / "triton.log"
        self._run_dir = run_dir.absolute()
        self._settings = settings
        self._at = _HOST if settings.host == "0.0.0.0" else settings.host
        self._control_key = control_key
        self._sandbox = sandbox
        self._installation: Installation | None = None
        self.backends = Path()
        self._ports: tuple[int, int, int] | None = None
        self._launcher: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._asked = False

    @property
    def client_urls(self) -> ServerUrls:
        """Return the server's addresses; known after the first start.

        Raises:
            TritonStartError: The server was never started.
        """
        if self._ports is None:
            raise TritonStartError("the embedded Triton was not started, so it has no ports yet")
        http, grpc, metrics = self._ports
        return ServerUrls(f"{self._at}:{grpc}", f"http://{self._at}:{http}", f"http://{self._at}:{metrics}/metrics")

    @property
    def grpc_url(self) -> str:
        """Return host:port of the gRPC service."""
        return self.client_urls.grpc

    @property
    def http_url(self) -> str:
        """Return the URL of the HTTP service."""
        return self.client_urls.http

    @property
    def metrics_url(self) -> str:
        """Return the URL of the Prometheus metrics."""
        return self.client_urls.metrics

    @property
    def pid(self) -> int | None:
        """Return the process id of the server itself; None if it is not running."""
        if self._launcher is None or self._launcher.returncode is not None or self._installation is None:
            return None
        started = next(iter(children_of(self._launcher.pid)), None)
        return None if started is None else server_process(started, self._installation.binary)

    def processes(self) -> list[int]:
        """Return the process ids of the server and of all its models' instances; empty if it is not running."""
        server = self.pid
        return [] if server is None else [server, *children_of(server)]

    def processes_of(self, model: str, version: int | None = None) -> list[int]:
        """Return the process ids of a model's instances, of one version or of all."""
        server = self.pid
        return [] if server is None else model_processes(server, self.repository, model, version)

    def instances(self) -> dict[tuple[str, int], InstanceMemory]:
        """Return the memory of the models' instances by Triton name and version."""
        server = self.pid
        return {} if server is None else instance_memory(server, self.repository)

    def cpu_seconds(self) -> dict[tuple[str, int], float]:
        """Return the CPU time that the models' instances have used, by Triton name and version."""
        server = self.pid
        return {} if server is None else instance_cpu_seconds(server, self.repository)

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the server's log."""
        try:
            with self.log_path.open(errors="replace") as log:
                return "".join(deque(log, maxlen=lines)).rstrip()
        except FileNotFoundError:
            return ""

    async def start(self) -> None:
        """Start the server, wait until it is live and supervise it from then on.

        Raises:
            TritonStartError: The server did not become live in time or ended; the message contains the end of its log.
        """
        if self._supervisor is not None:
            return
        self._stopping.clear()
        self.state, self.message = ServerState.STARTING, "starting"
        try:
            self._installation = await asyncio.to_thread(find_installation, self._settings.root)
            self.backends = await asyncio.to_thread(assemble_backends, self._installation, self._run_dir)
            self._sandbox = self._sandbox or await asyncio.to_thread(find_sandbox)
            self.repository.mkdir(parents=True, exist_ok=True)
            for attempt in range(1, _FREE_PORT_ATTEMPTS + 1):
                self._ports = self._ports or self._choose_ports()
                try:
                    await self._launch()
                    break
                except TritonStartError:
                    # Another process may have taken the free port between its choice and its use.
                    chosen_by_user = all((self._settings.http_port, self._settings.grpc_port))
                    if chosen_by_user or attempt == _FREE_PORT_ATTEMPTS or "in use" not in self.log_tail():
                        raise
                    self._ports = None
        except BaseException as error:
            await self._end_launcher()
            self.state, self.message = ServerState.STOPPED, str(error)
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded-triton")

    async def stop(self) -> None:
        """Stop the server and all its children; no process is left behind."""
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._end_launcher()
        self.state, self.message = ServerState.STOPPED, "stopped"

    async def restart(self) -> None:
        """Request the server's end, after its requests in flight; the supervisor restarts it on the same ports.

        Returns after the request; a new `generation` shows that the restart is complete.
        """
        process = self._launcher
        if process is None or process.returncode is not None:
            return  # it ended on its own and is already restarting
        self._asked = True
        self.state, self.message = ServerState.STARTING, "being restarted"
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(b"stop\n")
            await process.stdin.drain()

    def kill(self, why: str) -> None:
        """Kill an unresponsive server; the supervisor restarts it, after a pause that grows each time.

        Args:
            why: Shown until the server is ready again.
        """
        server = self.pid
        if server is None:
            return  # it ended on its own and is already restarting
        self.state, self.message = ServerState.STARTING, f"killed: {why}"
        # The launcher notices the server's end, ends its remaining processes, and then exits.
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)

    def _choose_ports(self) -> tuple[int, int, int]:
        wanted = (self._settings.http_port, self._settings.grpc_port, self._settings.metrics_port)
        with contextlib.ExitStack() as stack:
            ports = []
            for port in wanted:
                if port == 0:
                    probe = stack.enter_context(socket.socket())
                    probe.bind((self._settings.host, 0))
                    port = probe.getsockname()[1]
                ports.append(port)
        return ports[0], ports[1], ports[2]

    def _command(self, server_id: str, shm_prefix: str) -> list[str]:
        assert self._installation is not None
        assert self._ports is not None
        http, grpc, metrics = self._ports
        return [
            str(self._installation.binary),
            f"--id={server_id}",
            f"--model-repository={self.repository}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            # The server would not be ready during any first load; each model has its own readiness.
            "--strict-readiness=false",
            # Every configuration we send is complete. Completing one starts and stops an extra stub for each load,
            # which takes 1.2 s (Triton 2.51); without it a small model loads in 0.1 s.
            "--disable-auto-complete-config",
            f"--http-address={self._settings.host}",
            f"--grpc-address={self._settings.host}",
            f"--metrics-address={self._settings.host}",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            "--metrics-config=summary_latencies=true",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            f"--exit-timeout-secs={int(_EXIT_SECONDS)}",
            *restriction(self._control_key),
        ]

    async def _launch(self) -> None:
        """Start one server and wait until it is live."""
        assert self._installation is not None
        assert self._sandbox is not None
        run_id = uuid.uuid4().hex[:12]
        server_id, shm_prefix = f"tritonctl-{run_id}", f"tritonctl-{run_id}-"
        self._run_dir.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_MAX_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        started = time.monotonic()
        clean_shared_memory(self._run_dir, shm_prefix)
        view = prepare(
            self._sandbox,
            self._installation,
            run_dir=self._run_dir,
            shm_prefix=shm_prefix,
            read=(self.repository, self.backends),
        )
        with self.log_path.open("ab") as log:
            self._launcher = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                launcher.__file__,
                str(_EXIT_SECONDS + 3.0),
                shm_prefix,
                *self._sandbox.command(self._command(server_id, shm_prefix), view),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(self._installation, self.backends, self._sandbox, self._settings.gpus),
                start_new_session=True,
            )
        await self._wait_live(server_id, started + self._settings.start_timeout_seconds)
        self.generation += 1
        self.state, self.message = ServerState.READY, ""
        logger.info(
            "Triton is live at %s after %.2f s (generation %d)",
            self.grpc_url,
            time.monotonic() - started,
            self.generation,
        )

    async def _wait_live(self, server_id: str, deadline: float) -> None:
        assert self._launcher is not None
        assert self._ports is not None
        client = TritonClient("embedded", self.grpc_url, timeouts=TritonTimeouts(request_seconds=1.0))
        try:
            while True:
                if self._launcher.returncode is not None:
                    raise self._failed(f"ended with status {self._launcher.returncode}")
                if time.monotonic() > deadline:
                    raise self._failed(f"was not live after {self._settings.start_timeout_seconds:g} s")
                # The name is also checked: another server on the same port must not be mistaken for ours. The metrics
                # service is the last one that Triton starts.
                with contextlib.suppress(TritonError, OSError):
                    if await client.server_name() == server_id:
                        _, writer = await asyncio.open_connection(self._at, self._ports[2])
                        writer.close()
                        return
                await asyncio.sleep(0.02)
        finally:
            await client.close()

    def _failed(self, what: str) -> TritonStartError:
        return TritonStartError(
            f"the embedded Triton {what}. The end of its log ({self.log_path}):\n{self.log_tail(20)}",
            log=self.log_tail(),
        )

    async def _supervise(self) -> None:
        """Restart the server whenever it ends."""
        backoff = _BACKOFF_INITIAL_SECONDS
        while not self._stopping.is_set():
            assert self._launcher is not None
            began = time.monotonic()
            status = await self._launcher.wait()
            if time.monotonic() - began > _STABLE_SECONDS:
                backoff = _BACKOFF_INITIAL_SECONDS
            asked, self._asked = self._asked, False
            await self._end_launcher()
            self.state, self.message = ServerState.STARTING, f"ended with status {status}; starting again"
            if asked:
                logger.info("Triton ended with status %d after a restart request; starting again", status)
            else:
                logger.warning("Triton ended with status %d; starting again in %.1f s", status, backoff)
            while True:
                await asyncio.sleep(0 if asked else backoff)
                asked, backoff = False, backoff if asked else min(backoff * 2, _BACKOFF_MAX_SECONDS)
                try:
                    await self._launch()
                    break
                except (TritonStartError, OSError) as error:
                    await self._end_launcher()
                    self.message = str(error)
                    logger.warning("failed to restart Triton; next attempt in %.1f s: %s", backoff, error)

    async def _end_launcher(self) -> None:
        process, self._launcher = self._launcher, None
        if process is None:
            return
        if process.returncode is None:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(b"stop\n")
                await process.stdin.drain()
            try:
                await asyncio.wait_for(process.wait(), _EXIT_SECONDS + 10.0)
            except TimeoutError:
                logger.warning("Triton's launcher %d does not end; killing its group", process.pid)
        if process.stdin is not None:
            process.stdin.close()
        # The launcher leads the group. After its end, processes remain only if it was killed.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
