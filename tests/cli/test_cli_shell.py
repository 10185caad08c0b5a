"""Help and completion, and their start time."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import controlplane.cli.commands
from controlplane.cli.main import COMMANDS as MODULES
from controlplane.cli.main import app, module_of, register
from tests.cli.conftest import TRITONCTL, Cli

_OWN_MODULES, _MODULES, _HELP_MODULES = 25, 440, 300
"""Numbers of modules that `tritonctl ps` may import, its own and all, and those of `tritonctl --help`."""
register(MODULES)
COMMANDS = [command.name for command in app.registered_commands]


def test_all_expected_commands_exist() -> None:
    expected = """up serve push convert validate models versions show pull alias rm deploy rollback undeploy load unload
        ps history import infer servers gateway events gc doctor demo down wait version
        devices tune memory top explain why hold plan rollout health report metrics
        defrag sign verify fsck apply diff get export adopt setup label compare audit text-pipeline ui agent"""
    groups = {group.name for group in app.registered_groups}
    assert set(expected.split()) <= set(COMMANDS) | groups


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


def test_help_imports_no_renderers_that_it_does_not_use() -> None:
    run = [sys.executable, "-X", "importtime", "-m", "controlplane.cli.main", "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not {name.partition(".")[0] for name in imported} & {"markdown_it", "pygments", "pydantic", "httpx", "yaml"}
    assert len(imported) <= _HELP_MODULES, len(imported)


def test_request_imports_neither_numpy_nor_settings() -> None:
    run = [sys.executable, "-X", "importtime", "-m", "controlplane.cli.main", "ps", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 4
    assert "httpx" in imported
    assert not imported & {"numpy", "pydantic_settings", "fastapi", "torch", "onnx"}


def test_command_is_found_in_the_module_that_defines_it() -> None:
    for module, names in MODULES.items():
        own = typer.Typer()
        import_module(f"controlplane.cli.commands.{module}").register(own)
        assert (*(one.name for one in own.registered_commands), *(one.name for one in own.registered_groups)) == names
        assert all(module_of([name, "--help"]) == module for name in names)
    assert module_of([]) is module_of(["--help"]) is module_of(["unknown"]) is module_of(["-o", "json", "ps"]) is None
    folder = Path(controlplane.cli.commands.__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - {"__init__", "offline"} == set(MODULES)


def test_ps_imports_only_what_it_needs(cli: Cli, published: str) -> None:
    code = (
        "import atexit, sys; sys.argv[0:1] = ['tritonctl', 'ps']\n"
        "atexit.register(lambda: print(*(name for name, module in sys.modules.items() if module), file=sys.stderr))\n"
        "from controlplane.cli.main import main; main()"
    )
    run = [sys.executable, "-c", code, "--query", published]
    done = subprocess.run(run, env=cli.environment, capture_output=True, text=True, check=True)
    assert published in done.stdout
    assert "Ready" in done.stdout
    imported = set(done.stderr.split())
    packages = {name.partition(".")[0] for name in imported}
    slow = {"torch", "onnx", "fastapi", "boto3", "numpy", "pygments", "click", "markdown_it", "tritonclient"}
    assert not packages & slow
    ours = {name for name in imported if name.partition(".")[0] == "controlplane"}
    assert not ours & {"controlplane.client.models", "controlplane.domain.deployment", "controlplane.settings"}
    assert len(ours) <= _OWN_MODULES, sorted(ours)
    assert len(imported) <= _MODULES, len(imported)


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
