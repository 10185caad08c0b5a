"""A control plane without a Triton of its own: two instances on one bucket, and a server that runs elsewhere."""

import json
from pathlib import Path

import onnx
import pytest

from controlplane.settings import StoreSettings, TritonServerSettings, TritonSettings
from tests.support.api import onnx_scale, serving, settings_for
from tests.support.triton import RunningTriton, running_triton

pytestmark = pytest.mark.slow


@pytest.mark.triton
def test_two_instances_manage_an_external_server(tmp_path: Path, triton: RunningTriton) -> None:
    server = TritonServerSettings(
        name="gpu-1", grpc_url=triton.server.grpc_url, repository=triton.server.repository, http_url="http://gpu-1:8000"
    )
    settings = TritonSettings(servers=(server,), load_timeout_seconds=60)
    store = StoreSettings(url=f"file://{tmp_path}/store", head_max_age_seconds=0.2)
    one = settings_for(tmp_path / "one", embedded=False, store=store, triton=settings)
    two = settings_for(tmp_path / "two", embedded=False, store=store, triton=settings)
    with serving(one) as first:
        first.publish("shared", onnx_scale(2))
        with serving(two) as second:
            assert first.deploy("shared")["state"] == "succeeded"
            # What the first one did, the second one sees and answers for, without being told.
            waited = second.ok(second.http.get("/v1/deployments/shared/wait", params={"timeout": 30}))
            assert waited["status"]["phase"] == "Ready"
            assert second.infer("shared", [1.0, 2.0]) == ([2.0, 4.0], 1)
            assert second.operation("deploy.shared.1")["state"] == "succeeded"
            published = second.http.get("/v1/operations").json()["items"]
            assert [item["kind"] for item in published] == ["publish"]

            # And what is wanted of the second one, the first one does: it holds the lease.
            second.publish("shared", onnx_scale(3))
            assert second.deploy("shared")["state"] == "succeeded"
            assert first.infer("shared", [1.0, 2.0]) == ([3.0, 6.0], 2)
            leading = [api.http.get("/metrics").text.count("tritonctl_leader 1.0") for api in (first, second)]
            assert leading == [1, 0]
        assert [item["name"] for item in first.http.get("/v1/servers").json()["items"]] == ["gpu-1"]
        gone = first.ok(first.http.delete("/v1/deployments/shared"), 202)
        assert first.operation(gone["operation_id"])["state"] == "succeeded"


@pytest.mark.triton
def test_a_version_is_placed_only_where_it_loads(tmp_path: Path, triton: RunningTriton) -> None:
    newer = onnx.load_from_string(onnx_scale(2))
    newer.opset_import[0].version = 22
    reason = "its opset of ai.onnx is 22, and ONNX Runtime 1.19.2 loads up to 21"
    with running_triton(tmp_path / "old") as old:
        servers = tuple(
            TritonServerSettings(
                name=name,
                grpc_url=one.server.grpc_url,
                repository=one.server.repository,
                labels={"name": name},
                image=image,
            )
            for name, one, image in (("a-old", old, "24.10"), ("b-new", triton, "other"))
        )
        settings = TritonSettings(servers=servers, load_timeout_seconds=60)
        with serving(settings_for(tmp_path / "plane", embedded=False, triton=settings)) as api:
            api.publish("newer", newer.SerializeToString())
            path = "/v1/models/newer/versions/1/portability"
            found = api.ok(api.http.get(path, params={"target": ["a-old", "b-new"]}))["items"]
            assert [(one["target"], one["loads"]) for one in found] == [("a-old", "no"), ("b-new", "unknown")]
            assert found[0]["reasons"] == [reason]
            api.problem(api.http.get(path, params={"target": "nowhere"}), 422, "invalid-input")

            assert api.deploy("newer:1")["state"] == "succeeded"
            assert api.infer("newer", [1.0, 2.0]) == ([2.0, 4.0], 1)
            status = {one["server"]: one for one in api.ok(api.http.get("/v1/deployments/newer"))["status"]["servers"]}
            assert status["b-new"]["phase"] == "Ready"
            (before,) = [one for one in api.http.get("/v1/servers").json()["items"] if one["name"] == "a-old"]
            assert before["models"] == []
            why = json.dumps(api.ok(api.http.get("/v1/deployments/newer/explanation")))
            assert f"a-old cannot load it: {reason}" in why

            body = {"reference": "newer:1", "settings": {"node_selector": {"name": "a-old"}}}
            refused = api.problem(api.http.put("/v1/deployments/newer", json=body), 422, "invalid-input")
            assert (
                "newer:1 cannot be deployed, since no server can load it: a-old runs NVIDIA's image 24.10"
                in refused["detail"]
            )
            assert reason in refused["detail"]
            gone = api.ok(api.http.delete("/v1/deployments/newer"), 202)
            assert api.operation(gone["operation_id"])["state"] == "succeeded"
