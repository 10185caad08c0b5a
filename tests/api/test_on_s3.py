"""The main job against S3 servers, with uploads that go directly to the bucket."""

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.support.api import Api, onnx_scale, serving, settings_for, sha256
from tests.support.s3server import S3Server

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


@pytest.fixture(scope="module", params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def on_s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    server: S3Server = request.getfixturevalue(request.param)
    store = server.settings(server.new_bucket(), part_size_bytes=5 * MIB)
    with serving(settings_for(tmp_path_factory.mktemp("s3"), embedded=True, store=store)) as running:
        yield running


@pytest.mark.triton
def test_publish_deploy_and_roll_back_on_s3(on_s3: Api) -> None:
    on_s3.publish("remote", onnx_scale(2))
    on_s3.publish("remote", onnx_scale(3))
    assert on_s3.deploy("remote:1")["state"] == "succeeded"
    assert on_s3.deploy("remote:2")["state"] == "succeeded"
    assert on_s3.infer("remote", [1.0, 2.0]) == ([3.0, 6.0], 2)
    back = on_s3.ok(on_s3.http.post("/v1/deployments/remote/rollback"), 202)
    assert on_s3.operation(back["operation_id"])["state"] == "succeeded"
    assert on_s3.infer("remote", [1.0, 2.0]) == ([2.0, 4.0], 1)
    data = onnx_scale(2)
    url = "/v1/models/remote/versions/1/files/model.onnx"
    assert on_s3.http.get(url).content == data
    assert on_s3.http.get(url, headers={"Range": "bytes=3-7"}).content == data[3:8]


def send_directly(api: Api, data: bytes, sent: bytes) -> tuple[str, httpx.Response]:
    """Announce ``data``, write ``sent`` in its place directly to the bucket, and say that it is done."""
    file = {"path": "weights.bin", "size_bytes": len(data), "sha256": sha256(data)}
    upload = api.ok(api.http.post("/v1/uploads", json={"files": [file]}), 201)["id"]
    [blob] = api.ok(api.http.post(f"/v1/uploads/{upload}/presigned", json={"expires_seconds": 600}))["items"]
    size = blob["part_size_bytes"]
    assert len(blob["urls"]) == -(-len(data) // size)
    for number, url in enumerate(blob["urls"]):
        httpx.put(url, content=sent[number * size : (number + 1) * size], timeout=60).raise_for_status()
    complete = f"/v1/uploads/{upload}/blobs/{sha256(data)}/complete"
    return upload, api.http.post(complete, json={"multipart_id": blob["multipart_id"]})


@pytest.mark.triton
def test_blob_is_uploaded_directly_to_the_bucket(on_s3: Api) -> None:
    data = os.urandom(12 * MIB)
    upload, answer = send_directly(on_s3, data, data)
    assert on_s3.ok(answer)["state"] == "present"
    assert on_s3.ok(on_s3.http.get(f"/v1/uploads/{upload}"))["files"][0]["state"] == "present"


@pytest.mark.triton
def test_wrong_bytes_uploaded_directly_are_detected_and_removed(on_s3: Api) -> None:
    data = os.urandom(6 * MIB)
    upload, answer = send_directly(on_s3, data, data[:-1] + bytes([data[-1] ^ 1]))
    on_s3.problem(answer, 422, "invalid-artifact")
    assert on_s3.ok(on_s3.http.get(f"/v1/uploads/{upload}"))["files"][0]["state"] == "missing"
    assert on_s3.plane.registry.blobs.size_of(sha256(data)) is None
