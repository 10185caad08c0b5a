"""Tuning through the API, on a real Triton."""

import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from controlplane.services.tuning.trial_model import LOCK
from tests.support.api import Api
from tests.tuning.conftest import centred_onnx, crowded_onnx

pytestmark = [pytest.mark.triton, pytest.mark.long]

QUICK: dict[str, Any] = {"window_seconds": 0.1, "clients": [1, 4], "time_limit_seconds": 60}
TWO_COUNTS = {"instances": [1, 2], "queue_delays_microseconds": [None], "threads": [None]}
BATCHED = {"instances": [1], "queue_delays_microseconds": [5000], "max_batch_sizes": [16], "threads": [None]}


def start(api: Api, **body: Any) -> str:
    return str(api.ok(api.http.post("/v1/tunings", json={**QUICK, **body}), 202)["id"])


def result(api: Api, **body: Any) -> dict[str, Any]:
    operation = api.operation(start(api, **body), wait=90)
    assert operation["state"] == "succeeded", operation
    found: dict[str, Any] = operation["result"]
    return found


def switch(api: Api, model: str, what: str) -> None:
    """Load or unload a deployment, and wait for it."""
    deployment = api.ok(api.http.post(f"/v1/deployments/{model}/{what}"), 202)
    assert api.operation(deployment["operation_id"])["state"] == "succeeded"


def instances(api: Api, name: str) -> list[int]:
    """The processes that run a model under a Triton name."""
    embedded = api.plane.services.tunings._servers[0].embedded
    assert embedded is not None
    return embedded.processes_of(name)


def repository(api: Api) -> Path:
    return api.plane.settings.data_dir / "model_repository"


def nothing_left(api: Api) -> None:
    assert instances(api, "layers~tune") == []
    assert not (repository(api) / "layers~tune").exists()
    assert not (repository(api) / LOCK).exists()
    assert not list(repository(api).glob(".incomplete*"))


def wait_measuring(api: Api, operation_id: str) -> None:
    """Wait until a copy is loaded and asked."""
    end = time.monotonic() + 60
    while not instances(api, "layers~tune"):
        assert time.monotonic() < end, api.operation(operation_id, wait=0)
        time.sleep(0.02)


def test_best_setting_is_found_reported_and_deployed(api: Api, layers: str) -> None:
    before = instances(api, layers)
    found = result(
        api,
        model=layers,
        rows=1,
        max_settings=4,
        space={"instances": [1, 2], "queue_delays_microseconds": [200], "threads": [None], "max_batch_sizes": [16]},
    )
    assert instances(api, layers) == before, "the deployed version was not touched"
    nothing_left(api)
    assert len(found["trials"]) == 4
    measured = [one for one in found["trials"] if one["state"] == "measured"]
    assert len(measured) >= 2
    assert found["trials"][0]["present"]
    for one in measured:
        assert [load["clients"] for load in one["measurements"]] == [1, 4]
        assert one["memory_bytes"] > 20 << 20
        for load in one["measurements"]:
            assert load["answers"] >= load["clients"]
            assert load["p50_seconds"] <= load["p99_seconds"]
            assert load["throughput"] == pytest.approx(load["answers"] / load["window_seconds"])
    assert any(one["round"] == 1 for one in found["trials"]), "the better half was measured for longer"
    assert found["met"]
    best = found["best"]
    top = max((load for one in measured for load in one["measurements"]), key=lambda load: load["throughput"])
    assert best["measurement"]["throughput"] >= (1 - max(0.03, top["spread"])) * top["throughput"]
    assert found["frontier"]
    assert ElementTree.fromstring(found["svg"]).tag.endswith("svg")
    assert found["applied_revision"] is None

    # The best setting depends on the machine, but waiting 100 ms without other requests is never best.
    api.deploy("layers:1", max_batch_size=16, dynamic_batching={"max_queue_delay_microseconds": 100_000})
    found = result(
        api,
        model=layers,
        apply=True,
        objective="p99",
        space={"instances": [1], "queue_delays_microseconds": [None], "threads": [None]},
        clients=[1],
        max_settings=2,
        reason="tuned in a test",
    )
    assert found["best"]["trial"] == 1
    assert api.operation(found["applied_operation"])["state"] == "succeeded"
    deployment = api.ok(api.http.get(f"/v1/deployments/{layers}"))
    assert deployment["revision"] == found["applied_revision"]
    assert deployment["reason"] == "tuned in a test"
    assert deployment["spec"]["settings"]["dynamic_batching"] is None
    assert deployment["spec"]["settings"]["max_batch_size"] == 16
    assert deployment["spec"]["settings"] == found["best"]["settings"]


def test_unreachable_objective_is_reported_and_nothing_is_applied(api: Api, layers: str) -> None:
    before = api.ok(api.http.get(f"/v1/deployments/{layers}"))["revision"]
    found = result(api, model=layers, max_p99_seconds=1e-6, apply=True, space=TWO_COUNTS, max_settings=2)
    assert not found["met"]
    assert found["best"] is None
    assert found["applied_revision"] is None
    assert "no setting meets the objective (the highest throughput with a p99 of at most 0.001 ms)" in found["message"]
    assert "closest is" in found["message"]
    assert api.ok(api.http.get(f"/v1/deployments/{layers}"))["revision"] == before
    nothing_left(api)


