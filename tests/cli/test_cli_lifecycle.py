"""Starting, stopping and killing `up`."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.models import affine_onnx
from tests.support.s3server import S3Server
from tests.support.triton import RunningTriton

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def _record(cli: Cli) -> dict[str, object]:
    record: dict[str, object] = json.loads((cli.data_dir / "up.json").read_text())
    return record


def _wait_for_record(cli: Cli) -> None:
    end = time.monotonic() + 120
    while not (cli.data_dir / "up.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def _gone(cli: Cli) -> bool:
    end = time.monotonic() + 60
    while cli.tritons():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_commands_suggest_up_without_a_control_plane(fresh: Cli) -> None:
    for line in (("ps",), ("push", __file__), ("models", "-o", "json")):
        result = fresh(*line)
        assert result.code == 4
        assert "tritonctl up" in result.err
    assert fresh("down").code == 4


def test_up_starts_again_after_it_was_killed(fresh: Cli) -> None:
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


def test_ctrl_c_stops_up_and_its_triton(fresh: Cli) -> None:
    running = fresh.start("up", "--port", 0)
    try:
        _wait_for_record(fresh)
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


def test_up_reports_a_port_in_use_and_suggests_another(fresh: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = fresh("up", "--detach", "--port", taken.getsockname()[1])
    assert result.code == 5
    assert "another port" in result.err
    assert not fresh.tritons()


def test_invalid_setting_is_named_by_its_variable(fresh: Cli) -> None:
    result = fresh("up", CONTROLPLANE_API__PORT="eighty")
    assert result.code == 6
    assert "CONTROLPLANE_API__PORT" in result.err
    assert fresh("up", "--store", "bogus://x", "--detach").code == 6


def test_failed_doctor_prints_one_json_document(fresh: Cli) -> None:
    result = fresh("doctor", "--data-dir", "/proc/nowhere", "-o", "json")
    assert result.code != 0
    assert "fail" in {finding["status"] for finding in result.json}


def test_doctor_suggests_fixes(fresh: Cli) -> None:
    result = fresh("doctor", "--data-dir", "/proc/nowhere")
    assert result.code == 7
    assert "choose another folder with --data-dir" in result.out
    assert "start it with `tritonctl up`" in result.out
    assert "data folder" in result.err


def test_serve_runs_without_an_embedded_triton(fresh: Cli) -> None:
    serving = fresh.start("serve", "--port", 0, "--store", f"file://{fresh.folder / 'store'}")
    try:
        _wait_for_record(fresh)
        assert fresh.ok("servers", "-o", "json").json == []
        assert fresh.ok("models", "--url", _record(fresh)["url"], "-o", "json").json == []
        assert not fresh.tritons()
    finally:
        serving.terminate()
        output, _ = serving.communicate(timeout=30)
    assert serving.returncode == 0, output


def test_serve_works_with_a_bucket_and_an_external_triton(
    fresh: Cli, moto: S3Server, triton: RunningTriton, tmp_path: Path
) -> None:
    server = triton.server
    address = f"elsewhere={server.grpc_url},{server.http_url},{server.metrics_url},{server.repository}"
    bucket = moto.new_bucket()
    serving = fresh.start(
        *("serve", "--port", 0, "--store", f"s3://{bucket}/registry", "--endpoint", moto.endpoint_url),
        *("--region", "us-east-1", "--triton", address),
        AWS_ACCESS_KEY_ID=moto.access_key_id,
        AWS_SECRET_ACCESS_KEY=moto.secret_access_key,
    )
    try:
        _wait_for_record(fresh)
        fresh.ok("push", "remote", affine_onnx(tmp_path / "remote.onnx", scale=4.0), "--deploy")
        assert fresh.ok("servers", "-o", "json").json[0]["name"] == "elsewhere"
        answer = fresh.ok("infer", "remote", "-i", "-", "-o", "json", stdin='{"x": [[1, 1, 1, 1]]}').json
        assert answer["outputs"][0]["data"] == [4, 4, 4, 4]
        large = affine_onnx(tmp_path / "direct.onnx", scale=9.0, reserve_mib=40)
        sent = fresh.ok("push", "remote", large, "--direct", "--no-golden")
        assert "directly to the bucket" in sent.err
        fresh.ok("pull", "remote:2", fresh.folder / "back")
        assert (fresh.folder / "back" / "model.onnx").read_bytes() == large.read_bytes()
        fresh.ok("undeploy", "remote")
    finally:
        serving.terminate()
        output, _ = serving.communicate(timeout=30)
    assert serving.returncode == 0, output


@pytest.mark.long
def test_demo_completes_and_removes_its_files(fresh: Cli) -> None:
    pytest.importorskip("silero_vad")
    played = fresh.ok("demo", timeout=280, TMPDIR=str(fresh.folder))
    for words in ("parity with the original", "vad:1 is active after", "version 2:", "vad:1 is active again after"):
        assert words in played.out
    assert not list(fresh.folder.glob("tritonctl-*"))
