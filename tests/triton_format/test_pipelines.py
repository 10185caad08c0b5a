"""Pipelines on a real Triton: publish, deploy with pinned members, infer, update, roll back, protect, recover."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from controlplane.settings import GatewaySettings, MemorySettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.gateway import grpc_client, ones, triton_pid
from tests.triton_format import directories, pipelines
from tests.triton_format.conftest import ask, publish, refused

pytestmark = pytest.mark.triton
MIB = 1 << 20


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
    return found


def deploy(api: Api, reference: str, **settings: Any) -> None:
    operation = api.deploy(reference, **settings)
    assert operation["state"] == "succeeded", operation


def phase(api: Api, model: str) -> str:
    status = api.ok(api.http.get(f"/v1/deployments/{model}"))["status"]
    return str(status["phase"]) if status else ""


def index(api: Api) -> dict[str, list[int]]:
    """The versions that Triton has loaded, by model."""
    found: dict[str, list[int]] = {}
    for one in api.ok(api.http.get("/v1/servers"))["items"][0]["models"]:
        if one["state"] == "READY":
            found.setdefault(one["model"], []).append(one["version"])
    return found


def test_ensembles_share_a_member_and_protect_it(api: Api) -> None:
    for name, factor in (("tok", 2.0), ("enc", 3.0), ("cls", 5.0)):
        publish(api, name, pipelines.scaling(factor))
    published = publish(api, "pipe", pipelines.ensemble(["tok", "enc", "cls"]))
    assert published["members"] == ["tok", "enc", "cls"]
    assert published["warnings"] == []
    publish(api, "short", pipelines.ensemble(["tok", "cls"]))

    refusal = api.problem(api.http.put("/v1/deployments/pipe", json={"reference": "pipe:1"}), 422, "invalid-input")
    assert "pipe:1 needs tok, which is not deployed" in refusal["detail"]
    for name in ("tok", "enc", "cls"):
        deploy(api, f"{name}:1", mode="on-demand")
    assert "tok" not in index(api)

    deploy(api, "pipe:1")
    assert ask(api, "pipe", 1.0, 2.0) == ([30.0, 60.0], 1)
    assert api.ok(api.http.get("/v1/deployments/pipe"))["spec"]["settings"]["members"] == {"tok": 1, "enc": 1, "cls": 1}
    deploy(api, "short:1")
    assert ask(api, "short", 1.0) == ([10.0], 1)

    for method, path in (("DELETE", ""), ("POST", "/unload")):
        said = api.problem(
            api.http.request(method, f"/v1/deployments/tok{path}", json={} if path else None), 409, "in-use"
        )
        assert "tok:1 is needed by the pipeline pipe:1 (also by short:1)" in said["detail"]
    api.problem(api.http.delete("/v1/models/tok/versions/1"), 409, "in-use")

    # Both pipelines gone: the members follow, because they are on demand.
    for name in ("pipe", "short"):
        gone = api.ok(api.http.delete(f"/v1/deployments/{name}"), 202)
        assert api.operation(gone["operation_id"])["state"] == "succeeded"
    until(lambda: not {"pipe", "short"} & index(api).keys())
    for name in ("tok", "enc", "cls"):
        gone = api.ok(api.http.delete(f"/v1/deployments/{name}"), 202)
        assert api.operation(gone["operation_id"])["state"] == "succeeded"
    until(lambda: not {"tok", "enc", "cls"} & index(api).keys())


def test_members_change_under_a_pipeline_and_both_roll_back(api: Api) -> None:
    publish(api, "mul", pipelines.scaling(2.0))
    publish(api, "mul", pipelines.scaling(7.0))
    publish(api, "twice", pipelines.ensemble(["mul", "mul"]))
    deploy(api, "mul:1", bake_seconds=0)
    deploy(api, "twice:1", bake_seconds=0)
    assert ask(api, "twice", 1.0) == ([4.0], 1)

    # The member moves on; the pipeline keeps its version, which stays loaded beside the active one.
    deploy(api, "mul:2", bake_seconds=0)
    assert ask(api, "mul", 1.0) == ([7.0], 2)
    assert ask(api, "twice", 1.0) == ([4.0], 1)
    until(lambda: index(api)["mul"] == [1, 2])  # as last observed
    said = api.problem(api.http.delete("/v1/models/mul/versions/1"), 409, "in-use")
    assert "the pipeline twice:1 needs it" in said["detail"]

    # A new deploy pins the active version; nothing needs the old one any more.
    deploy(api, "twice:1")
    assert ask(api, "twice", 1.0) == ([49.0], 1)
    until(lambda: index(api)["mul"] == [2])
    said = api.problem(api.http.post("/v1/deployments/mul/rollback", json={}), 409, "in-use")
    assert "mul cannot be changed to version 1: mul:2 is needed by the pipeline twice:1" in said["detail"]

    # Back, in the reverse order: the pipeline to the pins of its earlier revision, then the member.
    back = api.ok(api.http.post("/v1/deployments/twice/rollback", json={}), 202)
    assert api.operation(back["operation_id"])["state"] == "succeeded"
    assert back["spec"]["settings"]["members"] == {"mul": 1}
    assert ask(api, "twice", 1.0) == ([4.0], 1)
    until(lambda: index(api)["mul"] == [1, 2])  # as last observed
    back = api.ok(api.http.post("/v1/deployments/mul/rollback", json={}), 202)
    assert api.operation(back["operation_id"])["state"] == "succeeded"
    assert ask(api, "mul", 1.0) == ([2.0], 1)
    assert ask(api, "twice", 1.0) == ([4.0], 1)
    until(lambda: index(api)["mul"] == [1])


def test_python_model_calls_its_pinned_member_and_survives_a_kill_of_triton(api: Api) -> None:
    publish(api, "base", pipelines.scaling(2.0))
    publish(api, "base", pipelines.scaling(3.0))
    assert publish(api, "router", pipelines.calling("base"))["members"] == ["base"]
    assert "only a Python model calls other models" in refused(api, "x", directories.onnx(), depends_on=["base"])
    deploy(api, "base:2", mode="on-demand", bake_seconds=0)
    said = api.problem(
        api.http.put("/v1/deployments/router", json={"reference": "router:1", "settings": {"members": {"base": 1}}}),
        422,
        "invalid-input",
    )
    assert "base:1 cannot be loaded beside the active version 2" in said["detail"]
    deploy(api, "router:1", mode="on-demand")
    api.ok(api.http.post("/v1/deployments/router/load", json={}), 202)
    until(lambda: phase(api, "router") == "Ready")
    assert ask(api, "router", 1.0, 2.0) == ([4.0, 7.0], 1)

    os.kill(triton_pid(api), signal.SIGKILL)
    until(lambda: phase(api, "router") != "Ready")
    until(lambda: phase(api, "router") == "Ready")
    assert ask(api, "router", 1.0) == ([4.0], 1)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with room for one of two pipelines of two members each, all of them on demand."""
    memory = MemorySettings(
        budget_bytes={"host": 230 * MIB},
        minimum_residence_seconds=0.1,
        poll_interval_seconds=0.2,
        eviction_policy="lru",
    )
    gateway = GatewaySettings(load_timeout_seconds=90)
    with serving(settings_for(tmp_path_factory.mktemp("room"), embedded=True, memory=memory, gateway=gateway)) as api:
        for name, factor in (("a", 2.0), ("b", 3.0), ("c", 5.0), ("d", 7.0)):
            api.publish(name, onnx_scale(factor))
            deploy(api, f"{name}:1", mode="on-demand")
        for name, members in (("ab", "ab"), ("cd", "cd"), ("abcd", "abcd")):
            publish(api, name, pipelines.ensemble(members, tensors=pipelines.BATCHED_TENSORS))
            deploy(api, f"{name}:1", mode="on-demand")
        yield api


