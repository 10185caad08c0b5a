"""The main workflow: publish, deploy, infer, update, roll back."""

import json
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest

from tests.cases.onnx_inputs import sequence_output, write
from tests.cli.conftest import Cli
from tests.support.api import onnx_scale

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def _ask_triton(cli: Cli, model: str) -> tuple[str, float]:
    """Send a request to Triton's own port; return the version that answered and y for x = 1."""
    (server,) = cli.ok("servers", "-o", "json").json
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
    answer = httpx.post(f"{server['http_url']}/v2/models/{model}/infer", json=body).raise_for_status().json()
    return answer["model_version"], answer["outputs"][0]["data"][0]


def test_publish_deploy_update_and_roll_back(cli: Cli, doubling: Path, tripling: Path) -> None:
    pushed = cli.ok("push", doubling, "--alias", "champion", "--metric", "error=0.25", "--label", "git=1a2b")
    assert "published My-doubling-v1:1" in pushed.out
    name = "My-doubling-v1"
    detail = cli.ok("show", f"{name}@champion", "-o", "json").json
    assert detail["manifest"]["metrics"] == {"error": 0.25}
    assert detail["manifest"]["labels"] == {"git": "1a2b"}
    assert detail["entry"]["published_by"] == "ada"

    deployed = cli.ok("deploy", name, "--wait")
    assert f"{name}:1 is active after" in deployed.out
    assert "proved with 3 golden samples through Triton" in deployed.out
    assert _ask_triton(cli, name) == ("1", 2.0)
    again = cli.ok("deploy", name, "--wait")
    assert f"{name}:1 is unchanged and already active (revision 1)" in again.out
    assert "load" not in again.out, "stages of an earlier deployment"
    assert "is unchanged (revision 1)" in cli.ok("deploy", name).out
    assert cli.ok("deploy", name, "-o", "json").json["changed"] is False

    assert cli.ok("push", name, tripling, "-o", "json").json["version"] == 2
    cli.ok("deploy", f"{name}:2", "--wait", "--reason", "three is more")
    assert _ask_triton(cli, name) == ("2", 3.0)
    (line,) = [one for one in cli.ok("ps", "-o", "json").json if one["model"] == name]
    assert line["status"]["phase"] == "Ready"
    assert line["status"]["servers"][0]["loaded_versions"] == [1, 2]

    back = cli.ok("rollback", name, "--reason", "two is enough")
    assert f"{name}:1 is active again after" in back.out
    assert "of which Triton's switch took" in back.out
    assert _ask_triton(cli, name) == ("1", 2.0)

    history = cli.ok("history", name).out
    assert "three is more" in history
    assert "two is enough" in history
    assert cli.ok("rollback", name, "--to", 2, "-o", "json").json["spec"]["version"] == 2

    assert "is unloaded" in cli.ok("unload", name).out
    assert cli("infer", name, "--sample").code == 5
    assert "is loaded" in cli.ok("load", name).out
    assert "is undeployed" in cli.ok("undeploy", name).out
    cli.ok("alias", f"{name}@champion", "--remove")
    cli.ok("rm", f"{name}:1")
    assert [one["number"] for one in cli.ok("versions", name, "-o", "json").json] == [2]
    cli.ok("rm", name, "--yes")
    assert name not in cli.ok("models").out
    assert "would remove" in cli.ok("gc", "--dry-run", "--grace-seconds", 0).out


def test_infer_reads_and_writes_all_formats(cli: Cli, published: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "request.npz", x=np.full((1, 4), 1.5, np.float32))
    table = cli.ok("infer", published, "--input", tmp_path / "request.npz", "--save", tmp_path / "answer.npz").out
    assert "3 3 3 3" in table
    with np.load(tmp_path / "answer.npz") as answer:
        np.testing.assert_array_equal(answer["y"], np.full((1, 4), 3.0, np.float32))

    simple = cli.ok("infer", published, "-i", "-", "-o", "json", stdin='{"x": [[1, 2, 3, 4]]}').json
    assert simple["outputs"][0]["data"] == [2, 4, 6, 8]
    protocol = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [5, 6, 7, 8]}]}
    full = cli.ok("infer", published, "-i", "-", "-o", "json", stdin=json.dumps(protocol)).json
    assert full["outputs"][0]["data"] == [10, 12, 14, 16]
    assert cli.ok("infer", published, "--sample", "-o", "json").json["model_version"] == "1"


def test_deployment_follows_its_alias(cli: Cli, doubling: Path, tripling: Path) -> None:
    cli.ok("push", "followed", doubling, "--alias", "live")
    cli.ok("push", "followed", tripling)
    cli.ok("deploy", "followed@live", "--wait")
    cli.ok("alias", "followed@live", 2)
    for _ in range(100):
        if cli.ok("wait", "followed", "-o", "json").json["spec"]["version"] == 2:
            break
    assert _ask_triton(cli, "followed") == ("2", 3.0)
    cli.ok("undeploy", "followed")


def test_deploy_keeps_settings_that_are_not_given(cli: Cli, doubling: Path) -> None:
    cli.ok("push", "tuned", doubling)
    cli.ok("deploy", "tuned", "--max-batch-size", 4, "--bake-seconds", 60, "--no-wait")
    cli.ok("deploy", "tuned", "--set", '{"dynamic_batching": {"max_queue_delay_microseconds": 50}}', "--wait")
    settings = cli.ok("ps", "tuned", "-o", "json").json["spec"]["settings"]
    assert (settings["max_batch_size"], settings["bake_seconds"]) == (4, 60)
    assert settings["dynamic_batching"]["max_queue_delay_microseconds"] == 50
    cli.ok("undeploy", "tuned")


