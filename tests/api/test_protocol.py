"""What holds for every route: problems, pages, actors, idempotency keys, ranges, events."""

import json
import threading
from typing import Any

import pytest

from controlplane.domain.manifest import Format
from tests.support.api import Api, onnx_scale, sha256


@pytest.fixture(scope="module")
def published(bare: Api) -> Api:
    bare.publish("net", onnx_scale(2), aliases=["champion"])
    bare.publish("net", onnx_scale(3))
    return bare


def test_unknown_resources_return_404(published: Api) -> None:
    for path in (
        "/v1/models/none",
        "/v1/models/net/versions/9",
        "/v1/models/net/versions/@absent",
        "/v1/models/net/aliases/absent",
        "/v1/models/net/versions/1/files/nothing",
        "/v1/models/net/versions/1/log",
        "/v1/uploads/none",
        "/v1/deployments/net",
        "/v1/deployments/net/revisions",
        "/v1/operations/none",
        "/v1/operations/deploy.net.1",
        "/v1/operations/10cc1a83e2f4b0d1c2a",
        "/v1/operations/none/events",
        "/v1/servers/none",
        "/v1/models/none/history",
    ):
        published.problem(published.http.get(path), 404, "not-found")


def test_a_close_name_is_suggested(published: Api) -> None:
    problem = published.problem(published.http.get("/v1/models/nett"), 404, "not-found")
    assert problem["details"]["suggestions"] == ["net"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/models?limits=3", "unknown query parameter 'limits'; did you mean 'limit'? "),
        ("/v1/models/net?subject=x", "unknown query parameter 'subject' (this route has none)"),
        ("/v1/events?subjects=net", "did you mean 'subject'?"),
        ("/v1/deployments?phas=Ready", "did you mean 'phase'?"),
        ("/v1/models/net/versions?cursor=&x=1", "unknown query parameter 'x'"),
    ],
)
def test_an_unknown_query_parameter_is_refused(published: Api, path: str, words: str) -> None:
    assert words in published.problem(published.http.get(path), 422, "invalid-input")["detail"]


def test_lists_are_filtered(published: Api) -> None:
    def names(**query: Any) -> list[str]:
        return [one["name"] for one in published.ok(published.http.get("/v1/models", params=query))["items"]]

    published.ok(published.http.put("/v1/models/team-a-one", json={"labels": {"team": "a", "tier": "1"}}), 201)
    published.ok(published.http.put("/v1/models/team-a-two", json={"labels": {"team": "a"}}), 201)
    assert names(name="team-a-*") == ["team-a-one", "team-a-two"]
    assert names(name="net") == ["net"]
    assert names(label="team=a") == ["team-a-one", "team-a-two"]
    assert names(label=["team=a", "tier=1"]) == ["team-a-one"]
    assert published.ok(published.http.get("/v1/deployments", params={"phase": "Ready", "server": "no"}))["items"] == []
    published.problem(published.http.get("/v1/deployments?phase=ready"), 422, "invalid-request")
    assert (
        published.ok(published.http.get("/v1/events", params={"subject": "no-such-*", "type": "Warning"}))["items"]
        == []
    )


def test_unknown_routes_and_methods_are_problems(bare: Api) -> None:
    bare.problem(bare.http.get("/v1/nothing"), 404, "no-such-route")
    bare.problem(bare.http.get("/nothing"), 404, "no-such-route")
    problem = bare.http.post("/v1/models")
    bare.problem(problem, 405, "method-not-allowed")
    assert "GET" in problem.headers["allow"]


def test_bodies_that_are_not_json_are_rejected(bare: Api) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"{", b'{"files": NaN}', b'{"description": "\\ud800"}', b"[" * 100_000):
        response = bare.http.put("/v1/models/x", content=body, headers=headers)
        assert response.status_code in (400, 422), body[:20]
        assert response.headers["content-type"] == "application/problem+json"
    bare.problem(bare.http.put("/v1/models/x", content=b"\xff\xfe", headers=headers), 400, "malformed-request")


