"""Model directories on a real Triton: publish, deploy, infer, roll back."""

import io

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.support.api import Api
from tests.triton_format import directories
from tests.triton_format.conftest import ask, publish

pytestmark = pytest.mark.triton


def test_onnx_with_configuration_by_hand(api: Api) -> None:
    first = publish(api, "hand", directories.onnx(2.0, folder=7))
    assert (first["format"], first["golden_samples"], first["servable"]) == ("triton", 3, True)
    assert api.deploy("hand:1")["state"] == "succeeded"
    assert ask(api, "hand", 1.0, 2.0, shape=[1, 2]) == ([2.0, 4.0], 1)

    server = api.ok(api.http.get("/v1/servers"))["items"][0]
    with InferenceServerClient(server["grpc_url"]) as client:
        config = client.get_model_config("hand", as_json=True)["config"]
        assert config["name"] == "hand"
        assert config["max_batch_size"] == 4
        assert config["version_policy"] == {"specific": {"versions": ["1"]}}
        assert config["dynamic_batching"]["preferred_batch_size"] == [2, 4]
        assert [request["name"] for request in config["model_warmup"]] == ["author's"]
        tensor = InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 5]], dtype=np.float32))
        from tritonclient.grpc import InferRequestedOutput

        classes = client.infer("hand", [tensor], outputs=[InferRequestedOutput("y", class_count=1)]).as_numpy("y")
        assert classes.reshape(-1)[0] == b"10.000000:1:dog", "the label file was not read"

    # Other labels beside the version folders: both versions cannot be loaded together.
    assert publish(api, "hand", directories.onnx(3.0, labels="one\ntwo\n"))["version"] == 2
    assert api.deploy("hand:2")["state"] == "succeeded"
    assert ask(api, "hand", 1.0, 2.0, shape=[1, 2]) == ([3.0, 6.0], 2)
    back = api.ok(api.http.post("/v1/deployments/hand/rollback", json={}), 202)
    assert api.operation(back["operation_id"])["state"] == "succeeded"
    assert ask(api, "hand", 1.0, 2.0, shape=[1, 2]) == ([2.0, 4.0], 1)


def test_python_model_reads_a_file_beside_its_configuration(api: Api) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([1, 2], np.float32), y=np.array([3, 6], np.float32))
    files = {**directories.scaling(3.0), "s.npz": buffer.getvalue()}
    assert publish(api, "scaling", files, samples="s.npz")["golden_samples"] == 1
    assert api.deploy("scaling:1")["state"] == "succeeded"
    assert ask(api, "scaling", 1.0, 2.0) == ([3.0, 6.0], 1)

    wrong = {**directories.scaling(4.0), "s.npz": buffer.getvalue()}
    publish(api, "scaling", wrong, samples="s.npz")
    operation = api.deploy("scaling:2")
    assert operation["state"] == "failed"
    assert "differs from the recorded" in operation["error"]["detail"]
    assert ask(api, "scaling", 1.0, 2.0) == ([3.0, 6.0], 1)


def test_model_with_state_is_proved_and_keeps_sequences_apart(api: Api) -> None:
    assert publish(api, "counting", directories.counting())["golden_samples"] == 0
    assert api.deploy("counting:1")["state"] == "succeeded"
    assert ask(api, "counting", 1.0, 2.0) == ([1.0, 2.0], 1), "a request over REST is a sequence of its own"
    server = api.ok(api.http.get("/v1/servers"))["items"][0]
    with InferenceServerClient(server["grpc_url"]) as client:
        tensor = InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([2], dtype=np.float32))
        sums = [
            client.infer(
                "counting", [tensor], sequence_id=7, sequence_start=step == 0, sequence_end=step == 2
            ).as_numpy("y")[0]
            for step in range(3)
        ]
        assert sums == [2, 4, 6]


def test_decoupled_model_is_proved_over_a_stream(api: Api) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([1, 2, 3], np.float32), y=np.array([1, 2, 3], np.float32))
    publish(api, "repeating", {**directories.repeating(), "s.npz": buffer.getvalue()}, samples="s.npz")
    operation = api.deploy("repeating:1")
    assert operation["state"] == "succeeded"
    assert ask(api, "repeating", 5.0, 6.0) == ([5.0, 6.0], 1), "the responses are joined"
