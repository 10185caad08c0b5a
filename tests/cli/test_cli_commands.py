"""What every command must have, and the formats that all of them share."""

import json
import re
import shlex
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from controlplane.cli.documents import names_of, text_of
from controlplane.cli.main import app
from controlplane.cli.output import Output
from controlplane.cli.views.deployment_list import show_deployments
from controlplane.client.rows import DeploymentRow
from docs.generate import commands, own_options
from tests.cli.conftest import Cli

COMMANDS = dict(commands())
_MANY_OPTIONS = 12
_OPTION = re.compile(r"--?[a-z][a-z-]*")


def examples_of(command: Any) -> list[str]:
    """Return the example command lines in the help of a command."""
    _, _, listed = (command.help or "").partition("[bold]Examples[/bold]")
    return [line.removeprefix("[dim]$[/dim] ").replace("\\[", "[") for line in listed.split("\n") if line.strip()]


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_has_two_examples_that_use_the_commands_own_options(names: tuple[str, ...]) -> None:
    command = COMMANDS[names]
    found = examples_of(command)
    assert len(found) >= 2, f"give command({names[-1]!r}, examples=(…)) at least two command lines"
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    for line in found:
        own = next((part for part in re.split(r" (?:\|\|?|--|>) ", line) if part.startswith("tritonctl")), "")
        words = shlex.split(own)
        assert words[: len(names) + 1] == ["tritonctl", *names], f"{line!r} is not an example of {' '.join(names)}"
        given = {word.partition("=")[0] for word in words if _OPTION.match(word)}
        assert given <= known, f"{line!r} uses options that the command does not have: {given - known}"


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_many_options_are_in_groups(names: tuple[str, ...]) -> None:
    ungrouped = [one for one in own_options(COMMANDS[names]) if not getattr(one, "rich_help_panel", None)]
    assert len(ungrouped) <= _MANY_OPTIONS, (
        f"{len(ungrouped)} options of {' '.join(names)} are in one list; sort them with command(…, groups={{…}})"
    )


def test_help_shows_the_common_options_once() -> None:
    terminal = {"COLUMNS": "100", "TERM": "dumb"}
    of_command = CliRunner().invoke(app, ["deploy", "--help"], env=terminal).output
    assert "--output" in of_command
    assert "--ca-file" not in of_command
    assert of_command.index("tritonctl deploy resnet:7 --wait") < of_command.index("Resources")
    of_all = CliRunner().invoke(app, ["--help"], env=terminal).output
    assert "--ca-file" in of_all


DOCUMENTS = [{"name": "b", "n": 1}, {"name": "a", "when": datetime(2026, 1, 2, tzinfo=UTC)}]


def test_json_and_yaml_have_the_same_content() -> None:
    assert yaml.safe_load(text_of(DOCUMENTS, "yaml")) == json.loads(text_of(DOCUMENTS, "json"))
    stream = text_of({"a": 1}, "yaml", stream=True) + text_of({"b": [2]}, "yaml", stream=True)
    assert list(yaml.safe_load_all(stream)) == [{"a": 1}, {"b": [2]}]
    assert text_of(DOCUMENTS, "json", stream=True).count("\n") == 1


@pytest.mark.parametrize(
    ("document", "names"),
    [
        (DOCUMENTS, ["b", "a"]),
        ({"items": DOCUMENTS}, ["b", "a"]),
        ({"reference": "net:2", "model": "net", "version": 2}, ["net:2"]),
        ({"model": "net", "version": 2}, ["net:2"]),
        ({"model": "net", "entry": {"number": 3}}, ["net:3"]),
        ({"model": "net", "spec": {}}, ["net"]),
        ([{"server": "gpu0", "devices": []}], ["gpu0"]),
        ({"freed_bytes": 3}, []),
    ],
)
def test_names_are_those_that_other_commands_accept(document: object, names: list[str]) -> None:
    assert names_of(document) == names


def test_errors_are_documents_in_the_format(fresh: Cli) -> None:
    found = {form: fresh("models", "-o", form) for form in ("json", "yaml", "name")}
    assert {one.code for one in found.values()} == {4}
    assert found["json"].json == yaml.safe_load(found["yaml"].out)
    assert found["name"].out == ""
    assert len(found["name"].err.splitlines()) == 1


def test_output_without_names_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    Output("name").result({"freed_bytes": 3})
    found = capsys.readouterr()
    assert (found.out, "use -o json" in found.err) == ("", True)


def row(name: str, phase: str, message: str = "") -> DeploymentRow:
    moment = datetime.now(UTC).isoformat()
    memory = {"footprint": [{"held_bytes": 123 << 20}], "last_used_at": moment, "expires_at": moment}
    proof = {"samples": 3, "agrees": True, "latency_seconds": 0.1}
    server = {"serving_version": 12, "loaded_versions": [11, 12], "proof": proof}
    return DeploymentRow.model_validate(
        {
            "model": name,
            "at": moment,
            "spec": {"version": 12, "reference": f"{name}@champion", "settings": {"mode": "on-demand"}},
            "status": {"phase": phase, "message": message, "servers": [server]},
            "memory": [memory],
        }
    )


def test_list_of_deployments_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("resnet50-classifier", "Ready", "3 samples"), row("bert", "Failed", "no memory")]
    show_deployments(Output(), rows)
    text = capsys.readouterr().out
    table = [line for line in text.splitlines() if not line.startswith("bert:")]
    assert max(map(len, table)) <= 80, text
    assert "bert: no memory" in text
    assert "3 samples" not in text
    show_deployments(Output("wide"), rows)
    assert "agrees, 100 ms" in capsys.readouterr().out


@pytest.mark.triton
def test_lists_have_all_formats(cli: Cli, published: str) -> None:
    for words in (("ps",), ("models",), ("servers",), ("devices",), ("memory",)):
        documents = cli.ok(*words, "-o", "json").json
        assert len(yaml.safe_load(cli.ok(*words, "-o", "yaml").out)) == len(documents)
        assert len(cli.ok(*words, "-o", "name").out.split()) == len(documents)
        narrow, wide = cli.ok(*words).out, cli.ok(*words, "-o", "wide").out
        assert len(wide.splitlines()[0]) >= len(narrow.splitlines()[0])
    assert published in cli.ok("ps", "-o", "name").out.split()
    assert f"{published}:1" in cli.ok("versions", published, "-o", "name").out.split()


@pytest.mark.triton
def test_watch_prints_each_change_as_a_document(cli: Cli, published: str) -> None:
    watched = cli.start("models", "--watch", "--interval", "0.1", "-o", "json")
    assert watched.stdout is not None
    try:
        first = json.loads(watched.stdout.readline())
        assert published in [one["name"] for one in first]
        cli.ok("alias", f"{published}@watched", "1")
        second = json.loads(watched.stdout.readline())
        assert "watched" in next(one for one in second if one["name"] == published)["aliases"]
    finally:
        watched.kill()
        watched.wait()
        watched.stdout.close()
        cli.ok("alias", f"{published}@watched", "--remove")
