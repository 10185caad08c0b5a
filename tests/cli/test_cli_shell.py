"""Help and completion, and their start time."""

import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from controlplane.cli.main import app
from tests.cli.conftest import TRITONCTL, Cli

COMMANDS = [command.name for command in app.registered_commands]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    assert f"tritonctl {name}" in result.output.split("Examples")[1]


def test_all_expected_commands_exist() -> None:
    expected = """up serve push convert validate models versions show pull alias rm deploy rollback undeploy load unload
        ps history import infer servers gateway events gc doctor demo down wait version
        devices tune memory top explain why hold plan rollout health report metrics
        defrag sign verify fsck apply diff get export adopt"""
    assert set(expected.split()) == set(COMMANDS)


def test_help_lists_exit_codes_without_a_control_plane(tmp_path: object) -> None:
    done = subprocess.run([*TRITONCTL, "--help"], capture_output=True, text=True, check=True)
    assert "Exit codes" in done.stdout
    version = subprocess.run([*TRITONCTL, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("tritonctl 0.")


def test_main_imports_no_slow_packages() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "fastapi", "uvicorn", "boto3", "grpc", "tritonclient", "numpy", "pydantic"]
    code = f"import sys, controlplane.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_request_imports_neither_numpy_nor_settings() -> None:
    run = [sys.executable, "-X", "importtime", "-m", "controlplane.cli.main", "ps", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 4
    assert "httpx" in imported
    assert not imported & {"numpy", "pydantic_settings", "fastapi", "torch", "onnx"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_generated_for_each_shell(shell: str, fresh: Cli) -> None:
    script = fresh.ok(_TRITONCTL_COMPLETE=f"source_{shell}").out
    assert "_TRITONCTL_COMPLETE" in script


def _complete(cli: Cli, line: str) -> list[str]:
    words = line.split(" ")
    environment: dict[str, Any] = {
        "_TRITONCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    return cli(**environment).out.split()


@pytest.mark.triton
def test_model_names_are_completed_from_the_control_plane(cli: Cli, published: str) -> None:
    assert published in _complete(cli, "tritonctl show ste")
    assert published in _complete(cli, "tritonctl rollback ste")


def test_completion_prints_nothing_without_a_control_plane(fresh: Cli) -> None:
    assert _complete(fresh, "tritonctl show ste") == []


def test_piped_output_has_no_escape_codes(fresh: Cli) -> None:
    result = fresh("ps")
    assert "\x1b" not in result.out + result.err
