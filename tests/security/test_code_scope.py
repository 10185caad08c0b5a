"""Who may bring code: TorchScript, trust, factories, and settings that make Triton load code or files."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from tests.support.api import Api, onnx_scale, settings_for
from tests.support.keys import guarded_api, with_key
from tests.support.models import publish_affine

ENVIRONMENT = {"parameters": {"EXECUTION_ENV_PATH": "$$TRITON_MODEL_DIRECTORY/1"}}
LIBRARY = {"config_overrides": {"model_operations": {"op_library_filename": ["evil.so"]}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API without a Triton, with keys in use, as an administrator sees it."""
    with guarded_api(settings_for(tmp_path_factory.mktemp("code"), embedded=False)) as api:
        yield api


@pytest.fixture(scope="module")
def deployer(root: Api) -> Iterator[Api]:
    with with_key(root, root.http, "ci", "deploy") as api:
        yield api


@pytest.fixture(scope="module")
def coder(root: Api) -> Iterator[Api]:
    with with_key(root, root.http, "coder", "code") as api:
        yield api


def version(api: Api, folder: Path, model: str, factor: float = 2.0) -> None:
    """Publish a version directly into the registry: what publishing itself checks has tests of its own."""
    publish_affine(api.plane.registry, model, folder, scale=factor, width=2)


def put(api: Api, model: str, body: dict[str, object], status: int = 202) -> dict[str, object]:
    return api.ok(api.http.put(f"/v1/deployments/{model}", json=body), status)


def revisions(api: Api, model: str) -> list[int]:
    answer = api.http.get(f"/v1/deployments/{model}/revisions")
    return [] if answer.status_code == 404 else [one["number"] for one in api.ok(answer)["items"]]


@pytest.mark.parametrize("settings", [ENVIRONMENT, LIBRARY])
def test_settings_that_load_code_need_the_scope_code(
    root: Api, deployer: Api, coder: Api, settings: dict[str, object], tmp_path: Path
) -> None:
    model = "env" if settings is ENVIRONMENT else "lib"
    version(root, tmp_path, model)
    for dry_run in ("true", "false"):
        answer = deployer.http.put(
            f"/v1/deployments/{model}",
            params={"dry_run": dry_run},
            json={"reference": f"{model}:1", "settings": settings},
        )
        problem = deployer.problem(answer, 403, "forbidden")
        assert "scope 'code'" in problem["detail"]
        assert "tritonctl keys create" in problem["detail"]
    assert revisions(deployer, model) == [], "what is refused is not recorded"
    put(coder, model, {"reference": f"{model}:1", "settings": settings})
    assert revisions(deployer, model) == [1]


def test_key_without_code_scope_can_only_change_harmless_settings(
    root: Api, deployer: Api, coder: Api, tmp_path: Path
) -> None:
    version(root, tmp_path, "mixed")
    put(deployer, "mixed", {"reference": "mixed:1", "settings": {}})
    put(coder, "mixed", {"reference": "mixed:1", "settings": ENVIRONMENT})
    put(deployer, "mixed", {"reference": "mixed:1", "settings": {**ENVIRONMENT, "priority": 5}})
    put(deployer, "mixed", {"reference": "mixed:1"})
    # Another version would bring other files under the same settings.
    version(root, tmp_path, "mixed", 3.0)
    for body in ({"reference": "mixed:2"}, {"reference": "mixed"}):
        deployer.problem(deployer.http.put("/v1/deployments/mixed", json=body), 403, "forbidden")
    put(deployer, "mixed", {"reference": "mixed:2", "settings": {}})
    # Neither does a rollback bring the settings back.
    deployer.problem(deployer.http.post("/v1/deployments/mixed/rollback", json={"revision": 2}), 403, "forbidden")
    deployer.ok(deployer.http.post("/v1/deployments/mixed/rollback", json={"revision": 1}), 202)
    coder.ok(coder.http.post("/v1/deployments/mixed/rollback", json={"revision": 2}), 202)


def test_settings_that_load_code_cannot_follow_an_alias(root: Api, deployer: Api, coder: Api, tmp_path: Path) -> None:
    version(root, tmp_path, "alias")
    coder.ok(coder.http.put("/v1/models/alias/aliases/live", json={"version": 1}))
    answer = coder.http.put("/v1/deployments/alias", json={"reference": "alias@live", "settings": ENVIRONMENT})
    assert "alias:1" in coder.problem(answer, 422, "invalid-input")["detail"]
    # One that an earlier release recorded stays at its version when the alias moves.
    registry = root.plane.registry
    spec = DeploymentSpec(
        model="alias",
        reference="alias@live",
        version=1,
        settings=DeploymentSettings.model_validate(ENVIRONMENT),
    )
    registry.deployments.put(spec, after=None, actor="old", reason="")
    version(root, tmp_path, "alias", 3.0)
    deployer.ok(deployer.http.put("/v1/models/alias/aliases/live", json={"version": 2}))
    desired_state = root.plane.reconciler._reader._desired_state
    desired_deployment = desired_state.read("alias")
    assert desired_deployment is not None
    assert desired_state.follow_alias(desired_deployment) is None
    assert registry.deployments.get("alias", fresh=True).spec.version == 1


