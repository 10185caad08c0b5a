"""Settings from a TOML file, and the log as JSON."""

import json
import logging
from pathlib import Path

import pytest

from controlplane.defaults import CONFIG_VARIABLE
from controlplane.logformat import JsonFormatter
from controlplane.settings import ConfigFileError, Settings


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "tritonctl.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    return file


def test_variable_has_precedence_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('log_format = "json"\n[store]\nurl = "s3://a"\nregion = "x"\n')
    monkeypatch.setenv("CONTROLPLANE_STORE__URL", "s3://b")
    settings = Settings()
    assert (settings.store.url, settings.store.region, settings.log_format) == ("s3://b", "x", "json")
    assert Settings(log_format="text").log_format == "text"


@pytest.mark.parametrize(("text", "message"), [("a = ", "not valid TOML"), (None, "failed to read")])
def test_unusable_file_is_named(config: Path, text: str | None, message: str) -> None:
    if text is not None:
        config.write_text(text)
    with pytest.raises(ConfigFileError, match=message) as refused:
        Settings()
    assert str(config) in str(refused.value)


def test_unknown_setting_in_the_file_is_refused(config: Path) -> None:
    config.write_text("[store]\nurll = 1\n")
    with pytest.raises(ValueError, match="urll"):
        Settings()


def test_json_log_is_one_object_a_line_whatever_the_message_contains() -> None:
    error = ValueError("two\nlines")
    arguments = ("1\n{} 2026 INFO forged",)
    record = logging.LogRecord("a.b", logging.WARNING, "f", 1, 'x "%s"', arguments, (ValueError, error, None))
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["logger"]) == ("warning", "a.b")
    assert fields["message"] == 'x "1\n{} 2026 INFO forged"'
    assert "two\nlines" in fields["exception"]
    assert fields["time"].endswith("Z")
