"""Agents as processes of their own, and requests to them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.errors import ObjectExistsError
from controlplane.registry.blobs import blob_key
from controlplane.servers.agent import AgentClient, AgentRepository
from controlplane.storage.base import ObjectStore
from tests.support.api import sha256
from tests.support.processes import free_port, listening, tied_to_us, wait_until

KEY = "a-control-key-for-tests"


@dataclass
class Agent:
    """An agent's process; it can be killed and started again on the same port and disk.

    Attributes:
        folder: Its data folder, with the model repository.
        options: Options of the command.
        environment: Settings.
        port: Its port.
    """

    folder: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def repository(self) -> Path:
        """Its model repository."""
        return self.folder / "model_repository"

    @property
    def log(self) -> Path:
        """Its output."""
        return self.folder.with_suffix(".log")

    def command(self, *more: str) -> list[str]:
        """Return its command line, with further options."""
        command = [sys.executable, "-m", "controlplane.cli.main", f"--data-dir={self.folder}", "agent", "--name=gpu-1"]
        return [*command, f"--port={self.port}", *self.options, *more]

    @property
    def settings(self) -> dict[str, str]:
        """Its environment: only what the test sets, no settings or credentials of the machine that runs it."""
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return environment | {"CONTROLPLANE_AGENT__KEY": KEY, "CONTROLPLANE_SANDBOX": "off", **self.environment}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                tied_to_us(self.command()), stdout=output, stderr=subprocess.STDOUT, env=self.settings
            )
        wait_until(self._answers, self.process, self.log, timeout=120)

    def kill(self) -> None:
        """Kill it without a chance to clean up."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        """Ask it to stop, and wait for that."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def _answers(self) -> bool:
        if "--tls-cert" in str(self.options):
            return listening(self.port)
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).is_success
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def running_agent(folder: Path, *options: str, **environment: str) -> Iterator[Agent]:
    """Run an agent for the length of a block."""
    agent = Agent(folder, options, environment)
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()


@contextlib.contextmanager
def asking(url: str, key: str = KEY) -> Iterator[AgentRepository]:
    """Use an agent's repository as the control plane does."""
    client = AgentClient("gpu-1", url, key)
    try:
        yield AgentRepository(client)
    finally:
        client.close()


def put_model(store: ObjectStore, *contents: bytes) -> Manifest:
    """Put files into the store's blobs and return their manifest; the first is the model."""
    names = ["model.onnx", *(f"weights-{number}.bin" for number in range(1, len(contents)))]
    files = [
        FileEntry(path=name, sha256=sha256(content), size_bytes=len(content))
        for name, content in zip(names, contents, strict=True)
    ]
    for file, content in zip(files, contents, strict=True):
        with contextlib.suppress(ObjectExistsError):
            store.create(blob_key(file.sha256), content)
    return Manifest(format=Format.ONNX, files=tuple(files))


def sent(url: str, path: str, body: object, *, key: str | None = KEY, version: str = "v1") -> httpx.Response:
    """Send a request that no control plane of this release would send."""
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/{version}/{path}", content=content, headers=headers, trust_env=False, timeout=60)
