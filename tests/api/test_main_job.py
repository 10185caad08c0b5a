"""Publish, deploy, infer, deploy a new version and roll back over REST, with a real Triton."""

import json
import time

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.support.api import Api, onnx_scale, serving, settings_for

pytestmark = pytest.mark.triton


def test_deploy_a_new_version_and_roll_back(api: Api) -> None:
    first = api.publish("job", onnx_scale(2), aliases=["champion"], labels={"git": "abc"}, metrics={"accuracy": 0.9})
    assert (first["version"], first["reference"], first["golden_samples"]) == (1, "job:1", 3)
    operation = api.deploy("job:1")
    assert operation["state"] == "succeeded"
    assert api.infer("job", [1.0, 2.0]) == ([2.0, 4.0], 1)

    assert api.publish("job", onnx_scale(3))["version"] == 2
    assert api.deploy("job")["result"]["version"] == 2
    assert api.infer("job", [1.0, 2.0], [3.0, 4.0]) == ([3.0, 6.0, 9.0, 12.0], 2)

    back = api.ok(api.http.post("/v1/deployments/job/rollback", json={"reason": "too slow"}), 202)
    assert back["spec"]["reference"] == "job:1"
    assert api.operation(back["operation_id"])["state"] == "succeeded"
    assert api.infer("job", [1.0, 2.0]) == ([2.0, 4.0], 1)

    page = api.ok(api.http.get("/v1/deployments/job/revisions"))
    assert [(item["number"], item["spec"]["version"], item["actor"]) for item in page["items"]] == [
        (3, 1, "ada"),
        (2, 2, "ada"),
        (1, 1, "ada"),
    ]
    assert page["items"][0]["reason"] == "rollback to revision 1 (job:1): too slow"
    # The version that is baking, or serving, cannot be deleted; the model neither.
    api.problem(api.http.delete("/v1/models/job/versions/1"), 409, "in-use")
    api.problem(api.http.delete("/v1/models/job"), 409, "in-use")


def test_triton_answers_directly_for_the_deployed_version(api: Api) -> None:
    api.publish("direct", onnx_scale(5))
    api.deploy("direct")
    server = api.ok(api.http.get("/v1/servers"))["items"][0]
    assert server["state"] == "Ready"
    assert server["embedded"]
    with InferenceServerClient(server["grpc_url"]) as client:
        tensor = InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2]], dtype=np.float32))
        assert client.infer("direct", [tensor]).as_numpy("y").tolist() == [[5.0, 10.0]]
    loaded = {"model": "direct", "version": 1, "state": "READY", "reason": ""}
    while loaded not in api.ok(api.http.get(f"/v1/servers/{server['name']}"))["models"]:
        time.sleep(0.05)  # the list is what the reconciler saw last


