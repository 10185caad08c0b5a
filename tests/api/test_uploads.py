"""Uploads: cut off and resumed, wrong bytes, limits, reuse of what the store has."""

import io
import os
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.support.api import Api, onnx_scale, serving, settings_for, sha256

MIB = 1024 * 1024


def announce(api: Api, data: bytes, path: str = "model.bin") -> tuple[str, str]:
    file = {"path": path, "size_bytes": len(data), "sha256": sha256(data)}
    upload = api.ok(api.http.post("/v1/uploads", json={"files": [file]}), 201)
    return upload["id"], f"/v1/uploads/{upload['id']}/blobs/{sha256(data)}"


def cut_off(api: Api, url: str, data: bytes, announced: int, offset: int | None = None) -> None:
    """Send the beginning of a body and break the connection."""
    target = urlsplit(api.url)
    assert target.hostname
    with socket.create_connection((target.hostname, target.port or 80)) as connection:
        more = "" if offset is None else f"Upload-Offset: {offset}\r\n"
        head = f"PUT {url} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Length: {announced}\r\n{more}\r\n"
        connection.sendall(head.encode() + data)


def broken_off_at(api: Api, url: str) -> int:
    """Return where a transfer ended, once the server has seen that it did."""
    while True:
        offset = int(api.http.head(url).headers["Upload-Offset"])
        # Nothing is sent: this is refused as long as the server still reads from the broken connection.
        answer = api.http.put(url, content=b"", headers={"Upload-Offset": str(offset)})
        if answer.status_code == 200 and offset > 0:
            return offset
        assert answer.status_code in (200, 409), answer.text


def test_interrupted_upload_resumes_at_its_offset(bare: Api) -> None:
    data = os.urandom(5 * MIB + 123)
    upload, url = announce(bare, data)
    cut_off(bare, url, data[: 3 * MIB], len(data))
    first = broken_off_at(bare, url)
    assert 2 * MIB < first <= 3 * MIB
    cut_off(bare, url, data[first : 4 * MIB], len(data) - first, offset=first)
    second = broken_off_at(bare, url)
    assert first <= second <= 4 * MIB
    problem = bare.problem(bare.http.put(url, content=data[1:], headers={"Upload-Offset": "1"}), 409, "conflict")
    assert problem["details"]["received_bytes"] == second
    done = bare.ok(bare.http.put(url, content=data[second:], headers={"Upload-Offset": str(second)}))
    assert done["state"] == "present"
    assert bare.ok(bare.http.get(f"/v1/uploads/{upload}"))["files"][0]["received_bytes"] == len(data)
    assert bare.http.head(url).headers["Upload-State"] == "present"


