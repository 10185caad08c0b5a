"""A control plane without a Triton of its own: two instances on one bucket, and a server that runs elsewhere."""

from pathlib import Path

import pytest

from controlplane.settings import StoreSettings, TritonServerSettings, TritonSettings
from tests.support.api import onnx_scale, serving, settings_for
from tests.support.triton import RunningTriton


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
