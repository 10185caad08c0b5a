"""`tritonctl adopt`: a model that another client loaded becomes a deployment while it answers."""

import threading
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.cli.conftest import Cli
from tests.support.api import Api
from tests.triton_format import directories

pytestmark = pytest.mark.triton


def test_unmanaged_model_is_adopted_while_it_answers(api: Api, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    cli = Cli(tmp_path / "data", tmp_path / "here")
    repository = api.plane.settings.data_dir / "model_repository"
    files = directories.scaling(4.0) | {"6/model.py": directories.scaling()["1/model.py"]}
    for path, content in files.items():
        (repository / "stranger" / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / "stranger" / path).write_bytes(content)
    url = api.ok(api.http.get("/v1/servers"))["items"][0]["grpc_url"]
    assert "no server has loaded stranger" in cli("adopt", "stranger", repository, "--url", api.url).err

    answers: set[tuple[float, str]] = set()
    stop = threading.Event()

    def ask() -> None:
        tensor = InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([2], np.float32))
        with InferenceServerClient(url) as other:
            while not stop.is_set():
                answer = other.infer("stranger", [tensor])
                answers.add((float(answer.as_numpy("y")[0]), answer.get_response().model_version))

    with InferenceServerClient(url) as client:
        client.load_model("stranger")  # its newest version, by Triton's default policy
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            seen = api.plane.reconciler
            for _ in range(600):
                if any(one.model == "stranger" for one in seen.servers()[0].models):
                    break
                stop.wait(0.1)
            cli.ok("adopt", "stranger", repository, "--url", api.url)
            assert asking.is_alive(), "a request failed"
        finally:
            stop.set()
            asking.join(60)
        assert answers == {(8.0, "6")}, "every request was answered by the same version"
        config = client.get_model_config("stranger", as_json=True)["config"]
    assert "tcp_config_digest" in config["parameters"], "the control plane's own load replaced the other client's"
    deployment = api.ok(api.http.get("/v1/deployments/stranger"))
    assert (deployment["spec"]["version"], deployment["status"]["phase"]) == (6, "Ready")
    again = cli("adopt", "stranger", repository, "--url", api.url)
    assert again.code == 5
    assert "is deployed already" in again.err
