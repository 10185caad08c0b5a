"""The memory commands, on a real `up` with a budget for two of three models."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controlplane.cli.views.memory import BAR_WIDTH, bar
from controlplane.client.memory import DeviceMemory
from controlplane.domain.durations import parse_duration, parse_keep_alive
from controlplane.errors import InvalidInputError
from tests.cli.conftest import TRITONCTL, Cli
from tests.support.models import affine_onnx

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """Three models on demand; two of them fit."""
    root = tmp_path_factory.mktemp("room")
    cli = Cli(root / "data", root)
    budget = {
        "CONTROLPLANE_MEMORY__BUDGET_BYTES": json.dumps({"host": 450 * MIB}),
        "CONTROLPLANE_MEMORY__MINIMUM_RESIDENCE_SECONDS": "0.1",
        "CONTROLPLANE_MEMORY__EVICTION_POLICY": "lru",
    }
    with cli.up(**budget):
        for name in NAMES:
            cli.ok("push", name, affine_onnx(root / f"{name}.onnx", scale=2.0, resident_mib=80))
            result = cli.ok("deploy", name, "--mode", "on-demand", "--keep-alive", "1h30m", "--wait")
            assert f"{name}:1 is deployed but not loaded: on demand" in result.out
        yield cli


def _states(cli: Cli) -> dict[str, str]:
    (server,) = cli.ok("memory", "-o", "json").json
    return {model["model"]: model["state"] for model in server["models"]}


@pytest.mark.triton
def test_load_evicts_another_model_and_why_explains_it(room: Cli) -> None:
    room.ok("load", "one")
    room.ok("load", "two")
    plan = room.ok("plan", "load", "three")
    assert "can load after evictions" in plan.out
    assert re.search(r"^one +\d", plan.out, re.MULTILINE), plan.out
    assert _states(room) == {"one": "loaded", "two": "loaded", "three": "unloaded"}
    loaded = room.ok("load", "three", "--timeout", 60)
    assert "three is loaded after" in loaded.out
    assert _states(room) == {"one": "unloaded", "two": "loaded", "three": "loaded"}

    why = room.ok("why", "one")
    assert "one:1 is unloaded on embedded" in why.out
    assert "one was evicted" in why.out
    assert "three" in why.out
    shown = room.ok("memory").out
    assert "embedded  host" in shown
    assert "█" in shown
    assert "latest evictions" in shown
    assert "next evictions, if memory is needed (lru): two, three" in shown
    listed = room.ok("ps", "-o", "wide").out
    row = next(line for line in listed.splitlines() if line.startswith("three"))
    assert "MiB" in row
    assert "on-demand" in row
    assert "in 1 h" in row or "in 90 min" in row or "in 89 min" in row
    assert "holds" in room.ok("ps", "three").out.lower()


@pytest.mark.triton
def test_top_prints_once_without_a_terminal(room: Cli) -> None:
    lines = room.ok("top", "--sort", "name").out.splitlines()
    names = [line.split()[0] for line in lines if line.split()[0] in NAMES]
    assert names == sorted(NAMES)
    assert any("models loaded" in line for line in lines)
    assert [item["model"] for item in room.ok("top", "--sort", "name", "-o", "json").json] == sorted(NAMES)


@pytest.mark.triton
def test_top_updates_until_q_is_pressed(room: Cli) -> None:
    main, child = pty.openpty()
    environment = {**room.environment, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    process = subprocess.Popen(
        [*TRITONCTL, "top", "--interval", "0.2"], stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65_536)

    try:
        wait_for(b"sorted by memory")
        os.write(main, b"n")
        wait_for(b"sorted by name")
        os.write(main, b"u")
        wait_for(b"sorted by used")
        os.write(main, b"q")
        wait_for(b"\x1b[?1049l")  # the screen is restored
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


def held_until(room: Cli, model: str) -> str | None:
    (server,) = room.ok("why", model, "-o", "json").json["servers"]
    until: str | None = server["model"]["held_until"]
    return until


def wait_for_release(room: Cli, model: str) -> None:
    """Wait until the loop has applied the end of a hold."""
    deadline = time.monotonic() + 60
    while held_until(room, model) is not None:
        assert time.monotonic() < deadline, "the release is not applied"


@pytest.mark.triton
def test_hold_keeps_model_loaded_while_a_command_runs(room: Cli) -> None:
    inner = [*TRITONCTL, "why", "one", "-o", "json"]
    held = room.ok("hold", "one", "--ttl", "10m", "--", *inner)
    (server,) = json.loads(held.out)["servers"]
    assert server["model"]["state"] == "loaded"
    assert server["model"]["held_until"] is not None
    wait_for_release(room, "one")
    assert room("hold", "one", "--", "sh", "-c", "exit 3").code == 3
    assert room("hold", "one", "--", "no-such-command").code == 127
    assert room("hold", "nothere", "--", "true").code == 3
    assert room("hold", "one", "--ttl", "soon", "--", "true").code == 6


@pytest.mark.triton
def test_hold_is_renewed_and_released_by_ctrl_c(room: Cli) -> None:
    running = room.start("hold", "two", "--ttl", "5s")
    try:
        assert running.stdout is not None
        while "is loaded and held" not in (line := running.stdout.readline()):
            assert line, "it ended"
        time.sleep(8)
        assert held_until(room, "two") is not None
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0
    url = json.loads((room.data_dir / "up.json").read_text())["url"]
    assert httpx.get(f"{url}/v1/deployments/two/holds").json()["items"] == []


@pytest.mark.triton
def test_impossible_load_is_refused_by_plan_and_by_load(room: Cli, tmp_path: Path) -> None:
    plan = room("plan", "deploy", "one", "--instances", 16)
    assert plan.code == 7
    assert "not possible" in plan.out
    before = room.ok("ps", "one", "-o", "json").json["revision"]
    assert room("plan", "load", "one:1").code == 6
    assert room.ok("ps", "one", "-o", "json").json["revision"] == before
    room.ok("push", "huge", affine_onnx(tmp_path / "huge.onnx", scale=2.0, resident_mib=80))
    room.ok("deploy", "huge", "--mode", "on-demand", "--priority", 3, "--instances", 16, "--keep-alive", "forever")
    settings = room.ok("ps", "huge", "-o", "json").json["spec"]["settings"]
    assert (settings["priority"], settings["keep_alive_seconds"]) == (3, None)
    refused = room("load", "huge", "-o", "json")
    assert refused.code == 5
    assert refused.json["error"]["code"] == "insufficient-memory"
    (server,) = refused.json["error"]["details"]["servers"]
    assert server["needed"]["host"] > 450 * MIB
    pinned = room("deploy", "huge", "--mode", "pinned", "--wait")
    assert pinned.code == 7
    assert room("wait", "huge", "--timeout", 20).code == 7
    room.ok("undeploy", "huge")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("5m", 300.0), ("1h30m", 5400.0), ("2d", 172_800.0), ("0", 0.0)]
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_keep_alive("forever") is None


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "-3s", "1h-5m"])
def test_invalid_durations_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("sizes", "drawn"),
    [
        ({"free_bytes": 100}, "·" * 40),
        ({"resident_bytes": 50, "free_bytes": 50}, "█" * 20 + "·" * 20),
        ({"resident_bytes": 100}, "█" * 40),
        ({"resident_bytes": 1, "unaccounted_bytes": 1, "free_bytes": 9_998}, "█░" + "·" * 38),
        ({"resident_bytes": 90, "loading_bytes": 1, "reserved_bytes": 9}, "█" * 35 + "▓" + "▒" * 4),
        ({"resident_bytes": 100, "unaccounted_bytes": 100}, "█" * 20 + "░" * 20),
    ],
)
def test_memory_bar_shows_every_part_above_zero(sizes: dict[str, int], drawn: str) -> None:
    budget = max(sum(sizes.values()), 100) if "unaccounted_bytes" not in sizes else sizes.get("free_bytes", 98) + 2
    device = DeviceMemory.model_validate({"device": "host", "total_bytes": 1000, "budget_bytes": budget, **sizes})
    assert bar(device).plain == drawn
    assert len(bar(device).plain) == BAR_WIDTH


def test_defrag_of_one_server_moves_nothing(room: Cli) -> None:
    assert "nothing to move" in room.ok("defrag", "--dry-run").out
    assert room.ok("defrag", "--limit", 3, "-o", "json").json["moves"] == []
