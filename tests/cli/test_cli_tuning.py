"""`tritonctl tune`: its output, cancellation, and cleanup after `up` was killed."""

import json
import os
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Cli

pytestmark = [pytest.mark.triton, pytest.mark.long]

_HEADINGS = ["SETTING", "ROUND", "CLIENTS", "REQUESTS/S", "±", "P50", "MS", "P99", "MS", "ANSWERS", "MEMORY", "STATE"]
QUICK = ("--settings", 2, "--window", 0.1, "--clients", 2, "--instances", 1, "--threads", 0, "--queue-delay-us", 100)


def test_tune_prints_and_plots_the_measurements(cli: Cli, published: str, tmp_path: Path) -> None:
    plot = tmp_path / "frontier.svg"
    shown = cli.ok("tune", published, *QUICK, "--plot", plot)
    header, present, other = shown.out.splitlines()[:3]
    assert header.split() == _HEADINGS
    assert "=" in present.split()[0]
    assert "1 instance " in present
    assert "MiB" in present
    assert "after 100 µs" in other
    assert "the highest throughput" in shown.out
    assert "round 1: 1 instance: 2 clients" in shown.err
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")

    failed = cli("tune", published, *QUICK, "--max-p99-ms", 0.001, "--apply", "-o", "json")
    assert failed.code == 7
    assert "no setting meets the objective" in failed.err
    assert failed.json["met"] is False
    assert len(failed.json["trials"]) == 2
    assert failed.json["applied_revision"] is None


def test_invalid_tune_options_give_their_exit_code(cli: Cli, published: str, tmp_path: Path) -> None:
    assert cli("tune", published, "--memory-limit", "lots").code == 6
    assert cli("tune", published, "--plot", tmp_path / "nowhere" / "a.svg").code == 6
    assert cli("tune", "nothere").code == 3
    assert cli("tune", published, "--objective", "speed").code == 2


def test_tune_removes_its_copy_after_ctrl_c_and_after_a_crash(fresh: Cli, doubling: Path) -> None:
    fresh.ok("up", "--detach", "--port", 0)
    fresh.ok("push", "steady", doubling, "--deploy")
    copy = fresh.data_dir / "model_repository" / "steady~tune"

    def tuning() -> list[str]:
        return [str(pid) for pid in fresh.tritons() if b"steady~tune" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def until(condition: object, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < end
            time.sleep(0.05)

    stopped = fresh.start("tune", "steady", "--window", 30)
    until(tuning)
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, output
    assert "Traceback" not in output
    assert "cancelling" in output
    assert not copy.exists()
    assert not tuning()

    killed = fresh.start("tune", "steady", "--window", 30)
    until(tuning)
    os.kill(int(json.loads((fresh.data_dir / "up.json").read_text())["pid"]), signal.SIGKILL)
    output, _ = killed.communicate(timeout=60)
    assert killed.returncode == 4, output
    until(lambda: not fresh.tritons())
    assert copy.exists(), "the test must see something removed"
    fresh.ok("up", "--detach", "--port", 0)
    until(lambda: not copy.exists())
    fresh.ok("wait", "steady")
    assert not tuning()
    fresh.ok("tune", "steady", *QUICK)