def test_pipelines_are_loaded_and_evicted_whole_for_requests_at_the_gateway(room: Api) -> None:
    with grpc_client(room) as client:
        for name, factor in (("ab", 6.0), ("cd", 35.0), ("ab", 6.0)):
            assert client.infer(name, ones()).as_numpy("y").flatten().tolist() == [factor, factor]
            others = {"ab": {"cd", "c", "d"}, "cd": {"ab", "a", "b"}}[name]
            assert not others & index(room).keys(), "a part of the evicted pipeline is loaded"
        with pytest.raises(InferenceServerException, match="whole pipeline abcd"):
            client.infer("abcd", ones())
        assert client.infer("cd", ones()).as_numpy("y").flatten().tolist() == [35.0, 35.0]
    evicted = {event.subject for event in room.plane.reconciler.events() if event.reason == "Evicted"}
    assert evicted == {"ab", "a", "b", "cd", "c", "d"}


def test_documents_deploy_a_pipeline_after_its_new_members(api: Api) -> None:
    publish(api, "first", pipelines.scaling(2.0))
    publish(api, "second", pipelines.scaling(7.0))
    publish(api, "a-chain", pipelines.ensemble(["first", "second"]))
    body = {
        "documents": [
            {
                "apiVersion": "tritonctl/v1",
                "kind": "Deployment",
                "metadata": {"name": name},
                "spec": {"reference": f"{name}:1", "settings": {}},
            }
            for name in ("a-chain", "first", "second")
        ]
    }
    applied = api.ok(api.http.post("/v1/apply", json=body))
    assert [one["name"] for one in applied["items"]] == ["first", "second", "a-chain"]
    for one in applied["items"]:
        assert api.operation(one["operation_id"])["state"] == "succeeded"
    assert ask(api, "a-chain", 1.0, 2.0) == ([14.0, 28.0], 1)
    again = api.ok(api.http.post("/v1/apply", json=body))
    assert {one["action"] for one in again["items"]} == {"unchanged"}
