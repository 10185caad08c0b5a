"""What the chart gives to processes of the control plane: commands, environment and settings that they have."""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from controlplane.settings import Settings
from docs import generate
from tests.helm.cases import CASES, STORE
from tests.helm.cli import HelmError, render
from tests.helm.test_chart import containers, of_kind

FOREIGN = {
    "TRITONCTL_DATA_DIR", "CONTROLPLANE_CONFIG", "TRITON_CONTROL_KEY", "POD_NAME", "POD_IP",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CA_BUNDLE",
}  # fmt: skip
"""Variables that are no settings: of the command line, of boto3, and one that other variables refer to."""


def leaves(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in group.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from leaves(field.annotation, f"{prefix}{name}__")
        else:
            yield prefix + name, field.annotation


def ours(case: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    return (one for one in containers(case) if one[2]["name"] not in {"triton", "folders"})


OPTIONS = {("agent",): {"--register", "--name", "--host", "--advertise-host", "--triton-grpc", "--repository"}}
"""Options of the command line that the chart uses; `test_options_exist` finds them in the command's help."""


def test_options_exist() -> None:
    for words, options in OPTIONS.items():
        (command,) = [one for names, one in generate.commands() if names == words]
        assert options <= {name for one in generate.own_options(command) for name in one.opts}, words


@pytest.mark.parametrize("case", CASES)
def test_commands_exist(case: str) -> None:
    known = {command for command, _ in generate.commands()}
    for name, _, container in ours(case):
        assert "command" not in container, name
        words = tuple(word for word in container["args"] if not word.startswith("-"))
        assert words in known, name
        options = {word.partition("=")[0] for word in container["args"] if word.startswith("--")}
        assert options <= OPTIONS[words] if words in OPTIONS else not options, name


@pytest.mark.parametrize("case", CASES)
def test_environment_has_valid_settings(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = {f"CONTROLPLANE_{name.upper()}" for name, _ in leaves(Settings)}
    (text,) = [one["data"]["config.toml"] for one in of_kind(case, "ConfigMap") if "config.toml" in one["data"]]
    path = tmp_path / "config.toml"
    path.write_text(text)
    for name, _, container in ours(case):
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables.keys() - FOREIGN <= known, name
        assert len(variables) == len(container["env"]), name
        with monkeypatch.context() as context:
            for key in [key for key in os.environ if key.startswith(("CONTROLPLANE_", "TRITONCTL_"))]:
                context.delenv(key)
            for key, variable in variables.items():
                context.setenv(key, variable.get("value", "from-elsewhere"))
            context.setenv("CONTROLPLANE_CONFIG", str(path))
            settings = Settings()
        assert settings.store.url == CASES[case]["store"]["url"]
        if container["name"] == "agent":
            assert settings.triton.labels == CASES[case]["triton"].get("labels", {})
            assert settings.agent.drain_seconds == CASES[case]["workers"].get("drainSeconds", 60)
            continue
        assert settings.auth.mode == "required"
        assert settings.triton.discover == ("workers" in CASES[case])
        (server,) = settings.triton.servers
        assert server.labels == CASES[case]["triton"].get("labels", {})
        assert (server.repository is None) == (container["name"] == "gateway")
        wanted = CASES[case].get("config", {})
        assert settings.log_format == wanted.get("log_format", "json")
        assert settings.memory.headroom_bytes == wanted.get("memory", {}).get("headroom_bytes", 0)


def test_settings_file_is_what_the_values_say() -> None:
    (text,) = [one["data"]["config.toml"] for one in of_kind("placed", "ConfigMap")]
    assert tomllib.loads(text) == {"log_format": "text", "memory": CASES["placed"]["config"]["memory"]}


def test_secret_settings_are_refused_in_the_settings_file() -> None:
    secrets = [
        name for name, kind in leaves(Settings) if kind is SecretStr or SecretStr in getattr(kind, "__args__", ())
    ]
    assert len(secrets) >= 4
    for secret in secrets:
        document: Any = "hidden"
        for part in reversed(secret.split("__")):
            document = {part: document}
        # Of some groups nothing may be set there at all.
        with pytest.raises(HelmError, match=rf"{secret.split('__')[-1]}|/{secret.split('__')[0]}"):
            render({**STORE, "config": document})


def test_ports_of_containers_are_those_that_the_processes_listen_on() -> None:
    seen = set()
    for _, _, container in ours("defaults"):
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        declared = {str(port["containerPort"]) for port in container.get("ports", ())}
        listening = {value for key, value in env.items() if key.endswith("_PORT")}
        assert declared == listening, container["name"]
        seen.add(container["name"])
    assert seen == {"controlplane", "gateway"}
