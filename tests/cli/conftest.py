"""The CLI as a process, against one real `tritonctl up` with a real Triton."""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.cli_forks import Forks
from tests.support.models import affine_onnx

TRITONCTL = (sys.executable, "-m", "controlplane.cli.main")
_INTERPRETERS = (["up"], ["serve"], ["demo"])
"""Commands that run in an interpreter of their own."""
_COMMAND_VARIABLES = ("TRITONCTL_", "CONTROLPLANE_")
"""Variables that are read when a command runs; libraries read others when they are imported."""


@cache
def _forks() -> Forks:
    forks = Forks()
    atexit.register(forks.close)
    return forks


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
        if words[:1] in _INTERPRETERS or not all(name.startswith(_COMMAND_VARIABLES) for name in environment):
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
            ended = _forks().run(words, cwd=self.folder, env=env, stdin=stdin, timeout=timeout)
            result = Result(ended.code, ended.out, ended.err)
        assert "Traceback" not in result.err, result.err
        return result

    def ok(self, *arguments: object, **more: Any) -> Result:
        """Run a command that must succeed."""
        result = self(*arguments, **more)
        assert result.code == 0, f"{arguments}: exit code {result.code}\n{result.out}\n{result.err}"
        return result

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        """Start a command and do not wait for it."""
        return subprocess.Popen(
            [*TRITONCTL, *map(str, arguments)],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def tritons(self) -> list[int]:
        """Return the Triton processes of this data folder, including stubs."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            words = process.info["cmdline"] or []
            if any(str(self.data_dir) in word for word in words) and "triton" in Path(words[0]).name:
                found.append(process.info["pid"])
        return found


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Cli]:
    """A data folder of one's own; what was started in it is stopped."""
    folder = tmp_path / "here"
    folder.mkdir()
    cli = Cli(tmp_path / "data", folder)
    yield cli
    cli("down")


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The one `up` that the tests share."""
    root = tmp_path_factory.mktemp("cli")
    cli = Cli(root / "data", root)
    try:
        cli.ok("up", "--detach", "--port", 0)
        yield cli
    finally:
        cli("down")
    assert not cli.tritons(), "a Triton was left behind"


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 2x, as a file with a name that is no model's."""
    return affine_onnx(tmp_path_factory.mktemp("models") / "My doubling (v1).onnx", scale=2.0)


@pytest.fixture(scope="session")
def tripling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 3x."""
    return affine_onnx(tmp_path_factory.mktemp("models") / "tripling.onnx", scale=3.0)


@pytest.fixture(scope="session")
def published(cli: Cli, doubling: Path) -> str:
    """A model with one version, deployed and Ready; tests only look at it."""
    cli.ok("push", "steady", doubling, "--deploy")
    return "steady"