def test_deployment_follows_its_alias(api: Api) -> None:
    api.publish("follow", onnx_scale(2), aliases=["champion"])
    api.publish("follow", onnx_scale(4))
    assert api.deploy("follow@champion")["result"]["version"] == 1
    api.ok(api.http.put("/v1/models/follow/aliases/champion", json={"version": 2}))
    events = api.ok(api.http.get("/v1/events", params={"limit": 1000}))
    with api.http.stream("GET", "/v1/events", params={"after": events["last_id"], "follow": True}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                if event["subject"] == "follow" and event["reason"] == "Ready":
                    break
    assert api.infer("follow", [1.0, 1.0]) == ([4.0, 4.0], 2)


def test_unload_load_and_undeploy(api: Api) -> None:
    api.publish("moods", onnx_scale(2))
    api.deploy("moods")
    unloaded = api.ok(api.http.post("/v1/deployments/moods/unload"), 202)
    assert api.operation(unloaded["operation_id"])["result"]["phase"] == "Unloaded"
    inputs = {"inputs": [{"name": "x", "data": [[1, 2]]}]}
    problem = api.problem(api.http.post("/v1/deployments/moods/infer", json=inputs), 409, "conflict")
    assert "Unloaded" in problem["detail"]
    loaded = api.ok(api.http.post("/v1/deployments/moods/load", json={"reason": "needed"}), 202)
    assert api.operation(loaded["operation_id"])["result"]["phase"] == "Ready"
    assert api.infer("moods", [1.0, 2.0])[0] == [2.0, 4.0]

    gone = api.ok(api.http.delete("/v1/deployments/moods", params={"reason": "over"}), 202)
    assert api.operation(gone["operation_id"])["state"] == "succeeded"
    api.problem(api.http.get("/v1/deployments/moods"), 404, "not-found")
    assert "moods" not in [item["model"] for item in api.ok(api.http.get("/v1/deployments"))["items"]]
    assert api.ok(api.http.get("/v1/deployments/moods/revisions"))["items"][0]["reason"] == "over"
    assert api.deploy("moods")["state"] == "succeeded"


def test_version_that_fails_its_proof_never_becomes_active(api: Api) -> None:
    api.publish("honest", onnx_scale(2))
    api.deploy("honest")
    # The recorded answers are changed behind everybody's back: the model no longer computes what was recorded.
    wrong = {"y": {"absolute": 0.0, "relative": 0.0}}
    api.publish("honest", onnx_scale(3), tolerances=wrong)
    registry = api.plane.registry
    manifest = registry.manifest("honest", 2)
    assert manifest.golden is not None
    other = registry.manifest("honest", 1)
    assert other.golden is not None
    lying = manifest.model_copy(update={"golden": other.golden})
    registry.publish("honest", lying, {}, actor="mallory")
    operation = api.deploy("honest:3")
    assert operation["state"] == "failed"
    assert operation["error"]["code"] == "deployment-failed"
    assert operation["error"]["details"]["phase"] == "Degraded"
    assert "y" in operation["error"]["detail"]
    assert api.infer("honest", [1.0, 2.0]) == ([2.0, 4.0], 1)


def test_a_conversion_is_compared_published_and_deployed(api: Api) -> None:
    api.publish("source", onnx_scale(2))
    body = {"source": "source:1", "target": "onnx", "options": {"precision": "fp16"}, "model": "half"}
    result = api.done(api.http.post("/v1/conversions", json=body))
    assert result["reference"] == "half:1"
    assert result["parity"]["outputs"][0]["agrees"]
    detail = api.ok(api.http.get("/v1/models/half/versions/1"))
    assert detail["manifest"]["lineage"]["source"] == "source:1"
    assert detail["manifest"]["golden"]["count"] == 3
    assert api.http.get("/v1/models/half/versions/1/log").status_code == 200
    assert api.deploy("half:1")["state"] == "succeeded"
    assert api.infer("half", [1.0, 2.0])[0] == pytest.approx([2.0, 4.0], rel=1e-2)


def test_metrics_cover_requests_deployments_and_servers(api: Api) -> None:
    api.publish("counted", onnx_scale(2))
    api.deploy("counted")
    text = api.http.get("/metrics").text
    assert "process_open_fds" in text
    assert 'tritonctl_http_requests_total{method="PUT",route="/v1/deployments/{model}",status="202"}' in text
    assert 'tritonctl_server_up{server="embedded"} 1.0' in text
    assert 'tritonctl_serving_version{model="counted",server="embedded"} 1.0' in text
    assert 'tritonctl_operations_total{kind="publish",state="succeeded"}' in text


def test_restart_restores_the_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = settings_for(tmp_path_factory.mktemp("restart"), embedded=True)
    with serving(settings) as before:
        before.publish("stays", onnx_scale(2))
        before.deploy("stays")
        operation = before.http.get("/v1/operations").json()["items"][0]
        half = before.ok(
            before.http.post("/v1/uploads", json={"files": [{"path": "a", "size_bytes": 4, "sha256": "0" * 64}]}), 201
        )
    with serving(settings) as after:
        deployment = after.ok(after.http.get("/v1/deployments/stays/wait", params={"timeout": 60}))
        assert deployment["status"]["phase"] == "Ready"
        assert after.infer("stays", [1.0, 2.0]) == ([2.0, 4.0], 1)
        assert after.operation("deploy.stays.1")["state"] == "succeeded"
        assert after.operation(operation["id"]) == operation
        assert after.ok(after.http.get(f"/v1/uploads/{half['id']}"))["files"][0]["state"] == "missing"
