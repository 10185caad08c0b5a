"""Burn rates, and end to end: a breach of a real model is reported by an event and a webhook, and so is its end."""

import base64
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec, Objectives
from controlplane.domain.metrics import ObjectiveKind
from controlplane.domain.rollout.rollback import rollback_target
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import ConflictError
from controlplane.monitoring.alerts import AlertState, next_alert_state
from controlplane.monitoring.objectives import judge, threshold
from controlplane.reconciler.loop_metrics import PropagationLag
from controlplane.registry.deployments import DeploymentRevision
from controlplane.settings import BurnRule, MonitoringSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.receiver import Receiver

RULES = (BurnRule(long_seconds=3600, short_seconds=300, factor=14.4),)
PROMISE = Objectives(failure_percent=1)


def failures(long: float, short: float, requests: float = 1000) -> bool:
    def failed(window: float) -> tuple[float, float]:
        return (long if window == 3600 else short) * requests, requests

    (state,) = judge(PROMISE, slow=failed, failed=failed, rules=RULES, min_requests=10)
    assert state.kind is ObjectiveKind.FAILURES
    return state.burning


def test_objective_burns_if_both_windows_burn() -> None:
    assert failures(0.15, 0.15)
    assert not failures(0.15, 0.14)  # it was bad, and is not any more
    assert not failures(0.14, 0.9)  # a blip
    assert not failures(1, 1, requests=9)  # too few to say
    assert not failures(0, 0, requests=0)


def test_each_objective_is_evaluated_separately() -> None:
    promise = Objectives(p99_milliseconds=50, failure_percent=1)
    slow, failed = judge(promise, slow=lambda _: (20, 100), failed=lambda _: (0, 100), rules=RULES, min_requests=10)
    assert (slow.kind, slow.burning, slow.budget, slow.windows[0].long_rate) == (ObjectiveKind.LATENCY, True, 0.01, 20)
    assert (failed.burning, failed.windows[0].short_rate) == (False, 0)
    assert judge(Objectives(), slow=lambda _: (1, 1), failed=lambda _: (1, 1), rules=RULES, min_requests=0) == ()


@given(st.floats(0.0001, 0.99), st.floats(1, 20))
def test_every_budget_can_burn(budget: float, factor: float) -> None:
    assert budget < threshold(factor, budget) * budget + 1e-9 <= 1 + 1e-9


def test_rollback_ignores_and_keeps_objectives() -> None:
    class Numbered:
        def __init__(self, number: int, version: int, objectives: Objectives | None) -> None:
            self.number = number
            settings = DeploymentSettings(objectives=objectives)
            self.spec = DeploymentSpec(model="m", reference=f"m:{version}", version=version, settings=settings)

    promise = Objectives(p99_milliseconds=5)
    target = rollback_target([Numbered(3, 2, promise), Numbered(2, 2, None), Numbered(1, 1, None)])
    assert (target.version, target.settings.objectives) == (1, promise)
    with pytest.raises(ConflictError):
        rollback_target([Numbered(2, 1, promise), Numbered(1, 1, None)])


def test_lag_counts_from_revision_or_failure() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    spec = DeploymentSpec(model="m", reference="m:1", version=1)

    def revision(number: int, seconds: float) -> dict[str, DeploymentRevision]:
        return {"m": DeploymentRevision(number, start + timedelta(seconds=seconds), "ada", "", str(number), spec)}

    def status(number: int, phase: Phase) -> dict[str, DeploymentStatus]:
        return {"m": DeploymentStatus(revision=number, phase=phase)}

    def at(seconds: float) -> datetime:
        return start + timedelta(seconds=seconds)

    propagation_lag = PropagationLag()

    def see(seconds: float, wanted: dict[str, DeploymentRevision], found: dict[str, DeploymentStatus]) -> float | None:
        return propagation_lag.see(at(seconds), ["m"], wanted, found.get).get("m")

    assert see(5, revision(1, 0), {}) == 5
    assert see(6, revision(1, 0), status(1, Phase.LOADING)) == 6
    assert see(7, revision(1, 0), status(1, Phase.READY)) is None
    assert see(500, revision(1, 0), status(1, Phase.FAILED)) == 0, "it fell just now"
    assert propagation_lag.see(at(510), [], revision(1, 0), status(1, Phase.FAILED).get) == {"m": 10}, (
        "what lags is looked at"
    )
    assert see(520, revision(1, 0), status(1, Phase.READY)) is None
    assert see(530, revision(2, 525), status(1, Phase.READY)) == 5, "something newer is wanted"
    assert see(540, revision(2, 525), status(2, Phase.UNLOADED)) is None
    assert see(550, {}, {}) is None


def until(what: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.1)
    return found