def test_settings_that_need_too_much_memory_are_not_run(api: Api, layers: str) -> None:
    found = result(api, model=layers, space=TWO_COUNTS, max_settings=2, clients=[1])
    one = found["trials"][0]["memory_bytes"]
    assert 1.8 * one < found["trials"][1]["memory_bytes"] < 2.2 * one
    found = result(api, model=layers, space=TWO_COUNTS, max_settings=2, clients=[1], memory_limit_bytes=int(1.5 * one))
    assert [one["state"] for one in found["trials"]] == ["measured", "memory"]
    assert "not loaded" in found["trials"][1]["message"]
    assert found["met"]
    assert found["best"]["trial"] == 0
    found = result(api, model=layers, space=TWO_COUNTS, max_settings=2, memory_limit_bytes=10 << 20)
    assert [one["state"] for one in found["trials"]] == ["memory", "memory"]
    assert not found["met"]
    assert "no setting could be measured" in found["message"]
    assert "not loaded" in found["trials"][0]["message"], "the model's own processes tell what it needs"
    # Where nothing tells, the first that is loaded does; and it is gone before anything else is.
    switch(api, layers, "unload")
    found = result(api, model=layers, space=TWO_COUNTS, max_settings=2, memory_limit_bytes=10 << 20)
    assert [one["state"] for one in found["trials"]] == ["memory", "memory"]
    assert "its processes used" in found["trials"][0]["message"]
    assert found["trials"][0]["measurements"] == []
    assert "not loaded" in found["trials"][1]["message"]
    switch(api, layers, "load")
    nothing_left(api)


def test_a_cancelled_tuning_leaves_nothing_behind(api: Api, layers: str) -> None:
    before = instances(api, layers)
    operation = start(api, model=layers, window_seconds=30)
    # One tuning at a time: two would measure each other.
    wait_measuring(api, operation)
    problem = api.failed(api.http.post("/v1/tunings", json={"model": layers}))
    assert problem["code"] == "conflict"
    assert "another tuning is in progress on embedded" in problem["detail"]
    state = api.operation(operation, wait=0)
    assert state["progress"]["stage"] == "measure"
    assert "round 1 of" in state["progress"]["message"]
    assert state["progress"]["details"]["trials"]
    cancelled = api.ok(api.http.post(f"/v1/operations/{operation}/cancel"))
    assert cancelled["state"] == "cancelled"
    nothing_left(api)
    assert instances(api, layers) == before
    assert api.operation(start(api, model=layers, max_settings=1, clients=[1]))["state"] == "succeeded"


def test_setting_whose_batching_changes_outputs_is_rejected(api: Api) -> None:
    # The comparison at push finds the rows independent: only batches larger than any sample are answered otherwise.
    api.publish("crowded", crowded_onnx(limit=4))
    assert api.deploy("crowded:1")["state"] == "succeeded"
    found = result(api, model="crowded", clients=[8], max_settings=2, space=BATCHED)
    assert [one["state"] for one in found["trials"]] == ["measured", "wrong"]
    assert "with 8 clients: output 'y'" in found["trials"][1]["message"]
    assert found["best"]["trial"] == 0


def test_a_setting_that_batches_dependent_rows_is_not_loaded(api: Api) -> None:
    api.publish("centred", centred_onnx())
    assert api.deploy("centred:1")["state"] == "succeeded"
    found = result(api, model="centred", clients=[1], max_settings=2, space=BATCHED)
    assert [one["state"] for one in found["trials"]] == ["measured", "failed"]
    assert "no batch dimension" in found["trials"][1]["message"]
    assert found["trials"][1]["memory_bytes"] is None
    assert found["best"]["trial"] == 0


def test_invalid_tuning_requests_are_rejected_immediately(api: Api, layers: str) -> None:
    def refused(status: int, code: str, **body: Any) -> str:
        return str(api.problem(api.http.post("/v1/tunings", json=body), status, code)["detail"])

    assert "absent" in refused(404, "not-found", model="absent")
    assert "embedded" in refused(404, "not-found", model=layers, server="elsewhere")
    assert "clients" in refused(422, "invalid-request", model=layers, clients=[])
    assert "rows" in refused(422, "invalid-request", model=layers, rows=0)
    assert "at most" in refused(422, "invalid-input", model=layers, rows=60_000)
    many = {"instances": list(range(1, 17)), "threads": list(range(1, 17)), "max_batch_sizes": list(range(8, 24))}
    assert "combinations" in refused(422, "invalid-input", model=layers, space=many)
    api.publish("unproved", centred_onnx(3), golden=False)
    api.deploy("unproved:1")
    assert "no golden samples" in refused(422, "invalid-input", model="unproved")
    api.publish("fixed", centred_onnx(5))
    api.deploy("fixed:1", config_overrides={"instanceGroup": [{"count": 1, "kind": "KIND_CPU"}]})
    assert "config_overrides.instance_group" in refused(422, "invalid-input", model="fixed")
