"""`tritonctl metrics`, and objectives given to `deploy`, against a real Triton with real requests."""

import json
import time
from typing import Any

import pytest

from controlplane.cli.views.metrics import sparkline
from tests.cli.conftest import Cli

pytestmark = pytest.mark.triton


def _figures(cli: Cli, name: str, at_least: int) -> dict[str, Any]:
    end = time.monotonic() + 60
    while True:
        found: dict[str, Any] = cli.ok("metrics", name, "-o", "json").json
        if found["total"]["requests"] >= at_least:
            return found
        assert time.monotonic() < end, found["total"]


def test_metrics_prints_a_table_and_json(cli: Cli, published: str) -> None:
    for _ in range(5):
        cli.ok("infer", published, "--sample")
    found = _figures(cli, published, 5)
    assert found["total"]["latency"]["source"] == "summary"
    shown = cli.ok("metrics", published, "--window", "10m").out
    lines = shown.splitlines()
    assert lines[0].startswith("steady, the last 10 min, observed for ")
    (requests,) = [line for line in lines if line.startswith("requests")]
    assert "█" in requests
    for word in ("failures", "mean", "p99", "batch", "pending", "VERSION", "embedded: CPU", "from Triton's summaries"):
        assert word in shown
    assert "OBJECTIVE" not in shown


def test_objectives_are_set_one_by_one_without_a_reload(cli: Cli, published: str) -> None:
    def loads() -> str:
        return next(line for line in cli.ok("metrics", published).out.splitlines() if line.startswith("1 "))

    before = cli.ok("ps", published, "-o", "json").json
    cli.ok("deploy", f"{published}:1", "--p99-ms", "60000", "--wait")
    cli.ok("deploy", f"{published}:1", "--max-failures", "1", "--wait")
    after = cli.ok("ps", published, "-o", "json").json
    assert after["spec"]["settings"]["objectives"] == {"p99_milliseconds": 60000.0, "failure_percent": 1.0}
    assert after["memory"][0]["loaded_at"] == before["memory"][0]["loaded_at"]
    shown = cli.ok("metrics", published).out
    assert "99 in 100 requests take no longer than 60000 ms" in shown
    assert "no more than 1 % of the requests fail" in shown
    assert loads()
    objectives = cli.ok("metrics", published, "-o", "json").json["objectives"]
    assert [(one["kind"], one["burning"]) for one in objectives] == [("latency", False), ("failures", False)]
    cli.ok("deploy", f"{published}:1", "--p99-ms", "0", "--max-failures", "0", "--wait")
    assert cli.ok("metrics", published, "-o", "json").json["objectives"] == []
    assert cli.ok("ps", published, "-o", "json").json["memory"][0]["loaded_at"] == before["memory"][0]["loaded_at"]


def test_metrics_watch_prints_one_document_per_line(cli: Cli, published: str) -> None:
    process = cli.start("metrics", published, "--watch", "-i", "0.1", "-o", "json")
    try:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["model"] == published
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_invalid_metrics_options_give_their_exit_code(cli: Cli, published: str) -> None:
    assert cli("metrics", "nothere").code == 3
    wrong = cli("metrics", published, "--window", "soon")
    assert (wrong.code, "soon" in wrong.err) == (6, True)
    assert "6h" in cli("metrics", published, "--window", "7h").err


def test_sparkline_spans_zero_to_its_largest_value() -> None:
    assert sparkline([0, 1, 2, 4, None, 8]) == "▁▂▃▅ █"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
