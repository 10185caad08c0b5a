"""Golden samples that are recorded after the publication, on a real Triton."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from controlplane.domain.recorded_samples import SampleRecord, SampleSource
from controlplane.domain.samples import Sample
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.lifecycle.first_samples import generated_inputs
from tests.support.api import Api
from tests.support.gateway import until, urls, way
from tests.triton_format import directories
from tests.triton_format.conftest import ask, publish


def unsteady() -> dict[str, bytes]:
    """A Python model that gives another answer each time."""
    body = (
        "    count = 0\n\n"
        "    def execute(self, requests):\n"
        "        self.count += len(requests)\n"
        "        return [answer(tensor(request) + self.count) for request in requests]\n"
    )
    return directories.python(body, "")


def proof(api: Api, model: str) -> dict[str, Any]:
    found: dict[str, Any] = api.ok(api.http.get(f"/v1/deployments/{model}"))["status"]["servers"][0]["proof"]
    return found


def recorded(api: Api, model: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.ok(api.http.get(f"/v1/models/{model}/versions/1"))["recorded_samples"]
    return found


@pytest.mark.triton
def test_first_answers_become_golden_samples_of_later_proofs(api: Api) -> None:
    assert publish(api, "first", directories.scaling(3.0))["golden_samples"] == 0
    assert api.deploy("first:1")["state"] == "succeeded"
    assert proof(api, "first")["samples"] == 3
    (record,) = recorded(api, "first")
    assert (record["source"], record["count"], record["actor"]) == ("first-deploy", 3, "reconciler")
    assert record["server"] == "embedded"
    assert record["triton_version"].startswith("2.")
    manifest = api.ok(api.http.get("/v1/models/first/versions/1"))["manifest"]
    assert manifest["golden"] is None, "a manifest is immutable"

    # A record with other answers: the next load must not pass, and says what to do.
    samples = api.plane.registry.recorded.read("first", 1)[0][1]
    wrong = tuple(Sample(one.inputs, {"y": one.outputs["y"] + 1}) for one in samples)
    other = SampleRecord.model_validate({**record, "id": "wrong", "source": "given"})
    assert api.plane.registry.recorded.put("first", 1, other, wrong)
    reload(api, "first")
    until("the proof fails", lambda: "differs from the recorded" in str(status(api, "first")["message"]))
    assert "`samples rm` removes wrong ones" in status(api, "first")["message"]
    listed = api.ok(api.http.get("/v1/models/first/versions/1/recorded-samples"))["items"]
    assert [one["id"] for one in listed] == ["first-deploy", "wrong"]
    path = "/v1/models/first/versions/1/recorded-samples/wrong"
    assert api.http.delete(path).status_code == 204
    assert "has no recorded samples 'wrong'" in api.problem(api.http.delete(path), 404, "not-found")["detail"]
    reload(api, "first")
    until("it is proved again", lambda: status(api, "first")["phase"] == "Ready")
    assert proof(api, "first")["samples"] == 3


def status(api: Api, model: str) -> dict[str, Any]:
    found: dict[str, Any] = api.ok(api.http.get(f"/v1/deployments/{model}"))["status"]
    return found


def reload(api: Api, model: str) -> None:
    """Unload a model and deploy it again."""
    api.ok(api.http.post(f"/v1/deployments/{model}/unload", json={}), 202)
    until("it is unloaded", lambda: status(api, model)["phase"] == "Unloaded")
    api.ok(api.http.put(f"/v1/deployments/{model}", json={"reference": f"{model}:1"}), 202)


@pytest.mark.triton
def test_answers_to_given_inputs_are_recorded(api: Api) -> None:
    publish(api, "given", directories.scaling(2.0))
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    body = {"samples": [{"inputs": [tensor]}, {"inputs": [{**tensor, "name": "z"}]}]}
    api.problem(api.http.post("/v1/deployments/given/samples", json=body), 404, "not-found")
    assert api.deploy("given:1")["state"] == "succeeded"
    found = api.ok(api.http.post("/v1/deployments/given/samples", json=body))
    assert (found["version"], found["record"]["count"], found["record"]["source"]) == (1, 1, "given")
    assert found["record"]["actor"] == "ada"
    assert "unknown input 'z'" in found["skipped"][0]
    assert {one["source"] for one in recorded(api, "given")} == {"first-deploy", "given"}
    (mine,) = [one for one in api.plane.registry.recorded.read("given", 1) if one[0].source is SampleSource.GIVEN]
    assert mine[1][0].outputs["y"].tolist() == [2.0, 4.0]
    reload(api, "given")
    until("all samples are compared", lambda: (proof(api, "given") or {}).get("samples") == 4)

    publish(api, "wild", unsteady())
    assert api.deploy("wild:1")["state"] == "succeeded"
    refused = api.http.post("/v1/deployments/wild/samples", json={"samples": [{"inputs": [tensor]}]})
    assert "differently each time" in api.problem(refused, 422, "invalid-input")["detail"]


@pytest.mark.triton
def test_requests_of_clients_are_recorded_over_both_protocols(api: Api) -> None:
    publish(api, "traffic", directories.scaling(2.0))
    assert api.deploy("traffic:1")["state"] == "succeeded"
    until("the direct route", lambda: way(api, "traffic") == "direct")
    nothing = api.http.post("/v1/deployments/traffic/samples/record", json={"count": 1, "seconds": 0.1})
    assert "no request to traffic" in api.problem(nothing, 404, "not-found")["detail"]
    with ThreadPoolExecutor(1) as pool:
        asked = {"count": 4, "seconds": 300}
        recording = pool.submit(api.http.post, "/v1/deployments/traffic/samples/record", json=asked, timeout=400)
        with (
            triton_http.InferenceServerClient(urls(api)[0]) as http,
            triton_grpc.InferenceServerClient(urls(api)[1]) as grpc,
        ):

            def ask_all() -> bool:
                for kind, client, value in ((triton_http, http, 1.0), (triton_grpc, grpc, 2.0)):
                    for binary in (True, False) if kind is triton_http else (True,):
                        tensor = kind.InferInput("x", [2], "FP32")
                        data = np.array([value, 5.0 + binary], np.float32)
                        tensor.set_data_from_numpy(data, **({"binary_data": binary} if kind is triton_http else {}))
                        assert client.infer("traffic", [tensor]).as_numpy("y").tolist() == (2 * data).tolist()
                again = kind.InferInput("x", [1], "FP32")
                again.set_data_from_numpy(np.array([9.0], np.float32))
                grpc.infer("traffic", [again])
                return recording.done()

            until("enough requests", ask_all)
        found = api.ok(recording.result())
    assert (found["record"]["source"], found["record"]["count"], found["skipped"]) == ("traffic", 4, [])
    (mine,) = [one for one in api.plane.registry.recorded.read("traffic", 1) if one[0].source is SampleSource.TRAFFIC]
    inputs = sorted(sample.inputs["x"].tolist() for sample in mine[1])
    assert inputs == [[1.0, 5.0], [1.0, 6.0], [2.0, 6.0], [9.0]]
    assert all((one.outputs["y"] == 2 * one.inputs["x"]).all() for one in mine[1])
    until("the direct route again", lambda: way(api, "traffic") == "direct")


@pytest.mark.triton
def test_version_with_unsteady_answers_gets_no_samples_and_says_so(api: Api) -> None:
    publish(api, "unsteady", unsteady())
    assert api.deploy("unsteady:1")["state"] == "succeeded"
    assert proof(api, "unsteady")["samples"] == 0
    assert "it answers the same request differently each time" in proof(api, "unsteady")["message"]
    assert recorded(api, "unsteady") == []
    assert ask(api, "unsteady", 1.0)[1] == 1


def test_generated_inputs_fit_the_signature() -> None:
    signature = Signature(
        inputs=(
            TensorSpec(name="a", dtype=DataType.FP32, shape=(-1, 3, -1)),
            TensorSpec(name="b", dtype=DataType.BYTES, shape=(-1, 1)),
            TensorSpec(name="c", dtype=DataType.BOOL, shape=(-1, 2)),
        ),
        outputs=(TensorSpec(name="y", dtype=DataType.FP32, shape=(-1, 1)),),
        batched=True,
    )
    found = generated_inputs(signature)
    assert [one["a"].shape for one in found] == [(1, 3, 1), (1, 3, 1), (1, 3, 8)]
    for one in found:
        assert all(spec.accepts(one[spec.name].shape) for spec in signature.inputs)
        assert [DataType.of(one[spec.name]) for spec in signature.inputs] == [spec.dtype for spec in signature.inputs]
    again = generated_inputs(signature)
    assert all((one[name] == other[name]).all() for one, other in zip(found, again, strict=True) for name in one)
    huge = Signature(inputs=(TensorSpec(name="a", dtype=DataType.FP32, shape=(2048, 2048)),), outputs=signature.outputs)
    assert generated_inputs(huge) == []
