"""Memory over REST, with a real Triton and a budget that has room for two of three models."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from controlplane.settings import MemorySettings, ReconcilerSettings
from tests.support.api import Api, serving, settings_for
from tests.support.models import affine_onnx

pytestmark = pytest.mark.triton

MIB = 1024 * 1024
BUDGET = 450 * MIB
RESIDENT_MIB = 80
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Three models on demand, of about 150 MiB each, and 225 while they are loaded, none of them loaded."""
    folder = tmp_path_factory.mktemp("room")
    memory = MemorySettings(
        budget_bytes={"host": BUDGET}, minimum_residence_seconds=0.1, poll_interval_seconds=0.2, eviction_policy="lru"
    )
    reconciler = ReconcilerSettings(interval_seconds=0.3, lease_seconds=15, probe_interval_seconds=5)
    with serving(settings_for(folder / "data", embedded=True, memory=memory, reconciler=reconciler)) as api:
        for name in NAMES:
            data = affine_onnx(folder / f"{name}.onnx", scale=2.0, resident_mib=RESIDENT_MIB).read_bytes()
            api.publish(name, data)
            operation = api.deploy(name, mode="on-demand", bake_seconds=0)
            assert operation["result"]["phase"] == "Unloaded", operation
        yield api


def _load(api: Api, model: str) -> dict[str, Any]:
    return api.ok(api.http.post(f"/v1/deployments/{model}/load", params={"wait": 60}))


def _memory(api: Api) -> dict[str, Any]:
    (server,) = api.ok(api.http.get("/v1/memory"))["items"]
    (device,) = server["devices"]
    counted = sum(device[f"{state}_bytes"] for state in ("reserved", "loading", "resident", "unloading"))
    assert counted <= device["budget_bytes"] == BUDGET
    found: dict[str, Any] = server
    return found


def _states(api: Api) -> dict[str, str]:
    return {model["model"]: model["state"] for model in _memory(api)["models"]}


def _only(api: Api, *names: str) -> None:
    """Have exactly these loaded, the first one first."""
    for name in NAMES:
        if name not in names:
            done = api.ok(api.http.post(f"/v1/deployments/{name}/unload"), 202)
            api.operation(done["operation_id"])
    for name in names:
        _load(api, name)
        time.sleep(0.15)  # beyond the minimum residence
    for name in NAMES:
        if name not in names:  # its deployment says loaded again, and no request needs it
            body = {"reference": name, "settings": {"mode": "on-demand", "bake_seconds": 0}}
            done = api.ok(api.http.put(f"/v1/deployments/{name}", json=body), 202)
            assert api.operation(done["operation_id"])["result"]["phase"] == "Unloaded"
    assert {name for name, state in _states(api).items() if state == "loaded"} == set(names)


def _metric(api: Api, name: str, **labels: str) -> float:
    for line in api.http.get("/metrics").text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"{name} {labels} is not there")


def test_ledger_is_returned_by_device_and_model(room: Api) -> None:
    _only(room, "one")
    memory = _memory(room)
    (device,) = memory["devices"]
    views = {model["model"]: model for model in memory["models"]}
    held = views["one"]["footprint"][0]["held_bytes"]
    assert RESIDENT_MIB * MIB / 2 < held == device["resident_bytes"]
    assert device["free_bytes"] == BUDGET - held - device["unaccounted_bytes"]
    assert views["two"]["state"] == "unloaded"
    assert views["two"]["footprint"][0]["held_bytes"] == 0
    assert "on demand" in views["two"]["why"]

    (of_deployment,) = room.ok(room.http.get("/v1/deployments/one"))["memory"]
    assert (of_deployment["server"], of_deployment["mode"], of_deployment["state"]) == (
        "embedded",
        "on-demand",
        "loaded",
    )
    expires = datetime.fromisoformat(of_deployment["expires_at"])
    assert expires > datetime.fromisoformat(of_deployment["loaded_at"])
    listed = {item["model"]: item["memory"] for item in room.ok(room.http.get("/v1/deployments"))["items"]}
    assert listed["one"][0]["state"] == "loaded"

    assert _metric(room, "tritonctl_memory_bytes", device="host", state="resident") == pytest.approx(held, abs=16 * MIB)
    assert _metric(room, "tritonctl_model_memory_bytes", model="one", state="loaded") == pytest.approx(
        held, abs=16 * MIB
    )
    assert _metric(room, "tritonctl_load_seconds_total", stage="load") > 0
    assert _metric(room, "tritonctl_footprints_measured_total", server="embedded") >= 1
    footprint = views["one"]["footprint"][0]
    while footprint["estimate_bytes"] is None:  # it is kept after the model answers
        time.sleep(0.05)
        footprint = next(model for model in _memory(room)["models"] if model["model"] == "one")["footprint"][0]
    wrong = footprint["bytes"] - footprint["estimate_bytes"]
    told = _metric(room, "tritonctl_model_footprint_estimate_error_bytes", server="embedded", model="one")
    assert told == pytest.approx(wrong, abs=16 * MIB)
    assert len(room.ok(room.http.get("/v1/memory", params={"server": "embedded"}))["items"]) == 1
    problem = room.problem(room.http.get("/v1/memory", params={"server": "nowhere"}), 404, "not-found")
    assert "embedded" in problem["detail"]


