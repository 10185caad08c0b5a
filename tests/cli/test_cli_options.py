"""Precedence of the common options: a flag in either position, then the environment."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from controlplane.cli import session as sessions
from controlplane.cli.main import COMMANDS, app, register
from controlplane.cli.session import Session

register(COMMANDS)
FROM_ENVIRONMENT: dict[str, object] = {
    "url": "http://environment",
    "data_dir": Path("/environment"),
    "actor": "environment",
    "api_key_file": Path("/environment"),
    "ca_file": Path("/environment"),
    "client_cert": Path("/environment"),
}
ENVIRONMENT = {f"TRITONCTL_{name.upper()}": str(value) for name, value in FROM_ENVIRONMENT.items()}
FLAGS = {name: ("--" + name.replace("_", "-"), str(value)) for name, value in FROM_ENVIRONMENT.items()}


def merged(monkeypatch: pytest.MonkeyPatch, *words: str, environment: dict[str, str] | None = None) -> Session:
    """Run a command line up to its command, which is replaced, and return the options it would use."""
    session = Session()
    monkeypatch.setattr(sessions, "_SESSION", session)
    monkeypatch.setattr(Session, "client", _stop)
    result = CliRunner().invoke(app, list(words), env=ENVIRONMENT if environment is None else environment)
    assert isinstance(result.exception, _ReachedError), result.output
    return session


class _ReachedError(Exception):
    """The command has its options."""


def _stop(_session: Session) -> Any:
    raise _ReachedError


@pytest.mark.parametrize("name", FROM_ENVIRONMENT)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_flag_overrides_environment_in_both_positions(monkeypatch: pytest.MonkeyPatch, name: str, before: bool) -> None:
    flag = (FLAGS[name][0], "/flag")
    session = merged(monkeypatch, *((*flag, "models") if before else ("models", *flag)))
    assert str(getattr(session, name)) == "/flag"
    others = set(FROM_ENVIRONMENT) - {name} - ({"url"} if name == "data_dir" else set())
    assert {other: getattr(session, other) for other in others} == {other: FROM_ENVIRONMENT[other] for other in others}


def test_all_options_with_environment_variables_are_tested() -> None:
    root = typer.main.get_command(app)
    assert {p.name for p in root.params if getattr(p, "envvar", None)} == set(FROM_ENVIRONMENT)


def test_environment_applies_without_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    session = merged(monkeypatch, "models")
    assert {name: getattr(session, name) for name in FROM_ENVIRONMENT} == FROM_ENVIRONMENT


def test_flag_after_the_command_overrides_flag_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    session = merged(
        monkeypatch, "--url", "http://before", "-o", "json", "models", "--url", "http://after", "-o", "table"
    )
    assert (session.url, session.output) == ("http://after", "table")


def test_data_dir_flag_overrides_url_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert merged(monkeypatch, "--data-dir", "/here", "models").url is None
    assert merged(monkeypatch, "models", "--data-dir", "/here").url is None
    assert merged(monkeypatch, "--url", "http://flag", "models", "--data-dir", "/here").url == "http://flag"


def test_group_command_receives_common_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    assert merged(monkeypatch, "--url", "http://flag", "keys", "list").url == "http://flag"


@pytest.mark.parametrize("words", [("--url", "", "models"), ("models", "--url", ""), ("--actor", "", "models")])
def test_empty_flag_is_refused(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(words), env=ENVIRONMENT)
    assert result.exit_code == 2
    assert "the value is empty" in result.output