def test_an_upload_survives_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = settings_for(tmp_path_factory.mktemp("again"), embedded=False)
    data = os.urandom(MIB)
    with serving(settings) as before:
        upload, url = announce(before, data)
        cut_off(before, url, data[: MIB // 2], len(data))
        offset = broken_off_at(before, url)
    with serving(settings) as after:
        assert int(after.http.head(url).headers["Upload-Offset"]) == offset
        after.ok(after.http.put(url, content=data[offset:], headers={"Upload-Offset": str(offset)}))
        assert after.ok(after.http.get(f"/v1/uploads/{upload}"))["files"][0]["state"] == "present"


def test_wrong_bytes_are_rejected_and_discarded(bare: Api) -> None:
    data = os.urandom(1000)
    _, url = announce(bare, data)
    problem = bare.problem(bare.http.put(url, content=os.urandom(1000)), 422, "invalid-artifact")
    assert problem["details"]["sha256"] == sha256(data)
    assert bare.http.head(url).headers["Upload-Offset"] == "0"
    bare.problem(bare.http.put(url, content=data + b"x"), 422, "invalid-artifact")
    bare.ok(bare.http.put(url, content=data))


def test_an_empty_file_can_be_uploaded(bare: Api) -> None:
    upload, url = announce(bare, b"", "empty")
    assert bare.ok(bare.http.put(url, content=b""))["state"] == "present"
    bare.http.delete(f"/v1/uploads/{upload}")


def test_content_in_the_store_is_not_uploaded_again(bare: Api) -> None:
    data = onnx_scale(7)
    bare.publish("twice", data)
    file = {"path": "again.onnx", "size_bytes": len(data), "sha256": sha256(data)}
    upload = bare.ok(bare.http.post("/v1/uploads", json={"files": [file]}), 201)
    assert upload["files"][0]["state"] == "present"
    result = bare.done(bare.http.post("/v1/models/twice/versions", json={"upload_id": upload["id"], "force": True}))
    assert result["version"] == 2
    bare.problem(bare.http.get(f"/v1/uploads/{upload['id']}"), 404, "not-found")


def test_upload_announcements_are_validated(bare: Api) -> None:
    def refused(status: int, code: str, *files: dict[str, object]) -> str:
        detail: str = bare.problem(bare.http.post("/v1/uploads", json={"files": list(files)}), status, code)["detail"]
        return detail

    good = {"path": "a", "size_bytes": 1, "sha256": "0" * 64}
    assert "more than once" in refused(422, "invalid-input", good, good)
    assert "two sizes" in refused(422, "invalid-input", good, {**good, "path": "b", "size_bytes": 2})
    assert "64" in refused(413, "too-large", {**good, "size_bytes": 65 * MIB})
    for path in ("/etc/passwd", "../x", "a/../../b", ".hidden", "a\\b", "a//b", ""):
        assert "file name" in refused(422, "invalid-name", {**good, "path": path})
    refused(422, "invalid-request", {**good, "sha256": "xyz"})
    refused(422, "invalid-request", {**good, "size_bytes": -1})
    refused(422, "invalid-request")


def test_incomplete_upload_cannot_be_published(bare: Api) -> None:
    upload, _ = announce(bare, b"12345", "m.onnx")
    body = {"upload_id": upload}
    problem = bare.problem(bare.http.post("/v1/models/m/versions", json=body), 409, "conflict")
    assert problem["details"]["missing"] == ["m.onnx"]
    assert bare.http.delete(f"/v1/uploads/{upload}").status_code == 204
    bare.problem(bare.http.get(f"/v1/uploads/{upload}"), 404, "not-found")
    bare.problem(bare.http.post("/v1/models/m/versions", json=body), 404, "not-found")


def test_file_that_is_not_a_model_is_rejected_with_one_sentence(bare: Api) -> None:
    upload = bare.upload({"model.onnx": b"this is no protobuf at all, and never was"})
    error = bare.failed(bare.http.post("/v1/models/junk/versions", json={"upload_id": upload}))
    assert error["code"] == "invalid-artifact"
    assert "model.onnx" in error["detail"]
    assert "\n" not in error["detail"]
    bare.problem(bare.http.get("/v1/models/junk"), 404, "not-found")
    # The upload stays: it can be published again with other parameters.
    bare.ok(bare.http.get(f"/v1/uploads/{upload}"))


def test_filesystem_store_rejects_presigned_uploads(bare: Api) -> None:
    upload, _ = announce(bare, b"x")
    problem = bare.problem(bare.http.post(f"/v1/uploads/{upload}/presigned", json={}), 422, "invalid-input")
    assert "through the API" in problem["detail"]


def test_version_with_given_samples_records_them(bare: Api, tmp_path: object) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([[0.5, 1.5]], dtype=np.float32))
    upload = bare.upload({"m.onnx": onnx_scale(9), "samples.npz": buffer.getvalue()})
    body = {"upload_id": upload, "samples": "samples.npz"}
    result = bare.done(bare.http.post("/v1/models/sampled/versions", json=body))
    assert result["golden_samples"] == 1
    manifest = bare.ok(bare.http.get("/v1/models/sampled/versions/latest"))["manifest"]
    assert [file["path"] for file in manifest["files"]] == ["model.onnx"]
    samples = bare.plane.registry.samples(bare.plane.registry.manifest("sampled", 1))
    assert samples[0].outputs["y"].tolist() == [[4.5, 13.5]]


def test_repeated_publish_returns_the_existing_version(bare: Api) -> None:
    def published(**more: object) -> tuple[int, bool]:
        body = {"upload_id": bare.upload({"model.onnx": onnx_scale(77)}), **more}
        result = bare.done(bare.http.post("/v1/models/again/versions", json=body))
        return result["version"], result["unchanged"]

    assert published() == (1, False)
    assert published() == (1, True)
    assert published(aliases=["live"]) == (1, True)
    assert bare.ok(bare.http.get("/v1/models/again"))["aliases"] == {"live": 1}
    assert published(labels={"git": "1"}) == (2, False)
    assert published() == (3, False), "it is compared with the newest version alone"
    assert published(force=True) == (4, False)
    assert published(sample_count=5) == (5, False)


def test_repeated_publish_compares_given_samples(bare: Api) -> None:
    def published(*row: float) -> tuple[int, bool]:
        buffer = io.BytesIO()
        np.savez(buffer, x=np.array([row], dtype=np.float32))
        upload = bare.upload({"m.onnx": onnx_scale(78), "samples.npz": buffer.getvalue()})
        body = {"upload_id": upload, "samples": "samples.npz"}
        result = bare.done(bare.http.post("/v1/models/given/versions", json=body))
        return result["version"], result["unchanged"]

    assert published(0.5, 1.5) == (1, False)
    assert published(0.5, 1.5) == (1, True)
    assert published(0.5, 2.5) == (2, False)
