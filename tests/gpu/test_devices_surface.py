"""Devices over REST, in Prometheus' text and on the command line: the real application, with GPUs of the stand-in."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from controlplane.settings import Settings, TritonServerSettings, TritonSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.nvml import GIB, Machine, gpu
from tests.support.processes import running, wait_until
from tests.support.triton import running_triton

pytestmark = [pytest.mark.triton, pytest.mark.slow]

TRITONCTL = (sys.executable, "-m", "controlplane.cli.main")


@dataclass(frozen=True)
class Site:
    """A control plane as a process, on a machine with GPUs."""

    machine: Machine
    environment: dict[str, str]
    http: httpx.Client

    def devices(self) -> dict[str, dict[str, Any]]:
        """Read the devices, after those that were read last are no longer fresh."""
        time.sleep(0.6)
        (server,) = self.http.get("/v1/devices").raise_for_status().json()["items"]
        assert (server["server"], server["error"]) == ("embedded", "")
        return {device["name"]: device for device in server["devices"]}

    def tritonctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TRITONCTL, *arguments], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="module")
def site(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    machine = Machine(library, folder / "gpus")
    machine.has(count=2, **gpu(0), **gpu(1))
    environment = machine.environment | {
        "TRITONCTL_DATA_DIR": str(folder / "data"),
        "CONTROLPLANE_MEMORY__BUDGET_BYTES": json.dumps({"gpu:1": 5 * GIB}),
        "COLUMNS": "250",
    }
    ready, log = folder / "data/up.json", folder / "log"
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with running([*TRITONCTL, "up", "--port", "0"], log) as process:
            os.environ.clear()
            os.environ.update(before)
            wait_until(ready.exists, process, log)
            with httpx.Client(base_url=json.loads(ready.read_text())["url"], timeout=30) as http:
                yield Site(machine, environment, http)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def gpus(site: Site) -> Site:
    """The site with two good GPUs."""
    site.machine.has(count=2, **gpu(0), **gpu(1))
    return site


def test_rest_api_lists_gpus_with_budgets(gpus: Site) -> None:
    read = gpus.devices()
    assert list(read) == ["host", "gpu:0", "gpu:1"]
    assert (read["gpu:0"]["used_bytes"], read["gpu:0"]["free_bytes"]) == (4 * GIB, 136 * GIB)
    assert read["gpu:0"]["budget_bytes"] == 126 * GIB, "nine tenths, where nothing else was said"
    assert read["gpu:1"]["budget_bytes"] == 5 * GIB
    assert read["gpu:0"]["processes"] == [{"pid": 100, "bytes": 1000}, {"pid": 200, "bytes": 2000}]
    assert read["host"]["budget_bytes"] == int(read["host"]["total_bytes"] * 0.8)
    gpus.machine.has(count=2, **gpu(0, used=50 * GIB), **gpu(1))
    assert gpus.devices()["gpu:0"]["used_bytes"] == 51 * GIB


def test_rest_api_and_metrics_show_lost_gpu(gpus: Site) -> None:
    gpus.devices()
    gpus.machine.has(count=2, gpu0__lost=15, **gpu(0), **gpu(1))
    read = gpus.devices()
    assert (read["gpu:0"]["lost"], read["gpu:0"]["used_bytes"], read["gpu:0"]["budget_bytes"]) == (True, None, 0)
    assert read["gpu:1"]["error"] == ""
    lines = gpus.http.get("/metrics").text.splitlines()
    labels = 'kind="gpu",server="embedded",uuid="GPU-{0}aaa"}} '
    assert 'tritonctl_device_up{device="gpu:0",' + labels.format(0) + "0.0" in lines
    assert 'tritonctl_device_up{device="gpu:1",' + labels.format(1) + "1.0" in lines
    assert 'tritonctl_device_power_watts{device="gpu:1",' + labels.format(1) + "118.5" in lines
    assert not any(line.startswith('tritonctl_device_power_watts{device="gpu:0"') for line in lines)


def test_cli_lists_devices(gpus: Site) -> None:
    gpus.devices()
    gpus.machine.has(count=2, gpu0__lost=15, **gpu(0), **gpu(1, throttle="0x4", ecc_uncorrected=3))
    time.sleep(0.6)
    shown = gpus.tritonctl("devices", "-o", "wide")
    assert shown.returncode == 0, shown.stderr
    heading, *rows = [line.split() for line in shown.stdout.splitlines()]
    assert heading[:4] == ["SERVER", "DEVICE", "PRODUCT", "TOTAL"]
    assert [row[1] for row in rows] == ["host", "gpu:0", "gpu:1"]
    lost, slow = shown.stdout.splitlines()[2:]
    assert "lost: NVML reports 'GPU is lost'" in lost
    assert "3 uncorrected memory errors; throttled: sw_power_cap" in slow
    assert "37%" in slow
    assert "118 of 700 W" in slow
    documents = json.loads(gpus.tritonctl("devices", "--server", "embedded", "-o", "json").stdout)
    assert [device["name"] for device in documents[0]["devices"]] == ["host", "gpu:0", "gpu:1"]
    unknown = gpus.tritonctl("devices", "--server", "unknown")
    assert unknown.returncode == 3
    assert "the servers are: embedded" in unknown.stderr


def test_cli_selects_gpus_and_refuses_absent_ones(gpus: Site, tmp_path: Path) -> None:
    gpus.devices()
    (tmp_path / "double.onnx").write_bytes(onnx_scale(2))
    assert gpus.tritonctl("push", str(tmp_path / "double.onnx")).returncode == 0
    planned = gpus.tritonctl("plan", "deploy", "double", "--gpu-count", "1")
    assert planned.returncode == 0, planned.stderr
    # The smaller gap: the budget of gpu:1 is 5 GiB.
    assert " on gpu:1, 1 of 2 GPUs; it fits into " in planned.stdout, planned.stdout
    for options, why in (
        (("--gpu-count", "3"), "the only server does not have 3 GPUs"),
        (("--gpu-product", "B200"), "the only server does not have 1 GPU of product 'B200'"),
        (("--gpu-min-memory", "200GiB"), "the only server does not have 1 GPU with at least 200 GiB"),
        (("--gpu", "5"), "the only server does not have the GPUs 5"),
    ):
        refused = gpus.tritonctl("plan", "deploy", "double", *options)
        assert (refused.returncode, why in refused.stdout) == (7, True), refused.stdout
    failed = gpus.tritonctl("deploy", "double", "--gpu-count", "3", "--wait")
    assert (failed.returncode, "the only server does not have 3 GPUs" in failed.stderr) == (7, True), failed.stderr
    wrong = gpus.tritonctl("deploy", "double", "--kind", "cpu", "--gpu-count", "1")
    assert (wrong.returncode, "cannot be given together with instance_kind" in wrong.stderr) == (6, True), wrong.stderr
    assert gpus.tritonctl("undeploy", "double").returncode == 0


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(settings_for(tmp_path_factory.mktemp("api"), embedded=True)) as running_api:
        yield running_api


def host(api: Api) -> dict[str, Any]:
    time.sleep(0.6)
    (server,) = api.ok(api.http.get("/v1/devices", params={"server": "embedded"}))["items"]
    device: dict[str, Any] = server["devices"][0]
    assert device["name"] == "host"
    return device


def test_process_of_loaded_model_is_listed_on_host(api: Api) -> None:
    before = {one["pid"] for one in host(api)["processes"]}
    assert len(before) == 1, "the server itself"
    api.publish("resident", onnx_scale(2))
    api.deploy("resident")
    (new,) = [one for one in host(api)["processes"] if one["pid"] not in before]
    assert "resident" in " ".join(psutil.Process(new["pid"]).cmdline())
    assert new["bytes"] == pytest.approx(psutil.Process(new["pid"]).memory_info().rss, rel=0.3)


def test_unknown_server_is_not_found(api: Api) -> None:
    problem = api.problem(api.http.get("/v1/devices", params={"server": "unknown"}), 404, "not-found")
    assert "the servers are: embedded" in problem["detail"]


def test_remote_server_reports_devices_despite_other_server_down(tmp_path: Path) -> None:
    with running_triton(tmp_path / "elsewhere") as triton:
        settings: Settings = settings_for(tmp_path / "here", embedded=False)
        up = TritonServerSettings(
            name="up",
            grpc_url=triton.server.grpc_url,
            metrics_url=triton.server.metrics_url,
            repository=triton.server.repository,
        )
        down = TritonServerSettings(
            name="down", grpc_url="127.0.0.1:1", metrics_url="http://127.0.0.1:1/metrics", repository=tmp_path / "down"
        )
        settings = settings.model_copy(update={"triton": TritonSettings(servers=(up, down))})
        with serving(settings) as api:
            while True:
                first, second = api.ok(api.http.get("/v1/devices"))["items"]
                if first["devices"] and not first["devices"][0]["error"]:
                    break
                time.sleep(0.1)
    assert (first["server"], first["error"]) == ("up", "")
    assert first["devices"][0]["total_bytes"] == psutil.virtual_memory().total
    assert (second["server"], second["observed_at"], second["devices"]) == ("down", None, [])
    assert "the metrics at http://127.0.0.1:1/metrics cannot be read" in second["error"]
