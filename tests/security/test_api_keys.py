"""Keys over the real API: who gets in, to what, and what is written down about it."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.api.permissions import PERMISSIONS, Models
from controlplane.domain.access import Scope, included
from controlplane.settings import ApiSettings, AuthSettings, StoreSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.keys import client, made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, httpx.Client]]:
    """An API without a Triton that asks for keys, and an administrator."""
    folder = tmp_path_factory.mktemp("guarded")
    settings = settings_for(folder, embedded=False, api=ApiSettings(port=0, max_body_bytes=100_000))
    with serving(settings) as api:
        # The first key closes the door behind it.
        assert api.ok(api.http.get("/v1/info"))["authentication"] == "off-loopback"
        secret, admin = made(api, api.http, "root", "admin")
        with admin:
            assert re.fullmatch(r"tck_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", secret)
            assert api.ok(admin.get("/v1/info"))["authentication"] == "on"
            api.problem(api.http.get("/v1/info"), 401, "unauthenticated")
            yield Api(api.plane, admin, api.url), api.http


def test_every_route_declares_its_scope(bare_document: dict[str, Any]) -> None:
    found = {}
    for path, operations in bare_document["paths"].items():
        for operation in operations.values():
            found[operation["operationId"]] = path
    assert set(found) == set(PERMISSIONS), (
        "each route of the OpenAPI document has its line in controlplane/api/permissions.py"
    )
    for name, path in found.items():
        assert (PERMISSIONS[name].models is Models.PATH) == ("{model}" in path), name
    assert {name for name, need in PERMISSIONS.items() if need.scope is None} == {
        "healthz",
        "readyz",
        "getSession",
        "signIn",
        "signOut",
    }
    for operations in bare_document["paths"].values():  # and the OpenAPI document states it
        for operation in operations.values():
            scope = PERMISSIONS[operation["operationId"]].scope
            assert operation["security"] == ([{"apiKey": [scope.value]}, {}] if scope else [])


@pytest.fixture(scope="module")
def bare_document(guarded: tuple[Api, httpx.Client]) -> dict[str, Any]:
    api, anonymous = guarded
    return api.ok(anonymous.get("/openapi.json"))


def test_each_scope_opens_its_routes_and_no_others(
    guarded: tuple[Api, httpx.Client], bare_document: dict[str, Any]
) -> None:
    api, anonymous = guarded
    filled = {"model": "net", "version": "1", "alias": "a", "path": "f", "upload_id": "u", "sha256": "0" * 64}
    tried = 0
    for scope in Scope:
        _, holder = made(api, api.http, f"only-{scope}", scope)
        with holder:
            for template, operations in bare_document["paths"].items():
                path = re.sub(r"\{(\w+)\}", lambda match: filled.get(match[1], "none"), template)
                for method, operation in operations.items():
                    need = PERMISSIONS[operation["operationId"]]
                    what = f"{method} {path} with {scope}"
                    status = holder.request(method, path).status_code
                    allowed = need.scope is None or need.scope in included([scope])
                    assert (status == 403) is not allowed, f"{what}: {status}"
                    assert status != 401, what
                    if need.scope is not None:
                        assert anonymous.request(method, path).status_code == 401, what
                    tried += 1
    assert tried >= 4 * 60


def test_invalid_keys_are_rejected(guarded: tuple[Api, httpx.Client]) -> None:
    api, anonymous = guarded
    secret, _ = made(api, api.http, "whole", "read")
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for header in (
        "",
        "Bearer",
        f"Basic {secret}",
        secret,
        f"Bearer {wrong}",
        f"Bearer x{secret}",
        "Bearer ä",
    ):
        answer = anonymous.get("/v1/models", headers=[(b"Authorization", header.encode())])
        problem = api.problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert secret not in answer.text
        assert wrong not in answer.text
        assert "problem" not in problem
    # A body is not read before it is known whose it is.
    huge = anonymous.post("/v1/deployments/net/infer", content=b"x" * 50_000_000)
    assert huge.status_code == 401
    api.problem(api.http.get("/v1/nothing/here"), 404, "no-such-route")
    _, reader = made(api, api.http, "reader", "read")
    with reader:
        api.problem(reader.get("/v1/nothing/here"), 404, "not-found")


def test_public_routes_reveal_no_details(guarded: tuple[Api, httpx.Client]) -> None:
    api, anonymous = guarded
    assert api.ok(anonymous.get("/healthz")) == {"status": "ok"}
    assert all(check["message"] == "" for check in api.ok(anonymous.get("/readyz"))["checks"])
    assert anonymous.get("/docs").status_code == 307


def test_secrets_are_shown_once(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    headers = {"Idempotency-Key": "make-me-one"}
    first = api.http.post("/v1/keys", json={"name": "once", "scopes": ["read"]}, headers=headers)
    secret = api.ok(first, 201)["secret"]
    assert first.headers["cache-control"] == "no-store"
    api.problem(api.http.post("/v1/keys", json={"name": "once", "scopes": ["read"]}, headers=headers), 409, "conflict")
    listed = api.http.get("/v1/keys").text + api.http.get("/v1/keys/once").text
    assert "once" in listed
    assert "digest" not in listed
    # Not in the bucket, not in the data folder: neither the secret nor its part that is secret.
    kept = b"".join(path.read_bytes() for path in api.plane.settings.data_dir.rglob("*") if path.is_file())
    assert b'"once"' in kept
    assert secret.encode() not in kept
    assert secret.split("_", 2)[2].encode() not in kept


def test_expired_key_is_rejected(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    end = datetime.now(UTC) + timedelta(seconds=2)
    _, brief = made(api, api.http, "brief", "read", expires_at=end.isoformat())
    with brief:
        assert brief.get("/v1/models").status_code == 200
        # The key ends by the store's clock, which may be behind this machine's.
        deadline = time.monotonic() + 30
        while brief.get("/v1/models").status_code == 200:
            assert time.monotonic() < deadline, "the key does not expire"
            time.sleep(0.05)
        assert datetime.now(UTC) > end - timedelta(seconds=1)
        assert "expired at" in api.problem(brief.get("/v1/models"), 401, "unauthenticated")["detail"]
    assert api.ok(api.http.get("/v1/keys/brief"))["state"] == "expired"
    made(api, api.http, "brief", "read")  # its name is free again
    past = {"name": "past", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}
    api.problem(api.http.post("/v1/keys", json=past), 422, "invalid-input")


def test_revoked_key_is_rejected_immediately(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    _, holder = made(api, api.http, "gone", "deploy")
    with holder:
        assert holder.get("/v1/models").status_code == 200
        gone = api.ok(api.http.delete("/v1/keys/gone"))
        assert (gone["state"], gone["revoked_by"]) == ("revoked", "root")
        assert "was revoked" in api.problem(holder.get("/v1/models"), 401, "unauthenticated")["detail"]
    assert api.ok(api.http.delete("/v1/keys/gone"))["revoked_at"] == gone["revoked_at"]
    api.problem(api.http.delete("/v1/keys/never"), 404, "not-found")


def test_key_limited_to_some_models_sees_only_those(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    api.publish("team-a-net", onnx_scale(2))
    theirs = api.ok(api.http.put("/v1/deployments/team-b-net", json={"reference": "team-b-net:1"}), 404)
    assert theirs["code"] == "not-found"
    api.publish("team-b-net", onnx_scale(3))
    for model in ("team-a-net", "team-b-net"):
        api.ok(api.http.put(f"/v1/deployments/{model}", json={"reference": f"{model}:1"}), 202)
    secret, _ = made(api, api.http, "team-a", "deploy", "infer", models=["team-a-*"])
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as http:
        team = Api(api.plane, http, api.url)
        # Lists show what the key is for, and nothing of the others.
        assert [one["name"] for one in team.ok(http.get("/v1/models"))["items"]] == ["team-a-net"]
        assert [one["model"] for one in team.ok(http.get("/v1/deployments"))["items"]] == ["team-a-net"]
        assert "team-b" not in http.get("/v1/operations").text
        assert "team-b" not in http.get("/v1/events").text
        assert "team-b" not in http.get("/v1/servers").text
        team.ok(http.get("/v1/operations/deploy.team-a-net.1"))
        team.problem(http.get("/v1/operations/deploy.team-b-net.1"), 404, "not-found")
        team.problem(http.get("/v1/operations/deploy.team-b-net.1/events"), 404, "not-found")
        team.problem(http.post("/v1/operations/deploy.team-b-net.1/cancel"), 404, "not-found")
        # What is done to a model is done to theirs.
        team.publish("team-a-new", onnx_scale(5))
        upload = team.upload({"model.onnx": onnx_scale(7)})
        for answer in (
            http.post("/v1/models/team-b-net/versions", json={"upload_id": upload}),
            http.get("/v1/models/team-b-net"),
            http.put("/v1/deployments/team-b-net", json={"reference": "team-b-net:1"}),
            http.delete("/v1/deployments/team-b-net"),
            http.post("/v1/deployments/team-b-net/infer", json={}),
            http.post("/v1/conversions", json={"source": "team-b-net:1", "target": "onnx"}),
            http.post("/v1/conversions", json={"source": "team-a-net:1", "target": "onnx", "model": "team-b-net"}),
            http.post("/v1/tunings", json={"model": "team-b-net", "objective": "p99"}),
            # And what concerns all models is for keys that are for all.
            http.get("/v1/memory"),
            http.get("/metrics"),
        ):
            problem = team.problem(answer, 403, "forbidden")
            assert "team-a-*" in problem["detail"]


def test_histories_name_the_key(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    _, holder = made(api, api.http, "ci", "deploy")
    with holder:
        api.ok(holder.put("/v1/models/audited", json={}), 201)
        api.ok(holder.put("/v1/models/audited", json={"description": "x"}, headers={"X-Actor": "root"}))
    history = api.ok(api.http.get("/v1/models/audited/history"))["items"]
    assert [change["actor"] for change in history] == [
        "ci/root",
        "ci",
    ]  # the key's name is first, whatever X-Actor says


def test_idempotency_keys_belong_to_one_api_key(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    _, one = made(api, api.http, "one", "deploy")
    _, two = made(api, api.http, "two", "deploy")
    _, reader = made(api, api.http, "three", "read")
    body = {"files": [{"path": "a", "size_bytes": 1, "sha256": "1" * 64}]}
    headers = {"Idempotency-Key": "the-same", "X-Actor": "ada"}
    with one, two, reader:
        first = api.ok(one.post("/v1/uploads", json=body, headers=headers), 201)
        assert api.ok(one.post("/v1/uploads", json=body, headers=headers), 201)["id"] == first["id"]
        assert api.ok(two.post("/v1/uploads", json=body, headers=headers), 201)["id"] != first["id"]
        api.problem(reader.post("/v1/uploads", json=body, headers=headers), 403, "forbidden")


def test_rate_limit_of_a_key_is_enforced(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    _, holder = made(api, api.http, "slow", "read", rate_per_second=0.5, burst=3)
    with holder:
        answers = [holder.get("/v1/models") for _ in range(6)]
        statuses = [answer.status_code for answer in answers]
        assert statuses[:3] == [200, 200, 200]
        assert 429 in statuses
        refused = next(answer for answer in answers if answer.status_code == 429)
        problem = api.problem(refused, 429, "rate-limited")
        wait = int(refused.headers["retry-after"])
        assert wait == problem["details"]["retry_after_seconds"]
        assert 1 <= wait <= 2
    assert api.http.get("/v1/models").status_code == 200  # others are not held up


def test_body_size_limits_are_enforced(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    answer = api.http.put("/v1/models/big", json={"description": "x" * 100_000})
    assert api.problem(answer, 413, "too-large")["details"]["limit_bytes"] == 100_000
    chunks = (b" " * 10_000 for _ in range(11))  # no length is said beforehand
    assert api.http.put("/v1/models/big", content=chunks).status_code == 413
    # An inference's tensors have a limit of their own.
    tensors = {"inputs": [{"name": "x", "data": [[0.5] * 50_000]}]}
    assert len(json.dumps(tensors)) > 100_000
    assert api.http.post("/v1/deployments/none/infer", json=tensors).status_code == 404


def test_active_keys_reflect_creation_and_revocation(guarded: tuple[Api, httpx.Client]) -> None:
    api, _ = guarded
    keys = api.plane.keys
    before = keys.active()
    secret, _ = made(api, api.http, "app", "infer", models=["net*"])
    after = keys.active()
    assert after.enforced
    assert after.version == before.version + 1
    (new,) = set(after.keys) - set(before.keys)
    assert (new.name, new.scopes, new.models) == ("app", frozenset({Scope.INFER}), ("net*",))
    assert new.digest == hashlib.sha256(secret.encode()).hexdigest()
    api.http.delete("/v1/keys/app")
    assert new not in keys.active().keys


def test_instances_learn_of_keys_and_revocations(tmp_path: Path) -> None:
    store = StoreSettings(url=f"file://{tmp_path}/store")
    auth = AuthSettings(refresh_seconds=0.5)
    with (
        serving(settings_for(tmp_path / "one", embedded=False, store=store, auth=auth)) as one,
        serving(settings_for(tmp_path / "two", embedded=False, store=store, auth=auth)) as two,
    ):
        root, admin = made(one, one.http, "root", "admin")
        # The other one has been open until now; from its next look on it is not.
        deadline = time.monotonic() + 60
        while two.http.get("/v1/models").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with admin, client(two, root) as there:
            assert there.get("/v1/models").status_code == 200
            time_made = time.monotonic()
            secret, _ = made(one, admin, "new", "read")
            with client(two, secret) as holder:
                while holder.get("/v1/models").status_code != 200:
                    assert time.monotonic() < time_made + 60
                    time.sleep(0.05)
                one.ok(admin.delete("/v1/keys/new"))
                while holder.get("/v1/models").status_code != 401:
                    assert time.monotonic() < time_made + 120
                    time.sleep(0.05)


def test_revoking_the_last_key_keeps_authentication_on(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path, embedded=False)) as api:
        _, admin = made(api, api.http, "root", "admin")
        with admin:
            api.ok(admin.delete("/v1/keys/root"))
            api.problem(admin.get("/v1/models"), 401, "unauthenticated")
        api.problem(api.http.get("/v1/models"), 401, "unauthenticated")
    with serving(settings_for(tmp_path, embedded=False)) as again:
        again.problem(again.http.get("/v1/models"), 401, "unauthenticated")


def test_concurrent_creation_of_a_key_succeeds_once(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path, embedded=False)) as api:
        statuses = []

        def make() -> None:
            statuses.append(api.http.post("/v1/keys", json={"name": "root", "scopes": ["admin"]}).status_code)

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # One wins; the others get a conflict, or are rejected because a key exists now.
        assert statuses.count(201) == 1
        assert set(statuses) <= {201, 401, 409}


def test_browser_requests_are_rejected_without_keys(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path, embedded=False)) as api:
        api.publish("net", onnx_scale(2))
        externally_modified = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        problem = api.problem(api.http.delete("/v1/models/net", headers=externally_modified), 403, "forbidden")
        assert "another site" in problem["detail"]
        api.problem(api.http.post("/v1/deployments/net/load", headers=externally_modified), 403, "forbidden")
        # A name that was made to point at this machine (DNS rebinding) is not one of its own.
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:80"):
            api.problem(api.http.get("/v1/models", headers={"Host": host}), 403, "forbidden")
        for host in ("localhost", "127.0.0.1:9", "[::1]:80", "localhost:1"):
            assert api.http.get("/v1/models", headers={"Host": host}).status_code == 200
        same = {"Sec-Fetch-Site": "same-origin"}
        assert api.http.delete("/v1/models/net", headers=same).status_code == 204


def test_requests_without_keys_have_limits_by_address(tmp_path: Path) -> None:
    auth = AuthSettings(rate_per_second=0.1, burst=4)
    with serving(settings_for(tmp_path, embedded=False, auth=auth)) as api:
        statuses = [api.http.get("/v1/models").status_code for _ in range(6)]
        assert statuses[:4] == [200] * 4
        assert 429 in statuses[4:]