def test_measured_footprint_is_stored_with_the_version(room: Api) -> None:
    _only(room, "one")
    (found,) = room.ok(room.http.get("/v1/models/one/versions/1/footprints"))["items"]
    assert (found["backend"], found["kind"], found["instances"], found["by"]) == ("onnxruntime", "cpu", 1, "processes")
    assert 0 < found["resident_bytes"] <= max(found["load_peak_bytes"], found["inference_peak_bytes"])
    (footprint,) = room.ok(room.http.get("/v1/deployments/one"))["memory"][0]["footprint"]
    assert footprint["load_peak_bytes"] == found["load_peak_bytes"]
    leak = _memory(room)["leak"]
    assert (leak["bound_bytes"], leak["state"], leak["restarts"]) == (None, "watching", 0)
    assert _metric(room, "tritonctl_server_leaked_bytes", device="host") >= 0
    assert _metric(room, "tritonctl_server_leak_restarts_total", server="embedded") == 0
    room.problem(room.http.get("/v1/models/one/versions/9/footprints"), 404, "not-found")
    assert room.ok(room.http.get("/v1/models/one/versions/@latest/footprints"))["items"] == [found]


def test_probes_of_an_active_model_are_not_counted_as_loads(room: Api) -> None:
    _only(room, "one")
    before = _metric(room, "tritonctl_load_seconds_total", stage="prove")
    loads = _metric(room, "tritonctl_model_loads_total", server="embedded")
    proved = room.ok(room.http.get("/v1/deployments/one"))["status"]["servers"][0]["proof"]["at"]
    deadline = time.monotonic() + 60
    while room.ok(room.http.get("/v1/deployments/one"))["status"]["servers"][0]["proof"]["at"] == proved:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert _metric(room, "tritonctl_model_loads_total", server="embedded") == loads
    assert _metric(room, "tritonctl_load_seconds_total", stage="prove") == before


def test_load_evicts_the_models_that_the_plan_names(room: Api) -> None:
    _only(room, "one", "two")
    evicted = _metric(room, "tritonctl_evictions_total", server="embedded")
    cold = _metric(room, "tritonctl_cold_starts_total", server="embedded")

    plan = room.ok(room.http.post("/v1/deployments/three/load", params={"dry_run": True}))
    (planned,) = plan["servers"]
    assert planned["decision"] == "evict"
    assert [gone["model"] for gone in planned["evictions"]] == ["one"]  # the longest not used
    assert planned["evictions"][0]["bytes"]["host"] > RESIDENT_MIB * MIB / 2
    assert planned["needed"]["host"] > planned["free"]["host"]
    assert planned["seconds"] > 0
    assert "load" in planned["seconds_why"]
    assert _states(room) == {"one": "loaded", "two": "loaded", "three": "unloaded"}

    loaded = _load(room, "three")
    assert loaded["status"]["phase"] == "Ready"
    assert _states(room) == {"one": "unloaded", "two": "loaded", "three": "loaded"}
    assert _metric(room, "tritonctl_evictions_total", server="embedded") == evicted + 1
    assert _metric(room, "tritonctl_cold_starts_total", server="embedded") == cold + 1

    (why,) = room.ok(room.http.get("/v1/deployments/one/explanation"))["servers"]
    assert (why["evictions"][0]["victim"], why["evictions"][0]["for_model"]) == ("one", "three")
    assert why["needed"]["host"] > why["free"]["host"]
    assert why["could_be_freed"]["host"] > 0
    assert why["next"]
    assert room.http.post("/v1/deployments/absent/load", params={"dry_run": True}).status_code == 404
    room.problem(room.http.get("/v1/deployments/absent/explanation"), 404, "not-found")


