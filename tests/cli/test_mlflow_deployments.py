"""`mlflow deployments -t tritonctl`: MLflow's own command line and client against a real control plane and Triton."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.support.beside import install_beside
from tests.support.mlflow_server import VERSION

SAVE = Path(__file__).parents[1] / "support" / "mlflow_saved.py"
CLIENT = """
import sys, numpy as np
from mlflow.deployments import get_deploy_client
client = get_deploy_client("tritonctl")
folder = sys.argv[1]
created = client.create_deployment("trees", folder + "/trees", config={"mode": "on-demand"})
assert created["flavor"] == "lightgbm", created
assert created["version"] == 2, "the original is version 1, and the ONNX file version 2"
table = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
found = client.predict("trees", table).get_predictions("ndarray")
np.testing.assert_allclose(found.reshape(-1), np.load(folder + "/expected.npy"), rtol=1e-3, atol=1e-4)
assert client.get_deployment("trees")["settings"]["mode"] == "on-demand"
client.update_deployment("trees", config={"mode": "resident"})
assert client.get_deployment("trees")["settings"]["mode"] == "resident"
client.delete_deployment("trees")
client.delete_deployment("trees")
assert "trees" not in {one["name"] for one in client.list_deployments()}
"""

Mlflow = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_beside(tmp_path_factory.mktemp("mlflow") / "venv", f"mlflow-skinny=={VERSION}", "pandas")


@pytest.fixture(scope="module")
def models(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    done = subprocess.run([python, "-P", SAVE, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def mlflow(python: Path, cli: Cli) -> Mlflow:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        variables = {
            "GIT_PYTHON_REFRESH": "quiet",
            "DO_NOT_TRACK": "true",
            "MLFLOW_TRACKING_URI": str(cli.folder / "runs"),
        }
        return subprocess.run(
            [python, "-P", *map(str, arguments)],
            cwd=cli.folder,
            env={**os.environ, **cli.environment, **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def test_command_line_creates_updates_and_deletes(mlflow: Mlflow, models: Path, cli: Cli, tmp_path: Path) -> None:
    def command(action: str, *arguments: object) -> Any:
        return mlflow("-m", "mlflow", "deployments", action, "-t", "tritonctl", *arguments)

    created = command("create", "--name", "times", "-m", models / "times2")
    assert "onnx deployment times is created" in created.stdout, created.stderr
    origin = cli.ok("show", "times", "-o", "json").json["manifest"]["lineage"]["origin"]
    assert origin["uri"].startswith("mlflow://")

    table = tmp_path / "table.json"
    table.write_text(json.dumps([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]))
    assert json.loads(command("predict", "--name", "times", "-I", table).stdout) == {"predictions": [[2, 4], [6, 8]]}
    assert "Deployment times is updated" in command("update", "--name", "times", "-m", models / "times3").stdout
    assert json.loads(command("predict", "--name", "times", "-I", table).stdout) == {"predictions": [[3, 6], [9, 12]]}
    assert "version: 2" in command("get", "--name", "times").stdout

    again = command("create", "--name", "times", "-m", models / "times2")
    assert "times is deployed already; use update" in again.stderr
    assert "is deleted" in command("delete", "--name", "times").stdout
    assert "'times' is not deployed" in command("get", "--name", "times").stderr


def test_client_converts_and_changes_settings(mlflow: Mlflow, models: Path) -> None:
    done = mlflow("-c", CLIENT, models)
    assert done.returncode == 0, done.stderr
