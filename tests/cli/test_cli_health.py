"""The commands wait, health and report."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.triton


def test_wait_for_conditions_and_read_their_reasons(cli: Cli, doubling: Path, tripling: Path) -> None:
    name = "awaited"
    cli.ok("push", name, doubling)
    cli.ok("deploy", name, "--no-wait")
    ready = cli.ok("wait", name, "--for=Ready", "--timeout", "60s")
    assert f"{name}:1 is Ready" in ready.out
    cli.ok("wait", name, "--for=condition=Degraded=False", "--timeout", 10)
    cli.ok("wait", name, "--for", "healthy", "--timeout", "1m")

    late = cli("wait", name, "--for=condition=Ready=False", "--timeout", "0.2s")
    assert late.code == 8
    assert "is not Ready=False after 0.2 s; it is Ready" in late.err
    wrong = cli("wait", name, "--for=Redy")
    assert wrong.code == 6
    assert "Loaded, Proved, Ready" in wrong.err
    assert cli("wait", "nothere", "--for=Ready", "--timeout", 1).code == 3

    document = cli.ok("ps", name, "-o", "json").json
    conditions = {one["type"]: one for one in document["status"]["conditions"]}
    assert set(conditions) == {"Loaded", "Proved", "Ready", "Progressing", "Degraded", "Healthy"}
    assert all(one["last_transition_time"] for one in conditions.values())
    assert "AnswersAsRecorded" in cli.ok("ps", name).out

    health = cli.ok("health", name)
    assert "ProbePassed" in health.out
    figures = cli.ok("health", name, "-o", "json").json
    assert figures["servers"][0]["results"][0]["outcome"] == "passed"
    assert figures["servers"][0]["summary"]["drift_absolute"] is not None

    cli.ok("unload", name, "--no-wait")
    assert "is Unloaded" in cli.ok("wait", name, "--for=unloaded", "--timeout", "60s").out


def test_report_is_created_by_deploy_and_kept(cli: Cli, doubling: Path, tripling: Path) -> None:
    name = "examined"
    cli.ok("push", name, doubling)
    before = cli.ok("report", name)
    assert "no report for examined:1 yet" in before.out
    cli.ok("deploy", name, "--wait")
    cli.ok("push", name, tripling)
    cli.ok("deploy", f"{name}:2", "--wait", "--auto-rollback", "--max-latency-ratio", 1000)
    shown = cli.ok("report", name).out
    for part in ("artifact", "configuration", "numbers", "performance", "measured alternately", "verified by SHA-256"):
        assert part in shown
    (newest,) = cli.ok("report", f"{name}:2", "-o", "json").json
    assert newest["verdict"] == "passed"
    assert newest["checks"][0]["details"]["opset"] <= newest["checks"][0]["details"]["newest_opset_of_backend"]
    settings = cli.ok("ps", name, "-o", "json").json["spec"]["settings"]
    assert settings["auto_rollback"] is True
    assert settings["max_latency_ratio"] == 1000
