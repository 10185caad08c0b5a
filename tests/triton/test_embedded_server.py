"""The embedded server's life: started, watched, restarted, and taken down whatever happens to its parent."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.states import ServerState
from controlplane.errors import TritonStartError, TritonUnavailableError
from controlplane.sandbox import find_sandbox
from controlplane.settings import TritonSettings
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import installation
from controlplane.triton.embedded.backend_directory import assemble_backends
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.model_config import build_config
from controlplane.triton.repository import ModelRepository
from tests.support.triton_models import scale

pytestmark = pytest.mark.triton
REPOSITORY_ROOT = Path(__file__).parents[2]


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def launcher_of(server: int) -> psutil.Process:
    """The launcher; bubblewrap's two processes stand between it and a confined server."""
    return next(parent for parent in psutil.Process(server).parents() if "launcher.py" in " ".join(parent.cmdline()))


def shared_memory(run_dir: Path) -> list[Path]:
    return list(Path("/dev/shm").glob((run_dir / "shm-prefix").read_text().strip() + "*"))


async def load_one(server: EmbeddedTriton, tmp_path: Path) -> list[int]:
    """Load a model with one instance; returns the server's and the instance's process ids."""
    model = scale(tmp_path / "m.onnx", 2.0)
    config = build_config("m", model.manifest, DeploymentSettings(), [1])
    ModelRepository(server.repository).stage("m", 1, model.files, config)
    client = TritonClient("test", server.grpc_url)
    await client.load("m", config)
    await client.infer("m", {"x": np.ones((1, 3), np.float32)})
    await client.close()
    assert server.pid is not None
    return [server.pid, *server.processes_of("m")]


async def test_onnxruntime_leaves_no_telemetry_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "run", TritonSettings())
    await server.start()
    try:
        await load_one(server, tmp_path)
        assert not (temporary / ".ses").exists()
    finally:
        await server.stop()


async def test_server_uses_free_ports_and_stops_with_all_its_children(tmp_path: Path) -> None:
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "run", TritonSettings())
    assert server.state is ServerState.STOPPED
    with pytest.raises(TritonStartError, match="not started"):
        _ = server.grpc_url
    await server.start()
    assert (server.state, server.generation) == (ServerState.READY, 1)
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{server.http_url}/v2/health/ready")).status_code == 200
        assert "nv_cpu_utilization" in (await http.get(server.metrics_url)).text
    pids = await load_one(server, tmp_path)
    assert len(pids) == 2
    assert shared_memory(tmp_path / "run")
    await server.stop()
    assert server.state is ServerState.STOPPED
    assert all(gone(pid) for pid in pids)
    assert server.pid is None
    assert not shared_memory(tmp_path / "run")
    assert "Started GRPCInferenceService" in server.log_tail(1000)
    await server.stop()


async def test_killed_server_restarts_empty_on_same_ports(tmp_path: Path) -> None:
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "run", TritonSettings())
    await server.start()
    client = TritonClient("test", server.grpc_url)
    try:
        urls, pids = server.client_urls, await load_one(server, tmp_path)
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: server.state is ServerState.STARTING)
        await until(lambda: server.state is ServerState.READY)
        assert server.generation == 2
        assert server.client_urls == urls
        assert await client.server_live()
        assert await client.index() == ()
        assert all(gone(pid) for pid in pids)
    finally:
        await client.close()
        await server.stop()
    assert not shared_memory(tmp_path / "run")


async def test_killed_launcher_ends_its_server_and_is_replaced(tmp_path: Path) -> None:
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "run", TritonSettings())
    await server.start()
    try:
        pids = await load_one(server, tmp_path)
        launcher = launcher_of(pids[0])
        launcher.kill()
        await until(lambda: server.generation == 2)
        await until(lambda: all(gone(pid) for pid in pids))
    finally:
        await server.stop()
    assert not shared_memory(tmp_path / "run")


PARENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from controlplane.sandbox import find_sandbox
from controlplane.settings import TritonSettings
from controlplane.triton.embedded.server import EmbeddedTriton

async def main():
    folder = Path(sys.argv[1])
    server = EmbeddedTriton(folder / "repository", folder / "run", TritonSettings())
    await server.start()
    print(server.pid, server.grpc_url, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_no_process_outlives_parent_killed_with_sigkill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(REPOSITORY_ROOT)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        pid, url = parent.stdout.readline().split()
        model = scale(tmp_path / "m.onnx", 2.0)
        config = build_config("m", model.manifest, DeploymentSettings(instance_count=2), [1])
        ModelRepository(tmp_path / "repository").stage("m", 1, model.files, config)
        client = TritonClient("test", url)
        await client.load("m", config)
        launcher = launcher_of(int(pid))
        family = [launcher, *launcher.children(recursive=True)]
        assert len(family) == (6 if find_sandbox().confines else 4)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        await until(lambda: all(gone(process.pid) for process in family), 10)
        assert not shared_memory(tmp_path / "run")
        assert not await client.server_live()
        with pytest.raises(TritonUnavailableError, match="cannot be reached"):
            await client.index()
        await client.close()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


async def test_port_in_use_is_reported_with_log(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = TritonSettings(grpc_port=taken.getsockname()[1], start_timeout_seconds=20.0)
        server = EmbeddedTriton(tmp_path / "repository", tmp_path / "run", settings)
        with pytest.raises(TritonStartError, match=r"(?s)ended with status.*in use"):
            await server.start()
    assert server.state is ServerState.STOPPED
    assert server.pid is None


async def test_other_triton_on_port_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    first = EmbeddedTriton(tmp_path / "a", tmp_path / "run-a", TritonSettings())
    await first.start()
    try:
        port = int(first.grpc_url.rpartition(":")[2])
        second = EmbeddedTriton(tmp_path / "b", tmp_path / "run-b", TritonSettings(grpc_port=port))
        with pytest.raises(TritonStartError):
            await second.start()
        assert first.state is ServerState.READY
    finally:
        await first.stop()


async def test_server_that_is_not_live_in_time_is_stopped(tmp_path: Path) -> None:
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "run", TritonSettings(start_timeout_seconds=0.001))
    with pytest.raises(TritonStartError, match=r"was not live after 0\.001 s"):
        await server.start()
    assert server.pid is None


async def test_stub_that_cannot_start_is_detected_before_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libpython = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    (tmp_path / libpython).write_text("no library")
    monkeypatch.setattr(installation, "_libraries", lambda _: (tmp_path,))
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "run", TritonSettings())
    with pytest.raises(TritonStartError, match="error while loading shared libraries"):
        await server.start()


def test_the_backend_directory_is_assembled_once(tmp_path: Path) -> None:
    found = installation.find_installation()
    folder = assemble_backends(found, tmp_path)
    assert (folder / "onnxruntime" / "model.py").is_file()
    assert (folder / "pytorch" / "backend_requests.py").is_file()
    assert os.access(folder / "python" / "triton_python_backend_stub", os.X_OK)
    (folder / "mark").touch()
    assert assemble_backends(found, tmp_path) == folder
    assert (folder / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
