"""The CLI as a process, against one real `tritonctl up` with a real Triton."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.cli_forks import Forked, commands, control_planes, start_control_plane
from tests.support.models import affine_onnx

TRITONCTL = (sys.executable, "-m", "controlplane.cli.main")
_CONTROL_PLANES = ("up", "serve")
_VARIABLES = ("TRITONCTL_", "CONTROLPLANE_", "AWS_", "MLFLOW_")
"""Variables that are read when a command runs; libraries read others when they are imported."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """Runs commands with one data folder, as one user would."""

    data_dir: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("TRITONCTL_", "CONTROLPLANE_", "_TRITONCTL_"))
        }
        return {**kept, "TRITONCTL_DATA_DIR": str(self.data_dir), "TRITONCTL_ACTOR": "ada"}

    def __call__(
        self, *arguments: object, stdin: str | None = None, timeout: float = 120, **environment: str
    ) -> Result:
        """Run a command to its end."""
        words = [*map(str, arguments)]
        env = {**self.environment, **environment}
        if words[:1] == ["demo"] or not _read_when_run(environment):
            done = subprocess.run(
                [*TRITONCTL, *words],
                cwd=self.folder,
                env=env,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
            result = Result(done.returncode, done.stdout, done.stderr)
        else:
            # `up --detach` starts an interpreter of its own for the control plane.
            here = _runs_control_plane(words) and "--detach" not in words
            forks = control_planes() if here else commands()
            ended = forks.run(words, cwd=self.folder, env=env, stdin=stdin, timeout=timeout)
            result = Result(ended.code, ended.out, ended.err)
        assert "Traceback" not in result.err, result.err
        return result

    def ok(self, *arguments: object, **more: Any) -> Result:
        """Run a command that must succeed."""
        result = self(*arguments, **more)
        assert result.code == 0, f"{arguments}: exit code {result.code}\n{result.out}\n{result.err}"
        return result

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str] | Forked:
        """Start a command and do not wait for it."""
        words = [*map(str, arguments)]
        env = {**self.environment, **environment}
        if not _read_when_run(environment):
            return subprocess.Popen(
                [*TRITONCTL, *words],
                cwd=self.folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        forks = control_planes() if _runs_control_plane(words) else commands()
        read, write = os.pipe()
        with open(os.devnull, "rb") as nothing, open(write, "wb") as sink:  # noqa: PTH123
            return forks.start(
                words,
                cwd=self.folder,
                env=env,
                stdin=nothing.fileno(),
                stdout=sink.fileno(),
                stderr=sink.fileno(),
                output=open(read, encoding="utf-8"),  # noqa: PTH123
            )

    @contextlib.contextmanager
    def up(self, *options: object, **environment: str) -> Iterator[dict[str, Any]]:
        """Run `up` on free ports until the end of the block; yields its ready file."""
        with self.running("up", "--port", 0, *options, **environment) as record:
            yield record

    @contextlib.contextmanager
    def running(self, *arguments: object, **environment: str) -> Iterator[dict[str, Any]]:
        """Run `up` or `serve` until the end of the block; yields its ready file. Its log is in the folder."""
        log, ready = self.folder / f"{arguments[0]}.log", self.data_dir / "up.json"
        env = {**self.environment, **environment}
        process = start_control_plane([*map(str, arguments)], cwd=self.folder, env=env, log=log)
        try:
            while not ready.exists() or json.loads(ready.read_text())["pid"] != process.pid:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield json.loads(ready.read_text())
        finally:
            process.terminate()
            process.wait(60)

    def tritons(self) -> list[int]:
        """Return the Triton processes of this data folder, including stubs."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            words = process.info["cmdline"] or []
            if any(str(self.data_dir) in word for word in words) and "triton" in Path(words[0]).name:
                found.append(process.info["pid"])
        return found


def _runs_control_plane(words: list[str]) -> bool:
    return words[:1] in ([command] for command in _CONTROL_PLANES)


def _read_when_run(environment: dict[str, str]) -> bool:
    return all(name.startswith(_VARIABLES) for name in environment)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Cli]:
    """A data folder of one's own; what was started in it is stopped."""
    folder = tmp_path / "here"
    folder.mkdir()
    cli = Cli(tmp_path / "data", folder)
    yield cli
    cli("down")


@pytest.fixture(scope="package")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The one `up` that the tests of this folder share."""
    root = tmp_path_factory.mktemp("cli")
    cli = Cli(root / "data", root)
    with cli.up():
        yield cli
    assert not cli.tritons(), "a Triton was left behind"


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 2x, as a file with a name that is no model's."""
    return affine_onnx(tmp_path_factory.mktemp("models") / "My doubling (v1).onnx", scale=2.0)


@pytest.fixture(scope="session")
def tripling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 3x."""
    return affine_onnx(tmp_path_factory.mktemp("models") / "tripling.onnx", scale=3.0)


@pytest.fixture(scope="package")
def published(cli: Cli, doubling: Path) -> str:
    """A model with one version, deployed and Ready; tests only look at it."""
    cli.ok("push", "steady", doubling, "--deploy")
    return "steady"
