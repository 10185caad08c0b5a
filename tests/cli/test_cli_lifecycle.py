"""Starting, stopping and killing `up`."""

import json
import os
import signal
import socket
import time

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.triton


def _record(cli: Cli) -> dict[str, object]:
    record: dict[str, object] = json.loads((cli.data_dir / "up.json").read_text())
    return record


def _gone(cli: Cli) -> bool:
    for _ in range(200):
        if not cli.tritons():
            return True
        time.sleep(0.05)
    return False


def test_without_a_control_plane_the_command_that_starts_one_is_named(fresh: Cli) -> None:
    for line in (("ps",), ("push", __file__), ("models", "-o", "json")):
        result = fresh(*line)
        assert result.code == 4
        assert "tritonctl up" in result.err
    assert fresh("down").code == 4


def test_a_killed_up_leaves_nothing_behind_that_is_in_the_way(fresh: Cli) -> None:
    started = fresh.ok("up", "--detach", "--port", 0)
    assert "tritonctl down" in started.out
    first = _record(fresh)
    assert fresh.tritons(), "the test looks for the wrong processes"
    second = fresh("up", "--detach", "--port", 0)
    assert second.code == 5
    assert "already running" in second.err

    os.kill(int(str(first["pid"])), signal.SIGKILL)
    assert _gone(fresh), "Triton outlived the control plane that started it"
    stale = fresh("ps")
    assert (fresh.data_dir / "up.json").exists()
    assert stale.code == 4
    assert "no control plane is running" in stale.err

    fresh.ok("up", "--detach", "--port", 0)
    assert _record(fresh)["pid"] != first["pid"]
    fresh.ok("ps")
    fresh.ok("down")
    assert not fresh.tritons()
    assert not (fresh.data_dir / "up.json").exists()


def test_ctrl_c_stops_everything(fresh: Cli) -> None:
    running = fresh.start("up", "--port", 0)
    try:
        for _ in range(600):
            if (fresh.data_dir / "up.json").exists():
                break
            time.sleep(0.05)
        assert fresh.tritons()
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 0, output
    assert "is up at" in output
    assert "Traceback" not in output
    assert not fresh.tritons()


def test_a_port_that_is_taken_is_said_with_what_to_do(fresh: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = fresh("up", "--detach", "--port", taken.getsockname()[1])
    assert result.code == 1
    assert "another port" in result.err
    assert not fresh.tritons()


def test_serve_runs_without_a_triton_of_its_own(fresh: Cli) -> None:
    serving = fresh.start("serve", "--port", 0, "--store", f"file://{fresh.folder / 'store'}")
    try:
        for _ in range(600):
            if (fresh.data_dir / "up.json").exists():
                break
            time.sleep(0.05)
        assert fresh.ok("servers", "-o", "json").json == []
        assert fresh.ok("models", "--url", _record(fresh)["url"], "-o", "json").json == []
        assert not fresh.tritons()
    finally:
        serving.terminate()
        output, _ = serving.communicate(timeout=30)
    assert serving.returncode == 0, output


@pytest.mark.slow
def test_the_demo_plays_to_its_end_and_leaves_nothing(fresh: Cli) -> None:
    pytest.importorskip("silero_vad")
    played = fresh.ok("demo", timeout=280, TMPDIR=str(fresh.folder))
    for words in ("parity with the original", "vad:1 answers after", "version 2 says", "vad:1 answers again after"):
        assert words in played.out
    assert not list(fresh.folder.iterdir())
