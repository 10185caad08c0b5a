"""The audit log: who changed what, from the chains of models, deployments and keys."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from controlplane.cli.main import app, register
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.keys import made


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, dict[str, httpx.Client], str]]:
    """A model with two versions and an alias, another model, and keys; clients by the name of their key."""
    with serving(settings_for(tmp_path_factory.mktemp("audit"), embedded=False)) as api:
        api.publish("net", onnx_scale(2.0))
        api.publish("net", onnx_scale(3.0))
        api.ok(api.http.put("/v1/models/net/aliases/champion", json={"version": 1, "reason": "measured best"}))
        api.publish("team-net", onnx_scale(4.0))
        _, root = made(api, api.http, "root", "admin")
        clients = {"root": root}
        for name, scope, models in (("auditor", "audit", []), ("team", "audit", ["team-*"]), ("reader", "read", [])):
            secret, clients[name] = made(api, root, name, scope, models=models)
            if name == "auditor":
                auditor = secret
        yield api, clients, auditor
        for client in clients.values():
            client.close()


def test_page_says_who_changed_what_and_why(changed: tuple[Api, dict[str, httpx.Client], str]) -> None:
    api, clients, _ = changed
    items = api.ok(clients["auditor"].get("/v1/audit"))["items"]
    aliases = [one for one in items if one["kind"] == "alias"]
    assert [(one["name"], one["actor"], one["changed"]) for one in aliases] == [("net", "ada", ["aliases"])]
    assert "measured best" in aliases[0]["reason"]
    assert aliases[0]["revision"] == 3  # two versions, the alias
    keys = [one for one in items if one["kind"] == "key"]
    assert [one["revision"] for one in keys] == [1, 2, 3, 4]
    assert keys[1]["actor"].startswith("root")
    assert "digest" not in json.dumps(items)
    assert [one["stored_at"] for one in items] == sorted(one["stored_at"] for one in items)
    net = api.ok(clients["root"].get("/v1/audit", params={"model": "net"}))["items"]
    assert net == [one for one in items if one["name"] == "net"]


def test_pages_and_stream_give_the_same_in_the_same_order(changed: tuple[Api, dict[str, httpx.Client], str]) -> None:
    api, clients, _ = changed
    http = clients["auditor"]
    whole = api.ok(http.get("/v1/audit", params={"limit": 1000}))
    assert whole["next_cursor"] is None
    paged: list[Any] = []
    cursor = None
    while True:
        page = api.ok(http.get("/v1/audit", params={"limit": 2} | ({"cursor": cursor} if cursor else {})))
        assert len(page["items"]) <= 2
        paged += page["items"]
        if (cursor := page["next_cursor"]) is None:
            break
    streamed = http.get("/v1/audit", params={"format": "jsonl"})
    assert streamed.headers["content-type"].startswith("application/jsonl")
    assert [json.loads(line) for line in streamed.text.splitlines()] == paged == whole["items"]


def test_only_the_wanted_time(changed: tuple[Api, dict[str, httpx.Client], str]) -> None:
    api, clients, _ = changed
    items = api.ok(clients["auditor"].get("/v1/audit"))["items"]
    middle = items[len(items) // 2]["stored_at"]
    later = api.ok(clients["auditor"].get("/v1/audit", params={"since": middle}))["items"]
    earlier = api.ok(clients["auditor"].get("/v1/audit", params={"until": middle}))["items"]
    assert earlier + later == items
    assert earlier
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert api.ok(clients["auditor"].get("/v1/audit", params={"since": tomorrow}))["items"] == []
    api.problem(clients["auditor"].get("/v1/audit", params={"cursor": "bm90LWEtdGltZQ"}), 422, "invalid-input")


def test_scope_and_models_of_a_key_decide(changed: tuple[Api, dict[str, httpx.Client], str]) -> None:
    api, clients, _ = changed
    api.problem(clients["reader"].get("/v1/audit"), 403, "forbidden")
    api.problem(clients["auditor"].get("/v1/models"), 403, "forbidden")
    seen = api.ok(clients["team"].get("/v1/audit"))["items"]
    assert {(one["kind"], one["name"]) for one in seen} == {("model", "team-net")}
    api.problem(clients["team"].get("/v1/audit", params={"model": "net"}), 403, "forbidden")


def test_command_prints_json_lines(changed: tuple[Api, dict[str, httpx.Client], str], tmp_path: Path) -> None:
    api, clients, secret = changed
    key_file = tmp_path / "key"
    key_file.write_text(secret)
    register(("audit",))
    runner = CliRunner()
    done = runner.invoke(
        app,
        ["audit", "--url", api.url, "--api-key-file", str(key_file), "--since", "1h", "--model", "net", "-o", "json"],
    )
    assert done.exit_code == 0, done.output
    items = api.ok(clients["root"].get("/v1/audit", params={"model": "net"}))["items"]
    assert [json.loads(line) for line in done.stdout.splitlines()] == items
