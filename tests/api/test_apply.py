"""Documents over REST, and the commands apply, diff and get, with a real Triton."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Cli, Result
from tests.support.api import Api, onnx_scale

pytestmark = pytest.mark.triton


def document(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "tritonctl/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def apply(api: Api, *documents: dict[str, Any], dry_run: bool = False, **options: Any) -> dict[str, str]:
    """Apply documents, wait for what they start, and return the action of each."""
    body = {"documents": list(documents), **options}
    result = api.ok(api.http.post("/v1/apply", json=body, params={"dry_run": dry_run}))
    for one in result["items"]:
        if one["operation_id"]:
            assert api.operation(one["operation_id"])["state"] == "succeeded"
    return {f"{one['kind']} {one['name']}": one["action"] for one in result["items"]}


def revision(api: Api, model: str) -> int:
    return int(api.ok(api.http.get(f"/v1/deployments/{model}"))["revision"])


@pytest.fixture
def model(api: Api, request: pytest.FixtureRequest) -> str:
    """A model with two versions."""
    name = f"a{abs(hash(request.node.name)) % 10**6}"
    api.publish(name, onnx_scale(2.0))
    api.publish(name, onnx_scale(3.0))
    return name


@pytest.fixture
def shell(api: Api, tmp_path: Path) -> Callable[..., Result]:
    """The command line against the application."""
    return partial(Cli(tmp_path / "none", tmp_path), TRITONCTL_URL=api.url)


def test_documents_are_applied_in_order_and_once(api: Api, model: str) -> None:
    documents = (
        document("Deployment", model, reference=f"{model}@live", settings={"max_batch_size": 4}),
        document("Alias", f"{model}@live", version=1),
        document("Model", model, description="doubles", labels={"team": "a"}),
    )
    created = {f"Model {model}": "update", f"Alias {model}@live": "create", f"Deployment {model}": "create"}
    assert apply(api, *documents, dry_run=True) == created
    api.problem(api.http.get(f"/v1/deployments/{model}"), 404, "not-found")
    assert apply(api, *documents) == created
    assert api.infer(model, [1.0, 2.0]) == ([2.0, 4.0], 1)
    before = revision(api, model)
    assert set(apply(api, *documents).values()) == {"unchanged"}
    assert revision(api, model) == before


def test_rollback_is_not_undone_by_the_same_documents(api: Api, model: str) -> None:
    wanted = document("Deployment", model, reference=f"{model}:2")
    apply(api, document("Deployment", model, reference=f"{model}:1"))
    apply(api, wanted)
    back = api.ok(api.http.post(f"/v1/deployments/{model}/rollback"), 202)
    assert api.operation(back["operation_id"])["state"] == "succeeded"
    assert apply(api, wanted) == {f"Deployment {model}": "kept"}
    assert api.infer(model, [1.0, 2.0])[1] == 1
    assert apply(api, wanted, force=True) == {f"Deployment {model}": "update"}
    assert api.infer(model, [1.0, 2.0])[1] == 2


def test_one_refused_document_changes_nothing(api: Api, model: str) -> None:
    documents = [
        document("Model", model, description="changed"),
        document("Deployment", model, reference=f"{model}:9"),
        document("Alias", f"{model}@latest", version=1),
    ]
    problem = api.problem(api.http.post("/v1/apply", json={"documents": documents}), 422, "invalid-input")
    assert "nothing was changed" in problem["detail"]
    assert "no version 9" in problem["detail"]
    assert "'latest'" in problem["detail"]
    assert api.ok(api.http.get(f"/v1/models/{model}"))["description"] == ""
    twice = {"documents": [documents[0], documents[0]]}
    api.problem(api.http.post("/v1/apply", json=twice), 422, "invalid-input")


def test_prune_undeploys_only_what_the_set_no_longer_has(api: Api, model: str) -> None:
    api.publish(f"{model}-other", onnx_scale(2.0))
    api.deploy(f"{model}-other:1")  # by hand, so it belongs to no set
    wanted = document("Deployment", model, reference=f"{model}:1")
    apply(api, wanted, set="blue")
    assert apply(api, set="green", prune=True) == {}
    assert apply(api, set="blue", prune=True) == {f"Deployment {model}": "delete"}
    api.problem(api.http.get(f"/v1/deployments/{model}"), 404, "not-found")
    assert revision(api, f"{model}-other") == 1


def test_get_prints_what_apply_takes_and_diff_finds_changes(
    api: Api, model: str, shell: Callable[..., Result], tmp_path: Path
) -> None:
    apply(api, document("Deployment", model, reference=f"{model}:1", settings={"max_batch_size": 4}))
    file = tmp_path / "net.yaml"
    file.write_text(shell("get", "deployment", model).out)
    (written,) = yaml.safe_load_all(file.read_text())
    assert written["spec"] == {"reference": f"{model}:1", "settings": {"max_batch_size": 4}}
    assert shell("diff", "-f", file).code == 0
    file.write_text(json.dumps(written | {"spec": {"reference": f"{model}:2"}}))
    differs = shell("diff", "-f", tmp_path)
    assert differs.code == 2, differs
    assert f"{model}:1 -> {model}:2" in differs.out
    applied = shell("apply", "-f", file, "--wait", "-o", "json").json
    assert (applied["changed"], applied["items"][0]["action"]) == (1, "update")
    assert api.infer(model, [1.0, 2.0])[1] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [", "line 1"),
        ("kind: Webhook", "CONTROLPLANE_MONITORING__WEBHOOK_URL"),
        ("kind: Deploymant", "'Deployment'"),
        ("[1]", "must be an object"),
        ("", "no document in"),
    ],
)
def test_file_that_is_no_document_is_refused(
    shell: Callable[..., Result], tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    refused = shell("apply", "-f", file)
    assert refused.code == 6, refused
    assert message in refused.err