def test_servers_reports_addresses_and_state(cli: Cli) -> None:
    servers = cli.ok("servers", "-o", "json").json
    assert isinstance(servers, list)
    for key in ("name", "grpc_url", "http_url", "metrics_url", "state"):
        assert servers[0][key]
    assert servers[0]["state"] == "Ready"
    assert "nv_" in httpx.get(servers[0]["metrics_url"]).text


def test_events_follow_prints_new_events(cli: Cli, published: str, doubling: Path) -> None:
    assert "Ready" in cli.ok("events").out
    last = cli.ok("events", "-o", "json").json[-1]["id"]
    following = cli.start("events", "--follow", "-o", "json", "--after", last)
    try:
        cli.ok("push", "eventful", doubling, "--deploy")
        assert following.stdout is not None
        for line in following.stdout:
            event = json.loads(line)
            assert event["id"] > last
            if (event["subject"], event["reason"]) == ("eventful", "Ready"):
                break
    finally:
        following.send_signal(2)
        assert following.wait(60) == 130
        assert following.stdout is not None
        following.stdout.close()
    cli.ok("undeploy", "eventful")


def test_doctor_passes_on_a_healthy_installation(cli: Cli) -> None:
    findings = {one["name"]: one for one in cli.ok("doctor", "-o", "json").json}
    assert {"python", "glibc", "triton", "data folder", "store", "control plane", "server embedded"} <= set(findings)
    assert all(one["status"] != "fail" for one in findings.values())


def test_validate_reports_the_format_and_publishes_nothing(cli: Cli, doubling: Path) -> None:
    before = cli.ok("models", "-o", "json").json
    report = cli.ok("validate", doubling, "-o", "json").json
    assert report["ok"] is True
    assert report["format"] == "onnx"
    assert cli.ok("models", "-o", "json").json == before


def test_failed_validate_prints_one_document_and_push_agrees(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path, sequence_output)
    result = cli("validate", path, "-o", "json")
    assert (result.code, result.json["ok"]) == (6, False)
    assert "'y' is a sequence" in result.json["checks"][-1]["message"]
    pushed = cli.ok("push", "sequences", path)
    assert "Triton cannot serve this version: output 'y' is a sequence" in pushed.err + pushed.out
    assert cli.ok("versions", "sequences", "-o", "json").json[0]["servable"] is False
    assert "servable" in cli.ok("show", "sequences").out
    refused = cli("deploy", "sequences")
    assert refused.code != 0
    assert "cannot be deployed, since Triton cannot serve it: output 'y' is a sequence" in refused.err


def test_validate_accepts_a_published_version(cli: Cli, doubling: Path) -> None:
    cli.ok("push", "validated", doubling)
    assert cli.ok("validate", "validated:1", "-o", "json").json["ok"] is True
    shown = cli.ok("validate", "validated:1").out
    assert "validated:1" in shown
    assert "can load the model" in shown
    absent, missing = cli("validate", "validated:7"), cli("validate", "nowhere.onnx")
    assert (absent.code, missing.code) == (3, 6)
    assert "has no version 7" in absent.err
    assert "no such file" in missing.err


def test_validate_and_show_compare_a_version_with_named_targets(cli: Cli, tmp_path: Path) -> None:
    newer = onnx.load_from_string(onnx_scale(2))
    newer.opset_import[0].version = 22
    path = tmp_path / "newer.onnx"
    path.write_bytes(newer.SerializeToString())
    cli.ok("push", "newer", path)

    report = cli.ok("validate", "newer:1", "-o", "json").json
    loads = {one["target"]: one["loads"] for one in report["portability"]}
    assert (loads["embedded"], loads["25.03"], loads["25.02"]) == ("yes", "yes", "no")
    assert report["checks"][-1]["name"] == "portability"
    assert "does not load on 24.04 to 25.02" in report["checks"][-1]["message"]

    reason = "its opset of ai.onnx is 22, and ONNX Runtime 1.19.2 loads up to 21"
    refused = cli("validate", path, "--target", "24.10", "--target", "embedded")
    assert refused.code == 6
    assert f"24.10: {reason}" in refused.err
    cli.ok("validate", path, "--target", "25.03", "--target", "embedded")
    unknown = cli("validate", path, "--target", "nowhere")
    assert unknown.code == 6
    assert "unknown target 'nowhere'; use embedded, the release of an image such as 26.08" in unknown.err

    shown = cli.ok("show", "newer:1", "--target", "24.10", "-o", "json").json["portability"]
    assert [(one["target"], one["loads"], one["reasons"]) for one in shown] == [("24.10", "no", [reason])]
    assert "24.04 to 25.02" in cli.ok("show", "newer:1").out


@pytest.mark.long
def test_convert_publishes_and_converts_a_local_torch_file(cli: Cli, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    exported = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(3, 4),))
    torch.export.save(exported, tmp_path / "linear.pt2")
    done = cli.ok("convert", tmp_path / "linear.pt2", "--to", "onnx", "-o", "json").json
    assert (done["source"], done["reference"]) == ("linear:1", "linear:2")
    assert all(output["agrees"] for output in done["parity"]["outputs"])
    assert cli.ok("show", "linear:2", "-o", "json").json["manifest"]["lineage"]["source"] == "linear:1"
