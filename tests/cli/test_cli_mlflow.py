"""Models from a real MLflow server: each flavor is published, converted with parity, and keeps its origin."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.support.mlflow_server import MlflowServer, mlflow_server

LOG_MODELS = Path(__file__).parents[1] / "support" / "mlflow_models.py"

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def run_id(server: MlflowServer) -> str:
    done = server.run(LOG_MODELS)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def tracking(server: MlflowServer) -> Any:
    return {"MLFLOW_TRACKING_URI": server.url}


def test_onnx_model_keeps_run_version_and_tags(cli: Cli, server: MlflowServer, run_id: str) -> None:
    cli.ok("push", "from-alias", "mlflow://models:/relu@champion", "--deploy", **tracking(server))
    manifest = cli.ok("show", "from-alias", "-o", "json").json["manifest"]
    origin = manifest["lineage"]["origin"]
    assert origin["uri"] == "mlflow://models:/relu/1"
    assert (origin["server"], origin["run"], origin["version"]) == (server.url, run_id, "1")
    assert {"approved": "yes", "git": "1a2b3c4", "mlflow.runName": "training"}.items() <= origin["tags"].items()
    assert [file["path"] for file in manifest["files"]] == ["model.onnx"]
    shown = cli.ok("show", "from-alias").out
    assert "mlflow://models:/relu/1" in shown
    assert "approved=yes" in shown
    again = cli.ok("push", "from-alias", "mlflow://models:/relu/latest", "-o", "json", **tracking(server)).json
    assert again["unchanged"], "the alias and the number name the same version"


def test_model_of_a_run_is_found_by_its_path(cli: Cli, server: MlflowServer, run_id: str) -> None:
    cli.ok("push", "from-run", f"mlflow://runs:/{run_id}/relu", **tracking(server))
    origin = cli.ok("show", "from-run", "-o", "json").json["manifest"]["lineage"]["origin"]
    assert (origin["uri"], origin["run"]) == (f"mlflow://runs:/{run_id}/relu", run_id)


@pytest.mark.parametrize(
    ("model", "trust"), [("xgb-trees", False), ("lgb-trees", False), ("linear", True), ("net", True)]
)
def test_flavor_is_converted_with_parity(model: str, trust: bool, cli: Cli, server: MlflowServer, run_id: str) -> None:
    command = ("convert", f"mlflow://models:/{model}/1", "--to", "onnx", "-o", "json")
    if trust:
        refused = cli(*command, **tracking(server))
        assert "--trust" in refused.err
    result = cli.ok(*command, *(["--trust"] if trust else []), **tracking(server)).json
    assert all(output["agrees"] for output in result["parity"]["outputs"])
    origin = cli.ok("show", result["reference"], "-o", "json").json["manifest"]["lineage"]["origin"]
    assert (origin["uri"], origin["run"]) == (f"mlflow://models:/{model}/1", run_id)


@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        ("mlflow://models:/nope/1", 3, "has no version 1 of a model 'nope'"),
        ("mlflow://models:/relu@nope", 3, "has no model 'relu' with the alias 'nope'"),
        ("mlflow://models:/nope/latest", 3, "has no version of a model 'nope'"),
        ("mlflow://models:/m-00000000000000000000000000000000", 3, "has no logged model"),
        ("mlflow://runs:/nope/relu", 3, "has no run 'nope'"),
        ("mlflow://runs:/RUN/nope", 3, "has no model at mlflow://runs:/RUN/nope"),
    ],
)
def test_missing_model_is_reported(
    uri: str, code: int, message: str, cli: Cli, server: MlflowServer, run_id: str
) -> None:
    refused = cli("push", "missing", uri.replace("RUN", run_id), **tracking(server))
    assert refused.code == code
    assert message.replace("RUN", run_id) in refused.err
    assert not list((cli.data_dir / "client" / "sources").iterdir())
