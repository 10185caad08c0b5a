"""A real MLflow server, in an environment of its own beside this one: MLflow brings about 30 packages and 460 MB."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.beside import install_beside
from tests.support.processes import free_port, running, wait_until

VERSION = "3.17.2"


@dataclass(frozen=True, slots=True)
class MlflowServer:
    """A running server.

    Attributes:
        url: Its address.
        python: The Python that has MLflow.
        environment: Environment for programs that use MLflow.
    """

    url: str
    python: Path
    environment: dict[str, str]

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program with MLflow to its end."""
        return subprocess.run(
            [self.python, *map(str, arguments)],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Install MLflow and run its server until the end of the block."""
    python, port = install_beside(folder / "venv", f"mlflow=={VERSION}"), free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "mlflow.log"
    variables = {"GIT_PYTHON_REFRESH": "quiet", "MLFLOW_TRACKING_URI": url, "DO_NOT_TRACK": "true"}
    command = [
        *("env", *(f"{name}={value}" for name, value in variables.items())),
        *(str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health").is_success
        return False

    with running(command, log) as process:
        wait_until(answers, process, log, timeout=300)
        yield MlflowServer(url, python, {**os.environ, **variables})
