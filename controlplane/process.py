"""The control plane as a process: its signals, its lock on the data folder, its port and its ready file."""

import asyncio
import fcntl
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from controlplane.api.connections import bounded_protocol, connection_limits, raise_descriptor_limit
from controlplane.api.tls import tls_options
from controlplane.app import ControlPlane, build
from controlplane.asgi_server import Server
from controlplane.errors import ConflictError
from controlplane.folders import make_folder
from controlplane.localkey import remove_local_key, write_local_key
from controlplane.services.health import version
from controlplane.settings import Settings

logger = logging.getLogger(__name__)

READY_FILE = "up.json"
LOCK_FILE = "up.lock"

_GRACE_SECONDS = 3
"""How long the process waits for open connections (for example streams of events) when it stops."""


def run(
    settings: Settings, ready_file: Path | None = None, *, on_ready: Callable[[dict[str, object]], None] | None = None
) -> None:
    """Run a control plane until SIGINT or SIGTERM.

    Args:
        settings: Its settings.
        ready_file: File that gets a JSON document with the URL once requests are answered, and is removed at the end;
            default ``<data_dir>/up.json``, where `tritonctl` looks for it.
        on_ready: Called with that document.

    Raises:
        ConflictError: Another process uses this data folder.
        ControlPlaneError: The control plane cannot be started.
    """
    # Triton reads the model repository as another user. Private files are protected by the mode of their folder.
    os.umask(0o022)
    make_folder(settings.data_dir, "the data folder", private=True)
    with only_one(settings.data_dir), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, ready_file or settings.data_dir / READY_FILE, on_ready))


async def _serve(settings: Settings, ready_file: Path, on_ready: Callable[[dict[str, object]], None] | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    tls = tls_options(settings.api.tls)
    api = settings.api
    limits = connection_limits(
        api.max_connections,
        api.max_connections_per_source,
        api.header_timeout_seconds,
        api.body_idle_seconds,
        raise_descriptor_limit(),
    )
    plane = build(settings)
    with listen(settings.api.host, settings.api.port) as listener:
        try:
            if not await unless(stopping, plane.start()):
                return
            server = Server(
                uvicorn.Config(
                    plane.fastapi,
                    http=bounded_protocol(limits),
                    proxy_headers=bool(settings.api.trusted_proxies),
                    forwarded_allow_ips=[str(network) for network in settings.api.trusted_proxies],
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                    ws="none",
                    timeout_graceful_shutdown=_GRACE_SECONDS,
                    **tls,
                )
            )
            serving = await server.begin(listener)
            await unless(stopping, plane.wait_observed())
            document = _describe(plane, listener)
            write_local_key(settings.data_dir, plane.keys.local_token)
            _write_ready(ready_file, document)
            if on_ready is not None:
                on_ready(document)
            rewriting = asyncio.create_task(_keep_current(plane, listener, ready_file))
            try:
                await unless(stopping, asyncio.shield(serving))
            finally:
                rewriting.cancel()
                ready_file.unlink(missing_ok=True)  # noqa: ASYNC240 - the last thing this loop does
                remove_local_key(settings.data_dir)
                await plane.finish()
                server.should_exit = True
                await serving
        finally:
            await plane.stop()


async def _keep_current(plane: ControlPlane, listener: socket.socket, ready_file: Path) -> None:
    """Write the ready file again when the first key is created: commands read from it whether keys are required."""
    await plane.keys.changed.wait()
    _write_ready(ready_file, _describe(plane, listener))


async def unless(stopping: asyncio.Event, work: Coroutine[None, None, None] | asyncio.Future[None]) -> bool:
    """Wait for ``work`` and return True; if ``stopping`` is set first, cancel the work and return False."""
    task: asyncio.Future[None] = asyncio.ensure_future(work)
    stop: asyncio.Future[bool] = asyncio.ensure_future(stopping.wait())
    both: list[asyncio.Future[Any]] = [task, stop]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        stop.cancel()
        task.result()
        return True
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return False


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket (ConflictError)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio disables Nagle's algorithm only on sockets that are declared as TCP; with
    # the algorithm, every answer waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConflictError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for a free one",
            host=host,
            port=port,
        ) from error
    return listener


def _describe(plane: ControlPlane, listener: socket.socket) -> dict[str, object]:
    host, port = listener.getsockname()[:2]
    tls = plane.settings.api.tls
    scheme = "https" if tls.cert_file else "http"
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return {
        "url": f"{scheme}://[{shown}]:{port}" if ":" in shown else f"{scheme}://{shown}:{port}",
        "certificate": str(tls.cert_file.absolute()) if tls.cert_file else None,
        "pid": os.getpid(),
        "data_dir": str(plane.settings.data_dir.absolute()),
        "started_at": datetime.now(UTC).isoformat(),
        "version": version(),
        "authentication": plane.keys.authentication.value,
        "warning": plane.keys.warning,
        "gateway": plane.gateway.address().model_dump(mode="json") if plane.gateway else None,
        "servers": [
            server.model_dump(mode="json", include={"name", "id", "grpc_url", "http_url", "metrics_url", "state"})
            for server in plane.reconciler.servers()
        ],
    }


def _write_ready(path: Path, document: dict[str, object]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
    temporary.replace(path)
    logger.info("listening on %s", document["url"])


@contextmanager
def only_one(data_dir: Path, what: str = "control plane") -> Iterator[None]:
    """Hold the data folder's lock; the kernel releases it when the process ends, whatever the cause."""
    with (data_dir / LOCK_FILE).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip()
            raise ConflictError(
                f"another {what}{f' (pid {owner})' if owner else ''} uses {data_dir}; stop it, or choose "
                "another --data-dir",
                data_dir=str(data_dir),
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