@pytest.mark.triton
def test_breached_and_recovered_objectives_are_reported(
    receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = "whsec_" + base64.b64encode(b"x" * 24).decode()
    monitoring = MonitoringSettings.model_validate(
        {
            "interval_seconds": 0.2,
            "objective_interval_seconds": 0.2,
            "burn_rules": [{"long_seconds": 60, "short_seconds": 4, "factor": 2}],
            "webhook_url": receiver.url,
            "webhook_secret": secret,
            "webhook_backoff_initial_seconds": 0.05,
        }
    )
    settings = settings_for(tmp_path_factory.mktemp("promises"), embedded=True, monitoring=monitoring)
    with serving(settings) as api:
        api.publish("net", onnx_scale(2))
        api.deploy("net:1", bake_seconds=0, objectives={"p99_milliseconds": 0.001})
        before = api.ok(api.http.get("/v1/deployments/net"))["memory"][0]["loaded_at"]
        receiver.status = 503  # the alert is sent later
        url = api.ok(api.http.get("/v1/servers"))["items"][0]["http_url"]
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}]}

        def event(reason: str) -> dict[str, Any] | None:
            return next((one for one in events(api) if one["reason"] == reason), None)

        def asked_until(reason: str) -> dict[str, Any] | None:
            with httpx.Client(base_url=url, timeout=30) as http:
                for _ in range(20):
                    http.post("/v2/models/net/infer", json=body).raise_for_status()
            return event(reason)

        told = until(lambda: asked_until("ObjectiveBreached"))
        assert (told["type"], told["subject"]) == ("Warning", "net")
        assert "0.001 ms" in told["message"]
        (state,) = api.ok(api.http.get("/v1/deployments/net/metrics"))["objectives"]
        assert state["burning"]
        page = api.http.get("/metrics").text
        assert 'tritonctl_objective_burning{model="net",objective="latency"} 1.0' in page
        receiver.status = 200
        until(lambda: receiver.matching(lambda one: b"objective.burning" in one.body))

        # An objective that can be met: the model is as slow as before, and nothing is loaded again for it.
        reference = {"reference": "net:1", "settings": {"bake_seconds": 0, "objectives": {"p99_milliseconds": 60_000}}}
        api.operation(api.ok(api.http.put("/v1/deployments/net", json=reference), 202)["operation_id"])
        until(lambda: asked_until("ObjectiveRecovered"))
        until(lambda: receiver.matching(lambda one: b"objective.kept" in one.body))
        assert api.ok(api.http.get("/v1/deployments/net"))["memory"][0]["loaded_at"] == before
        documents = [json.loads(one.body) for one in receiver.received]
        assert documents[-1]["type"] == "objective.kept"
        assert documents[-1]["data"]["model"] == "net"
        assert documents[0]["data"]["objective"]["burning"]
        for answer in ("/v1/info", "/v1/events", "/metrics", "/v1/deployments/net/metrics"):
            text = api.http.get(answer).text
            assert secret not in text
            assert "very-secret-token" not in text


OURS = AlertState(True, "msg_1")
THEIRS = AlertState(True, "msg_1", recalled=True)


@pytest.mark.parametrize(
    ("told", "burning", "seasoned", "expected"),
    [
        (AlertState(), False, True, AlertState()),
        (AlertState(), True, False, AlertState(True, "new", arrived=False)),
        (OURS, True, True, OURS),
        (OURS, False, False, AlertState(False, "new", arrived=False)),
        (THEIRS, True, False, THEIRS),
        (THEIRS, False, False, THEIRS),  # its windows are empty: that says nothing yet
        (THEIRS, False, True, AlertState(False, "new", arrived=False)),
    ],
)
def test_next_alert_depends_on_last_alert(
    told: AlertState, burning: bool, seasoned: bool, expected: AlertState
) -> None:
    assert next_alert_state(told, burning=burning, seasoned=seasoned, new_id="new") == expected


@pytest.mark.triton
def test_undelivered_alert_is_sent_after_restart_with_same_id(
    receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monitoring = MonitoringSettings.model_validate(
        {
            "interval_seconds": 0.2,
            "objective_interval_seconds": 0.2,
            "burn_rules": [{"long_seconds": 60, "short_seconds": 4, "factor": 2}],
            "webhook_url": receiver.url,
            "webhook_secret": "a secret that is long enough",
            "webhook_backoff_initial_seconds": 0.05,
            "webhook_backoff_max_seconds": 0.2,
        }
    )
    settings = settings_for(tmp_path_factory.mktemp("told"), embedded=True, monitoring=monitoring)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}]}

    def recorded(state: str) -> bool:
        return any(state in path.read_text() for path in settings.data_dir.rglob("conditions/net/*.json"))

    with serving(settings) as api:
        api.publish("net", onnx_scale(2))
        receiver.status = 503  # before the deployment: its proof's own requests may burn already
        api.deploy("net:1", bake_seconds=0, objectives={"p99_milliseconds": 0.001})
        url = api.ok(api.http.get("/v1/servers"))["items"][0]["http_url"]

        def asked_until_recorded() -> bool:
            with httpx.Client(base_url=url, timeout=30) as http:
                for _ in range(20):
                    http.post("/v2/models/net/infer", json=body).raise_for_status()
            return bool(receiver.received) and recorded('"arrived": false')

        until(asked_until_recorded)
    tries = len(receiver.received)
    (tried,) = {one.headers["webhook-id"] for one in receiver.received}
    (body_tried,) = {one.body for one in receiver.received}
    receiver.status, started = 200, time.monotonic()
    with serving(settings):
        # No requests any more: the alert is sent under its old id, and its recovery once the windows are full.
        until(lambda: len(receiver.received) >= tries + 2 and recorded('"burning": false'))
        until(lambda: recorded('"arrived": true'))
    first, second = receiver.received[tries : tries + 2]
    assert (first.headers["webhook-id"], first.body) == (tried, body_tried)
    assert json.loads(first.body)["type"] == "objective.burning"
    assert json.loads(first.body)["data"]["objective"]["burning"]
    assert second.headers["webhook-id"] != tried
    assert json.loads(second.body)["type"] == "objective.kept"
    assert second.at - started >= monitoring.burn_rules[0].short_seconds


def events(api: Api) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.ok(api.http.get("/v1/events"))["items"]
    return found