def test_all_invalid_fields_are_reported(bare: Api) -> None:
    body = {"description": 5, "labels": {"a": 1}, "colour": "red"}
    problem = bare.problem(bare.http.put("/v1/models/x", json=body), 422, "invalid-request")
    assert {error["where"] for error in problem["details"]["errors"]} == {
        "body.description",
        "body.labels.a",
        "body.colour",
    }


def test_too_large_body_is_rejected(bare: Api) -> None:
    response = bare.http.put("/v1/models/x", content=b" " * (8 * 1024 * 1024 + 1))
    assert bare.problem(response, 413, "too-large")["details"]["limit_bytes"] == 8 * 1024 * 1024

    def pieces() -> object:
        for _ in range(65):
            yield b" " * 1024 * 1024

    bare.problem(bare.http.put("/v1/models/x", content=pieces()), 413, "too-large")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a b", "-a", ".a", "a~candidate", "a:1", "a@b", "x" * 129, "ü", "a%00b", "a%5Cb"])
def test_invalid_names_are_rejected(bare: Api, name: str) -> None:
    bare.problem(bare.http.put(f"/v1/models/{name}", json={}), 422, "invalid-name")


def test_invalid_references_are_rejected(published: Api) -> None:
    for reference in ("net:0", "net:x", "net@champion:1", "net:1@champion"):
        published.problem(
            published.http.put("/v1/deployments/net", json={"reference": reference}), 422, "invalid-reference"
        )
    problem = published.problem(
        published.http.put("/v1/deployments/net", json={"reference": "other:1"}), 422, "invalid-input"
    )
    assert "other" in problem["detail"]
    published.problem(published.http.get("/v1/models/net/versions/0"), 422, "invalid-reference")


def test_actor_is_recorded_and_validated(bare: Api) -> None:
    bare.ok(bare.http.put("/v1/models/acted", json={"reason": "try"}, headers={"X-Actor": "grace@example.org"}), 201)
    bare.http.patch("/v1/models/acted", json={"description": "d"}, headers={"X-Actor": ""})
    change = bare.ok(bare.http.get("/v1/models/acted/history"))["items"][-1]
    assert change["actor"] == "grace@example.org"
    for actor in (b"", b"x" * 129, b"gr\xc3\xa4ce"):
        answer = bare.http.patch("/v1/models/acted", json={}, headers=[(b"X-Actor", actor)])
        bare.problem(answer, 422, "invalid-input")


def test_models_are_created_changed_and_deleted(bare: Api) -> None:
    bare.ok(bare.http.put("/v1/models/life", json={"description": "first", "labels": {"a": "1"}}), 201)
    changed = bare.ok(bare.http.put("/v1/models/life", json={"description": "second"}))
    assert (changed["description"], changed["labels"]) == ("second", {"a": "1"})
    bare.problem(bare.http.patch("/v1/models/never", json={"description": "x"}), 404, "not-found")
    assert bare.http.delete("/v1/models/life", params={"reason": "done"}).status_code == 204
    bare.problem(bare.http.get("/v1/models/life"), 404, "not-found")
    history = bare.ok(bare.http.get("/v1/models/life/history"))["items"]
    assert [item["number"] for item in history] == [3, 2, 1]


def test_alias_can_be_moved_and_deleted(published: Api) -> None:
    url = "/v1/models/net/aliases/blue"
    published.ok(published.http.put(url, json={"version": 1}))
    assert published.ok(published.http.get(url))["version"] == 1
    published.ok(published.http.put(url, json={"version": 2}))
    assert published.ok(published.http.get("/v1/models/net/versions/@blue"))["entry"]["number"] == 2
    assert {"model": "net", "alias": "blue", "version": 2} in published.ok(
        published.http.get("/v1/models/net/aliases")
    )["items"]
    published.problem(published.http.put(url, json={"version": 9}), 404, "not-found")
    published.problem(published.http.put("/v1/models/net/aliases/latest", json={"version": 1}), 422, "invalid-name")
    published.problem(published.http.delete("/v1/models/net/versions/2"), 409, "in-use")
    assert published.http.delete(url).status_code == 204
    published.problem(published.http.get(url), 404, "not-found")