def test_torchscript_needs_the_scope_code(deployer: Api, coder: Api, tmp_path: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Net()).save(str(path))
    signature = {
        "inputs": [{"name": "INPUT__0", "dtype": "FP32", "shape": [2]}],
        "outputs": [{"name": "OUTPUT__0", "dtype": "FP32", "shape": [2]}],
    }
    data = path.read_bytes()
    for fields in ({}, {"format": "torchscript"}):
        upload = deployer.upload({"net.pt": data})
        body = {"upload_id": upload, "signature": signature, **fields}
        error = deployer.failed(deployer.http.post("/v1/models/script/versions", json=body))
        assert error["code"] == "forbidden", error
        assert "scope 'code'" in error["detail"]
    assert deployer.http.get("/v1/models/script").status_code == 404
    checked = deployer.done(deployer.http.post("/v1/validations", json={"upload_id": upload, "signature": signature}))
    assert not checked["ok"]
    assert "scope 'code'" in checked["checks"][0]["message"]
    coder.publish("script", data, "net.pt", signature=signature)
    # Once a key with the scope has brought it, it is a version like any other.
    assert deployer.done(deployer.http.post("/v1/validations", json={"reference": "script:1"}))["ok"]
    put(deployer, "script", {"reference": "script:1"})


def test_trust_and_factories_need_the_scope_code(root: Api, deployer: Api, coder: Api, tmp_path: Path) -> None:
    version(root, tmp_path, "net")
    upload = deployer.upload({"x.onnx": onnx_scale(4.0)})
    convert = {"source": "net:1", "target": "onnx"}
    for path, body in (
        ("/v1/models/net/versions", {"upload_id": upload, "trust": True}),
        ("/v1/validations", {"upload_id": upload, "trust": True}),
        ("/v1/conversions", {**convert, "options": {"target": "onnx", "trust": True}}),
        ("/v1/conversions", {**convert, "options": {"target": "onnx", "factory": "nets:build"}}),
    ):
        problem = deployer.problem(deployer.http.post(path, json=body), 403, "forbidden")
        assert "scope 'code'" in problem["detail"]
    coder.ok(coder.http.post("/v1/validations", json={"upload_id": upload, "trust": True}), 202)


def test_settings_that_triton_would_refuse_are_not_recorded(root: Api, deployer: Api, tmp_path: Path) -> None:
    version(root, tmp_path, "bad")
    for settings in (
        {"config_overrides": {"max_batch_size": 3}},
        {"config_overrides": {"no_such_field": 1}},
        {"config_overrides": {"output": [{"name": "z", "dims": [2]}]}},
        {"parameters": {"tcp_scalars": "x"}},
        {"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [8]}},
    ):
        answer = deployer.http.put("/v1/deployments/bad", json={"reference": "bad:1", "settings": settings})
        deployer.problem(answer, 422, "invalid-config")
    assert revisions(deployer, "bad") == []


def test_next_deployment_repairs_a_recorded_setting_triton_refuses(root: Api, deployer: Api, tmp_path: Path) -> None:
    version(root, tmp_path, "stuck")
    settings = {"priority": 7, "config_overrides": {"output": [{"name": "z", "dims": [2]}]}}
    spec = DeploymentSpec(
        model="stuck", reference="stuck:1", version=1, settings=DeploymentSettings.model_validate(settings)
    )
    root.plane.registry.deployments.put(spec, after=None, actor="old", reason="")
    deployment = put(deployer, "stuck", {"reference": "stuck:1"})
    after = deployer.ok(deployer.http.get("/v1/deployments/stuck"))
    assert after["revision"] == deployment["revision"] == 2
    assert after["spec"]["settings"]["config_overrides"] == {}
    assert after["spec"]["settings"]["priority"] == 7
    assert "config_overrides" in after["reason"]
    # A caller that asks for a refused setting gets an error, and a rollback does not bring it back.
    asked = deployer.http.put("/v1/deployments/stuck", json={"reference": "stuck:1", "settings": settings})
    deployer.problem(asked, 422, "invalid-config")
    problem = deployer.problem(deployer.http.post("/v1/deployments/stuck/rollback", json={}), 422, "invalid-config")
    assert "revision 1 cannot run" in problem["detail"]


def test_tuned_copy_needs_only_the_rights_of_the_deployment(deployer: Api) -> None:
    """A tuning takes no configuration of its own: its request has no field that could bring code."""
    answer = deployer.http.post("/v1/tunings", json={"model": "net", "space": {"parameters": ["EXECUTION_ENV_PATH"]}})
    assert answer.status_code == 422