def test_held_model_is_not_evicted(room: Api) -> None:
    _only(room, "two")
    leases = "/v1/deployments/one/holds"
    lease = room.ok(room.http.post(leases, params={"wait": 60}, json={"ttl_seconds": 60, "holder": "batch"}), 201)
    assert lease["ready"]
    assert _states(room)["one"] == "loaded"
    _load(room, "three")  # one must be evicted, and it is not the one that was used first
    assert _states(room) == {"one": "loaded", "two": "unloaded", "three": "loaded"}
    (held,) = room.ok(room.http.get("/v1/deployments/one"))["memory"]
    assert held["held_until"] == lease["expires_at"]

    room.http.post(f"{leases}?wait=0", json={"ttl_seconds": 600}).raise_for_status()
    listed = room.ok(room.http.get(leases))["items"]
    assert [one["holder"] for one in listed] == ["batch", "ada"]
    renewed = room.ok(room.http.put(f"{leases}/{lease['id']}", json={"ttl_seconds": 900}))
    assert renewed["expires_at"] > lease["expires_at"]
    assert room.ok(room.http.get(f"{leases}/{lease['id']}")) == renewed

    # Two held, and the third waits; it says for what, and gets its memory when one is given back.
    other = room.ok(room.http.post("/v1/deployments/three/holds", json={"ttl_seconds": 60}), 201)
    waiting = room.ok(room.http.post("/v1/deployments/two/load", params={"wait": 0.5}), 202)
    assert waiting["status"]["phase"] == "Pending"
    (queued,) = _memory(room)["queue"]
    assert queued["model"] == "two"
    (why,) = room.ok(room.http.get("/v1/deployments/two/explanation"))["servers"]
    assert why["model"]["state"] == "queued"
    assert any("held by a client" in holder["why"] for holder in why["holders"])
    assert room.http.delete(f"/v1/deployments/three/holds/{other['id']}").status_code == 204
    assert _load(room, "two")["status"]["phase"] == "Ready"
    assert _states(room) == {"one": "loaded", "two": "loaded", "three": "unloaded"}

    for one in room.ok(room.http.get(leases))["items"]:
        assert room.http.delete(f"{leases}/{one['id']}").status_code == 204
        assert room.http.delete(f"{leases}/{one['id']}").status_code == 204
    assert room.ok(room.http.get(leases))["items"] == []
    room.problem(room.http.put(f"{leases}/{lease['id']}", json={}), 404, "not-found")
    room.problem(room.http.delete(f"{leases}/no-such-lease"), 404, "not-found")
    room.problem(room.http.post(leases, json={"ttl_seconds": 0}), 422, "invalid-request")
    room.problem(room.http.post("/v1/deployments/absent/holds", json={}), 404, "not-found")
    assert room.ok(room.http.get("/v1/deployments/one"))["memory"][0]["held_until"] is None


def test_model_deployed_as_unloaded_cannot_be_held_but_can_be_loaded(room: Api) -> None:
    _only(room, "one")
    done = room.ok(room.http.post("/v1/deployments/one/unload"), 202)
    room.operation(done["operation_id"])
    problem = room.problem(room.http.post("/v1/deployments/one/holds", json={}), 409, "conflict")
    assert "unloaded" in problem["detail"]
    loaded = _load(room, "one")
    assert loaded["spec"]["loaded"]
    assert loaded["status"]["phase"] == "Ready"
    again = _load(room, "one")
    assert again["revision"] == loaded["revision"]  # a use is no revision


def test_model_that_can_never_fit_is_rejected_with_figures(room: Api, tmp_path: Path) -> None:
    _only(room, "one")
    room.publish("huge", affine_onnx(tmp_path / "huge.onnx", scale=2.0, resident_mib=RESIDENT_MIB).read_bytes())
    settings = {"mode": "on-demand", "instance_count": 16}
    body = {"reference": "huge", "settings": settings}
    plan = room.ok(room.http.put("/v1/deployments/huge", json=body, params={"dry_run": True}))
    (refused,) = plan["servers"]
    assert refused["decision"] == "refuse"
    assert refused["needed"]["host"] > BUDGET
    assert refused["why"]
    room.problem(room.http.get("/v1/deployments/huge"), 404, "not-found")  # nothing was written

    room.deploy("huge", **settings)
    for path in ("load", "holds"):
        answer = room.http.post(f"/v1/deployments/huge/{path}", params={"wait": 30})
        problem = room.problem(answer, 409, "insufficient-memory")
        (server,) = problem["details"]["servers"]
        assert server["needed"]["host"] > BUDGET > server["free"]["host"]
        assert "needs" in problem["detail"]
    assert room.ok(room.http.get("/v1/deployments/huge/holds"))["items"] == []
    assert _states(room)["one"] == "loaded"
    room.http.delete("/v1/deployments/huge")


