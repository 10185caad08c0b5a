"""Rollouts over REST and on the command line, ended manually, with a real Triton and without inference requests."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.settings import GatewaySettings, MemorySettings
from tests.cli.conftest import Cli, Result
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.models import affine_onnx

pytestmark = [pytest.mark.triton, pytest.mark.slow]

CANARY = {"kind": "canary", "steps": [{"weight_percent": 5, "seconds": 600}], "minimum_requests": 10}


@pytest.fixture
def model(api: Api, request: pytest.FixtureRequest) -> str:
    """Version 1 answers, version 2 is published."""
    name = f"m{abs(hash(request.node.name)) % 10**6}"
    api.publish(name, onnx_scale(1.0))
    api.publish(name, onnx_scale(2.0))
    assert api.deploy(f"{name}:1")["state"] == "succeeded"
    return name


def rollout(api: Api, model: str) -> dict[str, Any]:
    return api.ok(api.http.get(f"/v1/rollouts/{model}"))


def until(api: Api, model: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    end = time.monotonic() + 60
    while not condition(found := rollout(api, model)):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def reasons(api: Api, model: str) -> list[str]:
    items = api.ok(api.http.get(f"/v1/deployments/{model}/revisions"))["items"]
    return [item["reason"] for item in reversed(items)]


def answers(api: Api, model: str, version: int) -> None:
    end = time.monotonic() + 60
    while api.infer(model, [1.0, 2.0])[1] != version:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_rollout_is_paused_resumed_and_promoted_manually(api: Api, model: str) -> None:
    api.problem(api.http.get(f"/v1/rollouts/{model}"), 404, "not-found")
    api.problem(api.http.post(f"/v1/rollouts/{model}/promote"), 409, "conflict")
    assert api.deploy(f"{model}:2", rollout=CANARY)["state"] == "succeeded"
    found = until(api, model, lambda one: one["step"] == 1)
    assert (found["old"]["version"], found["new"]["version"], found["phase"]) == (1, 2, "running")
    assert (found["weight"], found["steps"], found["ready"]) == (0.05, 1, True)
    assert "600 s left" in found["message"] or "599 s left" in found["message"]
    assert [test["signal"] for test in found["tests"]] == ["failures", "p50", "p99"]
    assert all(test["odds"] == 1.0 and test["needed_odds"] == pytest.approx(300) for test in found["tests"])
    assert api.infer(model, [1.0, 2.0]) == ([1.0, 2.0], 1), "Triton's own port goes on answering with the old one"
    assert f'tritonctl_rollout_weight{{model="{model}"}} 0.05' in api.http.get("/metrics").text
    assert model in [one["model"] for one in api.ok(api.http.get("/v1/rollouts"))["items"]]
    assert api.ok(api.http.post(f"/v1/rollouts/{model}/pause", json={"reason": "lunch"}))["phase"] == "paused"
    assert api.ok(api.http.post(f"/v1/rollouts/{model}/resume"))["phase"] == "running"
    promoted = api.ok(api.http.post(f"/v1/rollouts/{model}/promote", json={"reason": "sure"}))
    assert promoted["phase"] == "promoted"
    answers(api, model, 2)
    assert reasons(api, model)[1:] == [
        f"deploy {model}:2 by canary",
        "rollout of version 2: version 2 is ready: step 1 of 1, 5 % of the requests",
        "rollout of version 2 paused by ada: lunch",
        "rollout of version 2 resumed by ada",
        "rollout of version 2 promoted by ada: sure (0 of 0 requests failed, active version 0 of 0; p50 unknown, "
        "active version unknown; p99 unknown, active version unknown)",
    ]
    end = time.monotonic() + 60
    while not (reports := api.ok(api.http.get(f"/v1/models/{model}/versions/2/reports"))["items"]):
        assert time.monotonic() < end, "a promoted version has a report as any other"
        time.sleep(0.05)
    assert reports[0]["version"] == 2
    # And back, as after any deploy.
    api.operation(api.ok(api.http.post(f"/v1/deployments/{model}/rollback"), 202)["operation_id"])
    answers(api, model, 1)


def test_rollback_ends_the_rollout(api: Api, model: str) -> None:
    api.deploy(f"{model}:2", rollout=CANARY)
    until(api, model, lambda one: one["step"] == 1)
    body = {"reason": "not today"}
    deployment = api.ok(api.http.post(f"/v1/deployments/{model}/rollback", json=body), 202)
    assert deployment["spec"]["rollout"]["phase"] == "aborted"
    assert rollout(api, model)["message"] == "rollback by ada"
    assert reasons(api, model)[-1] == "rollback of the rollout of version 2: not today"
    api.problem(api.http.post(f"/v1/rollouts/{model}/abort"), 409, "conflict")
    assert api.infer(model, [1.0, 2.0]) == ([1.0, 2.0], 1)


def test_rollout_of_an_unloaded_model_waits(api: Api, model: str) -> None:
    api.deploy(f"{model}:2", rollout=CANARY)
    begun = until(api, model, lambda one: one["step"] == 1)
    api.operation(api.ok(api.http.post(f"/v1/deployments/{model}/unload"), 202)["operation_id"])
    found = rollout(api, model)
    assert (found["phase"], found["ready"], found["weight"]) == ("running", False, 0.0)
    assert "continues when it is loaded again" in found["message"]
    api.ok(api.http.post(f"/v1/deployments/{model}/load", params={"wait": 60}))
    found = until(api, model, lambda one: one["ready"])
    assert (found["step"], found["began_at"]) == (1, begun["began_at"])
    api.ok(api.http.post(f"/v1/rollouts/{model}/abort"))


def test_version_in_a_rollout_cannot_be_deleted(api: Api, model: str) -> None:
    api.deploy(f"{model}:2", rollout=CANARY)
    until(api, model, lambda one: one["step"] == 1)
    problem = api.http.delete(f"/v1/models/{model}/versions/2")
    assert problem.status_code == 409
    assert f"it is the candidate of a rollout of {model}" in problem.text
    api.ok(api.http.post(f"/v1/rollouts/{model}/abort"))


def test_moved_alias_starts_one_rollout(api: Api, model: str) -> None:
    alias = f"/v1/models/{model}/aliases/champion"
    api.ok(api.http.put(alias, json={"version": 1}))
    api.deploy(f"{model}@champion", rollout=CANARY)
    api.ok(api.http.put(alias, json={"version": 2}))

    def begun() -> bool:
        return api.http.get(f"/v1/rollouts/{model}").status_code == 200

    end = time.monotonic() + 30
    while not begun():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert rollout(api, model)["new"]["version"] == 2
    api.ok(api.http.put(alias, json={"version": 1}))
    found = until(api, model, lambda one: one["phase"] == "aborted")
    assert found["message"] == "alias champion points at version 1 again"
    number = len(reasons(api, model))
    api.ok(api.http.put(alias, json={"version": 2}))
    time.sleep(1.0)  # several rounds of the reconciler, which reads aliases in each
    assert len(reasons(api, model)) == number, "what was withdrawn is not tried again because the alias still says so"
    assert rollout(api, model)["phase"] == "aborted"


def test_cli_shows_and_ends_a_rollout(api: Api, model: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path / "data", tmp_path)

    def run(*words: str) -> Result:
        return cli(*words, TRITONCTL_URL=api.url)

    begun = run("deploy", f"{model}:2", "--strategy", "canary", "--steps", "5%:10m,25%:10m,100%")
    assert begun.code == 0, begun.err
    assert f"started canary rollout of {model}:2 (active: 1)" in begun.out
    until(api, model, lambda one: one["step"] == 1)
    shown = run("rollout", model)
    assert shown.code == 0, shown.err
    assert "1 -> 2  canary  running  step 1 of 2, 5 % of the requests" in shown.out
    assert [line.split()[:2] for line in shown.out.splitlines() if line.startswith(("old", "new"))] == [
        ["old", "1"],
        ["new", "2"],
    ]
    assert run("-o", "json", "rollout", "pause", model).json["phase"] == "paused"
    assert run("rollout", "resume", model).code == 0
    assert run("rollout", "frobnicate", model).code == 6
    ended = run("rollout", "abort", model, "--reason", "wrong labels", "--watch")
    assert ended.code == 7, ended.err
    assert "aborted by ada: wrong labels" in ended.out
    assert run("rollout", "abort", model).code == 5
    assert "wrong labels" in run("history", model).out
    assert run("deploy", f"{model}:2", "--steps", "five").code == 6


def test_wait_for_a_rollout_returns_when_it_ends(api: Api, model: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path / "data", tmp_path)
    line = ("deploy", f"{model}:2", "--strategy", "canary", "--steps", "5%:10m,100%", "--wait")
    assert cli(*line, "--timeout", 3, TRITONCTL_URL=api.url).code == 8
    api.ok(api.http.post(f"/v1/rollouts/{model}/abort"))
    for verb, code, words in (("abort", 7, f"{model}:2 was withdrawn"), ("promote", 0, f"{model}:2 is promoted")):
        before = rollout(api, model)["began_at"]
        waiting = cli.start(*line, TRITONCTL_URL=api.url)
        try:
            until(api, model, lambda one, before=before: one["began_at"] != before and one["step"] == 1)  # type: ignore[misc]
            time.sleep(0.2)
            assert waiting.poll() is None, "it waits as long as the rollout goes on"
            api.ok(api.http.post(f"/v1/rollouts/{model}/{verb}"))
            printed, _ = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
        assert words in printed
        assert waiting.returncode == code


def test_plan_reports_that_both_versions_do_not_fit(tmp_path: Path) -> None:
    memory = MemorySettings(budget_bytes={"host": 300 << 20}, poll_interval_seconds=0.2, load_queue_timeout_seconds=3.0)
    with serving(settings_for(tmp_path / "data", embedded=True, memory=memory)) as api:
        for scale in (1.0, 2.0):
            api.publish("m", affine_onnx(tmp_path / "m.onnx", scale=scale, width=2, resident_mib=80).read_bytes())
        assert api.deploy("m:1")["state"] == "succeeded"
        body = {"reference": "m:2", "settings": {"rollout": CANARY}}
        plan = api.ok(api.http.put("/v1/deployments/m", params={"dry_run": True}, json=body))
        assert plan["servers"][0]["decision"] == "refuse"
        assert "do not fit together" in plan["servers"][0]["why"]
        api.deploy("m:2", rollout=CANARY)
        until(api, "m", lambda one: "waits for memory" in one["message"])
        found = until(api, "m", lambda one: one["phase"] == "aborted")
        assert "no room after 3 s of waiting" in found["message"]
        assert api.infer("m", [1.0, 2.0])[1] == 1
        status = api.ok(api.http.get("/v1/deployments/m"))["status"]
        assert status["phase"] == "Ready"


def test_rollout_without_a_gateway_is_rejected(tmp_path: Path) -> None:
    gateway = GatewaySettings(enabled=False)
    with serving(settings_for(tmp_path / "data", embedded=True, gateway=gateway)) as api:
        for scale in (1.0, 2.0):
            api.publish("m", onnx_scale(scale))
        assert api.deploy("m:1", rollout=CANARY)["state"] == "succeeded", "a first version is no rollout"
        problem = api.problem(api.http.put("/v1/deployments/m", json={"reference": "m:2"}), 409, "conflict")
        assert "needs the gateway" in problem["detail"]
        assert api.deploy("m:2", rollout={"kind": "immediate"})["state"] == "succeeded"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(settings_for(tmp_path_factory.mktemp("rollouts"), embedded=True)) as running:
        yield running
