"""The application as a process: found by its file, alone in its folder, and gone without a trace."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

_RUN = """
import sys
from pathlib import Path
from controlplane.process import run
from controlplane.errors import ControlPlaneError
from controlplane.settings import ApiSettings, Settings, TritonSettings
settings = Settings(data_dir=Path(sys.argv[1]), api=ApiSettings(port=0), triton=TritonSettings(embedded=True))
try:
    run(settings)
except ControlPlaneError as error:
    sys.exit(error.message)
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", _RUN, str(folder)], stderr=subprocess.PIPE, text=True)


def processes_in(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


@pytest.mark.triton
def test_only_one_process_runs_per_folder_and_it_stops_cleanly(tmp_path: Path) -> None:
    process = start(tmp_path)
    ready = tmp_path / "up.json"
    try:
        while not ready.exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        document = json.loads(ready.read_text())
        assert document["pid"] == process.pid
        assert httpx.get(document["url"] + "/healthz").json() == {"status": "ok"}
        assert document["servers"][0]["grpc_url"]
        assert document["servers"][0]["state"] == "Ready"

        second = start(tmp_path)
        _, message = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"pid {process.pid}" in message
        assert ready.exists()

        # A follower of events does not hold the stop up.
        with httpx.stream("GET", document["url"] + "/v1/events?follow=true"):
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        assert process.returncode == 0
        assert not ready.exists()
        assert processes_in(tmp_path) == []
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