def test_load_failure_is_reported_to_waiting_clients(room: Api) -> None:
    _only(room)
    room.deploy("three", mode="on-demand", parameters={"intra_op_thread_count": "many"})
    answer = room.http.post("/v1/deployments/three/load", params={"wait": 30})
    problem = room.problem(answer, 502, "deployment-failed")
    assert problem["detail"].startswith("three cannot be loaded: ")
    assert "must be a number of threads" in problem["detail"]
    assert problem["details"] == {"model": "three", "phase": "Failed"}


def test_plan_reports_a_gap_only_if_both_versions_do_not_fit(room: Api, tmp_path: Path) -> None:
    _only(room, "one")
    room.publish("one", affine_onnx(tmp_path / "new.onnx", scale=3.0, resident_mib=RESIDENT_MIB).read_bytes())
    revision = room.ok(room.http.get("/v1/deployments/one"))["revision"]

    def planned() -> dict[str, Any]:
        body = {"reference": "one:2"}
        plan = room.ok(room.http.put("/v1/deployments/one", json=body, params={"dry_run": True}))
        assert plan["version"] == 2
        (server,) = plan["servers"]
        found: dict[str, Any] = server
        return found

    assert (planned()["beside"], planned()["gap_seconds"]) == (True, 0)
    lease = room.ok(room.http.post("/v1/deployments/two/holds", params={"wait": 60}, json={"ttl_seconds": 60}), 201)
    tight = planned()
    assert tight["beside"] is False
    assert tight["gap_seconds"] > 0
    assert room.ok(room.http.get("/v1/deployments/one"))["revision"] == revision
    room.http.delete(f"/v1/deployments/two/holds/{lease['id']}")


def test_memory_routes_and_metrics_are_described(room: Api) -> None:
    document = room.ok(room.http.get("/openapi.json"))
    schemas = document["components"]["schemas"]
    for name in (
        "ServerMemory",
        "ModelMemoryView",
        "DeviceMemory",
        "ExplanationView",
        "LoadPlanView",
        "Hold",
        "HoldRequest",
    ):
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description"), f"{name}.{field} is not described"
    operations = {
        operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()
    }
    for name in ("getMemory", "getExplanation", "takeHold", "listHolds", "getHold", "renewHold", "giveHoldBack"):
        assert operations[name]["description"]
    assert "200" in operations["deploy"]["responses"]
    assert "200" in operations["loadDeployment"]["responses"]


def test_placement_and_defragmentation_plan_are_returned(room: Api) -> None:
    why = room.ok(room.http.get("/v1/deployments/one/explanation"))
    assert [assignment["server"] for assignment in why["placement"]["assignments"]] == ["embedded"]
    assert why["placement"]["assignments"][0]["why"] == "the only server"
    for params in ({"dry_run": True}, {"limit": 5}):
        found = room.ok(room.http.post("/v1/placement/defragment", params=params))
        assert found["dry_run"] is ("dry_run" in params)
        assert found["moves"] == []
        assert found["largest_gap_before"] == found["largest_gap_after"]
    room.problem(room.http.post("/v1/placement/defragment", params={"limit": 0}), 422, "invalid-request")


def test_server_without_the_labels_gets_no_replica(room: Api) -> None:
    before = room.ok(room.http.get("/v1/deployments/one"))["spec"]["settings"]
    operation = room.deploy("one", **{**before, "node_selector": {"disk": "tape"}})
    why = room.ok(room.http.get("/v1/deployments/one/explanation"))
    assert why["placement"]["unplaced"] == "no server has the labels disk=tape"
    assert operation["state"] in {"failed", "succeeded"}, "what answers goes on"
    body = {"reference": "one", "settings": {"node_selector": {"disk": "tape"}}}
    planned = room.ok(room.http.put("/v1/deployments/one", params={"dry_run": True}, json=body))
    assert [(one["decision"], one["why"]) for one in planned["servers"]] == [
        ("refuse", "no server has the labels disk=tape")
    ]
    assert room.deploy("one", **before)["state"] in {"succeeded", "failed"}
    bad = {"reference": "one", "settings": {"min_replicas": 3, "max_replicas": 2}}
    room.problem(room.http.put("/v1/deployments/one", json=bad), 422, "invalid-request")