def test_lists_are_returned_in_pages(bare: Api) -> None:
    names = [f"page-{number:02d}" for number in range(7)]
    for name in names:
        bare.ok(bare.http.put(f"/v1/models/{name}", json={}), 201)
    seen, cursor = [], None
    while True:
        params = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = bare.ok(bare.http.get("/v1/models", params=params))
        assert len(page["items"]) <= 3
        seen += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [name for name in seen if name.startswith("page-")] == names
    assert seen == sorted(seen)
    for wrong in ("!!", "AAAA", "é"):
        bare.problem(bare.http.get("/v1/models/page-01/history", params={"cursor": wrong}), 422, "invalid-input")
    bare.problem(bare.http.get("/v1/models", params={"limit": 0}), 422, "invalid-request")


def test_operations_are_listed_newest_first_in_pages(published: Api) -> None:
    first = published.ok(published.http.get("/v1/operations", params={"limit": 1}))
    second = published.ok(published.http.get("/v1/operations", params={"limit": 1, "cursor": first["next_cursor"]}))
    assert first["items"][0]["created_at"] >= second["items"][0]["created_at"]


def test_an_operation_is_followed_to_its_end(bare: Api) -> None:
    upload = bare.upload({"m.onnx": onnx_scale(11)})
    operation = bare.ok(bare.http.post("/v1/models/sse/versions", json={"upload_id": upload}), 202)
    with bare.http.stream("GET", f"/v1/operations/{operation['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        states = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    assert states[-1]["state"] == "succeeded"
    assert {"upload", "done"} <= {state["progress"]["stage"] for state in states}
    # An operation that has ended is sent once.
    with bare.http.stream("GET", f"/v1/operations/{operation['id']}/events") as stream:
        assert sum(line.startswith("data:") for line in stream.iter_lines()) == 1


def test_post_with_an_idempotency_key_is_processed_once(bare: Api) -> None:
    body = {"files": [{"path": "a", "size_bytes": 1, "sha256": sha256(b"a")}]}
    headers = {"Idempotency-Key": "first-of-its-kind"}
    first = bare.http.post("/v1/uploads", json=body, headers=headers)
    again = bare.http.post("/v1/uploads", json=body, headers=headers)
    assert again.json() == bare.ok(first, 201)
    assert again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    other = {"files": [{"path": "b", "size_bytes": 1, "sha256": sha256(b"a")}]}
    bare.problem(bare.http.post("/v1/uploads", json=other, headers=headers), 422, "idempotency-mismatch")
    fresh = bare.http.post("/v1/uploads", json=body, headers={**headers, "X-Actor": "bob"})
    assert fresh.json()["id"] != first.json()["id"]


def test_failed_request_can_be_repeated_with_its_key(bare: Api) -> None:
    headers = {"Idempotency-Key": "will-succeed"}
    body = {"upload_id": "0" * 20}
    bare.problem(bare.http.post("/v1/models/m/versions", json=body, headers=headers), 404, "not-found")
    bare.problem(bare.http.post("/v1/models/m/versions", json=body, headers=headers), 404, "not-found")
    bare.problem(
        bare.http.post("/v1/models/m/versions", json=body, headers={"Idempotency-Key": "x" * 256}),
        422,
        "invalid-request",
    )


def test_concurrent_requests_with_one_key_are_processed_once(bare: Api) -> None:
    body = {"files": [{"path": "c", "size_bytes": 1, "sha256": sha256(b"c")}]}
    ids = []

    def send() -> None:
        ids.append(bare.http.post("/v1/uploads", json=body, headers={"Idempotency-Key": "all-at-once"}).json()["id"])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_files_are_downloaded_whole_and_in_parts(published: Api) -> None:
    url, data = "/v1/models/net/versions/1/files/model.onnx", onnx_scale(2)
    whole = published.http.get(url)
    assert whole.content == data
    assert whole.headers["etag"] == f'"{sha256(data)}"'
    for header, expected in (
        ("bytes=0-9", data[:10]),
        ("bytes=10-", data[10:]),
        ("bytes=-5", data[-5:]),
        ("bytes=5-100000", data[5:]),
    ):
        part = published.http.get(url, headers={"Range": header})
        assert (part.status_code, part.content) == (206, expected)
        assert part.headers["content-range"].endswith(f"/{len(data)}")
    assert published.http.get(url, headers={"Range": "bytes=100000-"}).status_code == 416
    assert published.http.get(url, headers={"Range": "lines=1-2"}).content == data
    assert published.http.get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    stale = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert published.http.get(url, headers=stale).content == data


def test_download_of_a_lost_blob_is_a_problem_response(bare: Api) -> None:
    data = onnx_scale(23)
    bare.publish("lost", data)
    bare.plane.registry.store.delete(f"blobs/sha256/{sha256(data)[:2]}/{sha256(data)}")
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = bare.http.get("/v1/models/lost/versions/1/files/model.onnx", headers=headers)
        bare.problem(answer, 404, "not-found")


def test_a_validation_publishes_nothing(bare: Api) -> None:
    good = bare.upload({"m.onnx": onnx_scale(13)})
    report = bare.done(bare.http.post("/v1/validations", json={"upload_id": good}))
    assert report["ok"]
    assert report["signature"]["inputs"][0]["name"] == "x"
    bad = bare.upload({"m.onnx": onnx_scale(13)[:-20]})
    report = bare.done(bare.http.post("/v1/validations", json={"upload_id": bad}))
    assert not report["ok"]
    assert report["checks"][-1]["message"]
    bare.done(bare.http.post("/v1/models/validated/versions", json={"upload_id": good}))


def test_published_version_is_validated_again(bare: Api) -> None:
    bare.publish("checked", onnx_scale(19))
    report = bare.done(bare.http.post("/v1/validations", json={"reference": "checked:1"}))
    assert report["ok"]
    assert report["format"] == "onnx"
    assert {"load", "run"} <= {check["name"] for check in report["checks"]}
    bare.problem(bare.http.post("/v1/validations", json={"reference": "checked:2"}), 404, "not-found")
    bare.problem(bare.http.post("/v1/validations", json={}), 422, "invalid-input")
    both = {"reference": "checked:1", "upload_id": "b41cc3a0f9d24e86b7d3"}
    bare.problem(bare.http.post("/v1/validations", json=both), 422, "invalid-input")
    assert len(bare.ok(bare.http.get("/v1/models/checked/versions"))["items"]) == 1


def test_garbage_collection_counts_and_removes(bare: Api) -> None:
    bare.publish("trash", onnx_scale(17))
    bare.http.delete("/v1/models/trash")
    counted = bare.done(bare.http.post("/v1/gc", json={"dry_run": True, "grace_seconds": 0}))
    assert counted["blobs_deleted"] >= 2
    assert bare.done(bare.http.post("/v1/gc", json={"dry_run": False, "grace_seconds": 0}))["blobs_deleted"] >= 2
    assert bare.done(bare.http.post("/v1/gc", json={"dry_run": True, "grace_seconds": 0}))["blobs_deleted"] == 0


def test_version_that_triton_cannot_run_is_not_deployed(bare: Api) -> None:
    registry = bare.plane.registry
    bare.publish("raw", onnx_scale(2))
    manifest = registry.manifest("raw", 1).model_copy(update={"format": Format.SKLEARN, "golden": None})
    registry.publish("raw", manifest, {}, actor="ada")
    problem = bare.problem(bare.http.put("/v1/deployments/raw", json={"reference": "raw:2"}), 422, "invalid-input")
    assert "tritonctl convert raw:2" in problem["detail"]


def test_health_and_info_are_reported(bare: Api) -> None:
    assert bare.ok(bare.http.get("/healthz")) == {"status": "ok"}
    ready = bare.ok(bare.http.get("/readyz"))
    assert {check["name"] for check in ready["checks"]} == {"store", "reconciler"}
    info = bare.ok(bare.http.get("/v1/info"))
    assert info["store_url"].startswith("file://")
    assert {"source": "torch-export", "target": "onnx"} in info["converters"]


def test_the_openapi_document_is_complete(bare: Api) -> None:
    document = bare.ok(bare.http.get("/openapi.json"))
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"
    seen = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["tags"], path
            assert operation.get("description"), f"{method} {path}"
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            for parameter in operation.get("parameters", ()):
                assert parameter.get("description"), f"{method} {path} {parameter['name']}"
            if path.startswith("/v1/"):
                problem = operation["responses"]["422"]["content"]["application/problem+json"]
                assert problem["schema"]["$ref"].endswith("/Problem")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            for choice in body.get("anyOf", [body]):
                if "$ref" in choice:
                    assert schemas[choice["$ref"].rpartition("/")[2]].get("examples"), choice


def test_without_a_server_a_deployment_waits(published: Api) -> None:
    deployment = published.ok(published.http.put("/v1/deployments/net", json={"reference": "net@champion"}), 202)
    assert deployment["revision"] == 1
    # The same again is no new revision.
    again = published.ok(published.http.put("/v1/deployments/net", json={"reference": "net@champion"}), 202)
    assert (again["revision"], again["changed"]) == (1, False)
    assert deployment["changed"]
    waited = published.ok(published.http.get("/v1/deployments/net/wait", params={"timeout": 0.5}))
    assert waited["status"] is None or not waited["status"]["servers"]
    inputs = {"inputs": [{"name": "x", "data": [[1, 2]]}]}
    published.problem(published.http.post("/v1/deployments/net/infer", json=inputs), 409, "conflict")
    published.problem(published.http.post("/v1/deployments/net/rollback"), 409, "conflict")
    published.problem(published.http.post("/v1/deployments/net/rollback", json={"revision": 7}), 404, "not-found")
    published.problem(published.http.delete("/v1/models/net/versions/1"), 409, "in-use")
    later = published.ok(published.http.put("/v1/deployments/net", json={"reference": "net:2", "reason": "new"}), 202)
    superseded = published.operation(deployment["operation_id"], wait=0)
    assert (superseded["state"], superseded["progress"]["stage"]) == ("cancelled", "superseded")
    back = published.ok(published.http.post("/v1/deployments/net/rollback", json={"revision": 1}), 202)
    assert (later["revision"], back["revision"], back["spec"]["reference"]) == (2, 3, "net:1")
    published.ok(published.http.delete("/v1/deployments/net"), 202)
    published.problem(published.http.post("/v1/deployments/net/load"), 404, "not-found")


def test_an_operation_can_be_cancelled(bare: Api) -> None:
    upload = bare.upload({"m.onnx": onnx_scale(19)})
    started = bare.ok(bare.http.post("/v1/models/stopped/versions", json={"upload_id": upload}), 202)
    cancelled = bare.ok(bare.http.post(f"/v1/operations/{started['id']}/cancel"))
    assert cancelled["state"] == "cancelled"
    bare.problem(bare.http.get("/v1/models/stopped"), 404, "not-found")
    # Nothing of it is left running or in use, and what has ended stays as it ended.
    assert bare.http.delete(f"/v1/uploads/{upload}").status_code == 204
    assert bare.ok(bare.http.post(f"/v1/operations/{started['id']}/cancel"))["state"] == "cancelled"
